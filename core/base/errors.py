"""The base class of all errors that are meant for a user."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from core.base.text import printable


class ReenactError(Exception):
    """Something that the user can fix: the message is a sentence that says what to do next."""

    def __str__(self) -> str:
        return printable(super().__str__(), lines=True)  # it may quote what a file holds


@contextmanager
def reading(path: str | Path, wrong: Callable[[str], ReenactError]) -> Iterator[None]:
    """Turns what a reader did not foresee of a damaged or hostile file into its error.

    The last net under a reader: what is known to go wrong is told apart within the block.

    Args:
        path: the file that the block reads.
        wrong: makes the error.
    """
    try:
        yield
    except ReenactError:
        raise
    except MemoryError as error:
        raise wrong(
            f"{path} needs more memory than there is. Close other programs, or read it elsewhere."
        ) from error
    except Exception as error:
        raise wrong(
            f"{path} is damaged in a way that is not known ({type(error).__name__}). Copy or "
            "download it again."
        ) from error
