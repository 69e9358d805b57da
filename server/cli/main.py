"""The `reenact` command line."""

from __future__ import annotations

import errno
import io
import json
import os
import sys
from pathlib import Path
from typing import NoReturn

import typer
from reenact.errors import ServerError
from reenact.launcher import ANOTHER_RUNS
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
from server.cli.reporting import Terminal
from server.frontend import home
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
    _mend_streams()
    try:
        if "--json" in sys.argv:  # not even what is wrong with an option is shown as a panel
            sys.exit(app(standalone_mode=False) or 0)
        app()
    except TyperException as error:
        _fail(error.format_message(), error.exit_code)
    except typer.Abort:
        sys.exit(130)
    except ServerError as error:
        _fail(str(error))
    except ReenactError as error:
        codes = {BadOptionError: 2, serve.ServerRunsError: ANOTHER_RUNS}
        _fail(str(error), next((codes[kind] for kind in codes if isinstance(error, kind)), 1))
    except BrokenPipeError:  # whoever read the output has gone
        _drop_output()
        sys.exit(1)
    except OSError as error:
        if error.filename is None:
            _drop_output()
        _fail(_sentence(error))
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and "memory" not in str(error):
            raise
        if sys.argv[1:2] == ["models"]:  # these have no --batch
            _fail("Too little memory. Close other programs, or use a machine that has more.")
        _fail("Too little memory. Run the same command again with a smaller --batch.")


def _mend_streams() -> None:
    """Opens standard streams that the caller has closed, and lets them print any file's name."""
    for descriptor, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(descriptor)
        except OSError:  # else the next file would take the number, and receive what is printed
            os.open(os.devnull, os.O_RDWR)
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "r+", encoding="utf-8"))  # noqa: SIM115
        elif name != "stdin" and isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _drop_output() -> None:
    """Throws away what can't be printed; else Python would complain about it as it ends."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _sentence(error: OSError) -> str:
    """Returns an error of the system in words, with what to do."""
    where = "a file" if error.filename is None else os.fsdecode(str(error.filename))
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return f"No space left for {where}. Free some and run the same command again."
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return "Too many files are open. Close programs, or raise the limit: ulimit -n 4096."
    said = f"{error.strerror or error}."
    if error.filename is None:
        return said
    try:
        inside = Path(where).absolute().is_relative_to(home.home())
    except ServerError:
        inside = False
    if error.errno in (errno.EEXIST, errno.ENOTDIR):
        said = "A file is where a folder belongs."
    elif error.errno == errno.EISDIR:
        said = "A folder is where a file belongs."
    advice = " Mend that, or set REENACT_HOME to another folder." if inside else ""
    return f"{where}: {said}{advice}"


def _fail(message: str, code: int = 1) -> NoReturn:
    if "--json" in sys.argv:
        print(json.dumps({"error": message}), flush=True)
    stderr = Terminal(stderr=True, highlight=False, soft_wrap=True)
    stderr.print(f"[red]reenact:[/red] {escape(message)}")
    sys.exit(code)


if __name__ == "__main__":
    main()
