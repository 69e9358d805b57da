"""`reenact keys`: who may connect to the server."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from server.cli.reporting import Terminal
from server.frontend import home

console = Terminal(highlight=False, soft_wrap=True)
app = typer.Typer(help="Who may connect to this server.", no_args_is_help=True)


@app.command("list")
def list_keys() -> None:
    """Shows who may connect."""
    home.make_keys(home.home())
    for key, name in home.allowed(home.home()).items():
        console.print(f"{name:20s} {escape(key)}")


@app.command("add")
def add(
    name: Annotated[str, typer.Argument(help="What to call the holder")],
    public: Annotated[
        Path | None, typer.Argument(help="Their .key file; default: makes them a pair here")
    ] = None,
) -> None:
    """Lets somebody in: by their public key, or with a pair that is made here and handed over."""
    folder = home.home()
    home.make_keys(folder)
    if public is None:
        for suffix in (".key", ".key_secret"):
            if Path(name + suffix).exists():
                raise home.KeyFileError(
                    f"{name}{suffix} is in this folder already. If it is theirs, let it in: "
                    f"reenact keys add {name} {name}.key; else move it away."
                )
        secret = home.make_key(Path.cwd(), name)
        public = secret.with_suffix(".key")
        console.print(
            f"  {escape(str(secret))} is theirs: it becomes their ~/.reenact/keys/client."
            f"key_secret, and {folder / 'keys' / 'server.key'} their keys/remote.key"
        )
    home.add_key(folder, name, public)
    console.print(f"  {escape(name)} may connect")


@app.command("revoke")
def revoke(name: Annotated[str, typer.Argument(help="As keys list calls them")]) -> None:
    """Lets somebody in no more, at once."""
    home.revoke_key(home.home(), name)
    console.print(f"  {escape(name)} may no longer connect")
