"""Qt from the binding that this Nuke has: PySide6 from Nuke 16 on, PySide2 before."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    QtCore: Any
    QtGui: Any
    QtWidgets: Any
else:
    try:
        from PySide6 import QtCore, QtGui, QtWidgets
    except ImportError:
        from PySide2 import QtCore, QtGui, QtWidgets

__all__ = ["QtCore", "QtGui", "QtWidgets"]
