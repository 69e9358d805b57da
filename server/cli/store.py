"""`reenact store`: the files that the server keeps."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from core.base.errors import ReenactError
from server.cli.reporting import Terminal
from server.frontend import home
from server.locks import exclusive_lock

if TYPE_CHECKING:
    from server.frontend.database import Database

console = Terminal(highlight=False, soft_wrap=True)
app = typer.Typer(help="The server's files.", no_args_is_help=True)


class NoSuchFileError(ReenactError):
    """The store does not have a file."""


@app.command("show")
def show() -> None:
    """Shows what files take, and which are pinned."""
    with _opened() as store:
        used, pinned = store.used(), store.pinned()
    console.print(f"  {used / 2**30:.2f} GiB in {home.home() / 'store'}")
    for hash in pinned:
        console.print(f"  pinned {hash}")


@app.command("collect")
def collect() -> None:
    """Removes files that clients can send again; never results, nor what is pinned."""
    with _opened() as store:
        freed = store.collect()
    console.print(f"  {freed / 2**20:.0f} MiB freed")


@app.command("pin")
def pin(
    hash: Annotated[str, typer.Argument(help="A file's hash")],
    off: Annotated[bool, typer.Option("--off", help="Unpin it")] = False,
) -> None:
    """Keeps a file from being removed when room is needed."""
    with _opened() as store:
        found = store.pin(hash, not off)
    if not found:
        raise NoSuchFileError(f"The store has no file {hash}.")


@contextmanager
def _opened() -> Iterator[Database]:
    """Yields the store, while no server uses it.

    Raises:
        LockHeldError: a server does.
    """
    from server.frontend.database import Database

    folder = home.home()
    with exclusive_lock(
        folder / "server.lock", "A server uses the store. Stop it first; it collects by itself."
    ):
        store = Database(folder / "store", 1 << 62)
        try:
            yield store
        finally:
            store.close()
