"""The `reenact` command line."""

from __future__ import annotations

import errno
import io
import json
import sys
from typing import NoReturn

import typer
from rich.console import Console
from rich.markup import escape
from typer.exceptions import TyperException

from core.base.errors import ReenactError
from server.cli import (
    demo,
    directions,
    edit,
    inspect,
    jobs,
    keys,
    models,
    personalize,
    qc,
    render,
    repair,
    serve,
    solve,
    store,
    style,
    track,
)
from server.jobs.common import BadOptionError

app = typer.Typer(
    help="Facial reenactment through a personalized generator.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(models.app, name="models")
app.add_typer(keys.app, name="keys")
app.add_typer(store.app, name="store")
app.command("job")(jobs.control_job)
for command in (
    personalize.personalize,
    solve.solve,
    render.render,
    inspect.inspect,
    directions.directions,
    edit.edit,
    repair.repair,
    qc.qc,
    style.style,
    demo.demo,
    serve.serve,
    jobs.status,
    jobs.logs,
    track.track,
):
    app.command()(command)


def main() -> None:
    """Runs the command line; an error meant for the user is a sentence, not a traceback."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # names of files need not be Unicode
            stream.reconfigure(errors="backslashreplace")
    try:
        if "--json" in sys.argv:  # not even what is wrong with an option is shown as a panel
            sys.exit(app(standalone_mode=False) or 0)
        app()
    except TyperException as error:
        _fail(error.format_message(), error.exit_code)
    except typer.Abort:
        sys.exit(130)
    except ReenactError as error:
        _fail(str(error), 2 if isinstance(error, BadOptionError) else 1)
    except OSError as error:
        if error.filename is None:
            raise
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            _fail(f"{error.filename}: {error.strerror}.")
        _fail(f"No space left for {error.filename}. Free some and run the same command again.")
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and "memory" not in str(error):
            raise
        _fail("Too little memory. Run the same command again with a smaller --batch.")


def _fail(message: str, code: int = 1) -> NoReturn:
    if "--json" in sys.argv:
        print(json.dumps({"error": message}), flush=True)
    stderr = Console(stderr=True, highlight=False, soft_wrap=True)
    stderr.print(f"[red]reenact:[/red] {escape(message)}")
    sys.exit(code)


if __name__ == "__main__":
    main()
