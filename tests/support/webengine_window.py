"""A window of Qt WebEngine, for `browser.py`: it ends when its standard input does."""

import os
import sys
import threading

from PySide6.QtWebEngineWidgets import QWebEngineView
from PySide6.QtWidgets import QApplication


def end_with_parent() -> None:
    sys.stdin.read()
    os._exit(0)


application = QApplication(sys.argv)
view = QWebEngineView()
view.load("about:blank")
view.show()
threading.Thread(target=end_with_parent, daemon=True).start()
application.exec()
