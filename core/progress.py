"""How long work tells how far it is."""

from collections.abc import Callable

Progress = Callable[[float, float], None]  # called with what is done, and of how much
