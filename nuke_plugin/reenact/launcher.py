"""Starts the server on this machine."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Sequence

from reenact import protocol
from reenact.address import find_server, home, server_elsewhere
from reenact.client import Client
from reenact.errors import NodeError, NoServerError, ServerError

START_SECONDS = 60.0  # how long a server may take to start
ANSWER_SECONDS = 2.0
FULL = 1 << 14  # bytes; a disk with less free takes no log

CREATE_NO_WINDOW, CREATE_NEW_PROCESS_GROUP = 0x08000000, 0x200  # Windows' process creation flags

# Variables of Nuke's own libraries and Qt, which would break the server's; and all of Python's.
NUKE_VARIABLES = (
    "LD_LIBRARY_PATH",
    "DYLD_LIBRARY_PATH",
    "DYLD_FRAMEWORK_PATH",
    "QT_PLUGIN_PATH",
    "QT_QPA_PLATFORM_PLUGIN_PATH",
)
ANOTHER_RUNS = 3  # exit code of a server that ends because another one of this machine runs

# How a program is started that outlives Nuke; on Windows no console window appears.
DETACHED: Dict[str, Any] = (
    {"creationflags": CREATE_NO_WINDOW | CREATE_NEW_PROCESS_GROUP}
    if os.name == "nt"
    else {"start_new_session": True}
)


def own_environment() -> Dict[str, str]:
    """Returns the environment for programs that are not Nuke's."""
    return {
        name: value
        for name, value in os.environ.items()
        if name not in NUKE_VARIABLES and not name.startswith(("PYTHON", "__PYVENV"))
    }


def server_command() -> List[str]:
    """Returns the command that starts a server: from the environment beside the plugin, else PATH.

    The former is isolated (-I): no file of the current folder is taken for a module.

    Raises:
        ServerError: `no_command`.
    """
    environment = Path(__file__).resolve().parents[2] / ".venv"
    for python, script in (
        ("bin/python", "bin/reenact"),
        ("Scripts/python.exe", "Scripts/reenact.exe"),
    ):
        if (environment / script).exists():
            return [str(environment / python), "-I", str(environment / script), "serve"]
    found = shutil.which("reenact")
    if found is None:
        raise ServerError(
            "no_command",
            "Reenact's server is not installed on this machine. Run install.py, or set "
            "REENACT_SERVER to the machine where it runs.",
        )
    return [found, "serve"]


def server_log() -> Path:
    """Returns the file that the server's output goes to."""
    return home() / "store" / "logs" / "server.log"


def start_server(client: Client) -> None:
    """Starts the server unless one answers, and waits until it answers.

    Raises:
        ServerError: `no_command`, `no_start`.
    """
    if answers(client):
        return
    elsewhere = client.channel.named or os.environ.get("REENACT_SERVER")
    if elsewhere:
        whose = "the node's knob server" if client.channel.named else "REENACT_SERVER"
        raise ServerError(
            "no_start",
            f"The server at {elsewhere} ({whose}) does not answer. Start it there.",
        )
    launch(client, server_command(), own_environment())


def launch(
    client: Client, command: Sequence[str], environment: Optional[Mapping[str, str]] = None
) -> None:
    """Starts a server, and waits until it answers, or one that another process started meanwhile.

    Args:
        client: asks it.
        command: the server's; it outlives this process.
        environment: its variables; by default those of this process.

    Raises:
        ServerError: `no_start`; the message is the server's own, where it said why.
    """
    log = server_log()
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as output:
            begin = output.tell()
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=environment,
                **DETACHED,
            )
    except OSError as error:
        where, why = error.filename or command[0], error.strerror or error
        raise ServerError(
            "no_start",
            f"The server does not start: {where}: {why}. Mend that, or set REENACT_HOME to another "
            "folder.",
        ) from None
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until:
        if answers(client):
            return
        code = process.poll()
        if code is not None and (code != ANOTHER_RUNS or server_elsewhere()):
            break
        time.sleep(0.1)
    raise ServerError("no_start", f"The server does not start. {_last_words(log, begin)}")


def _last_words(log: Path, begin: int) -> str:
    """Returns why a server ended, as far as its log says it, and where that is.

    Args:
        log: the file.
        begin: bytes in it that were there before the server.
    """
    try:
        with log.open("rb") as file:
            file.seek(begin)
            lines = file.read().decode("utf-8", "replace").splitlines()
    except OSError:
        lines = []
    said = [line for line in lines if line.startswith("reenact: ")]
    if said:
        return said[-1][len("reenact: ") :]
    if not lines and shutil.disk_usage(log.parent).free < FULL:
        return f"No space left for {log}. Free some."
    spoken = [line for line in lines if line.strip() and not line.startswith("{")]
    last = f"{spoken[-1].strip():.300} " if spoken else ""
    return f"{last}Its log is {log}."


def open_path(path: Path) -> None:
    """Has the desktop open a file or a folder, with an environment that is not Nuke's.

    Raises:
        NodeError: it does not exist, which a desktop does not say.
        OSError: this machine has nothing to open it with.
    """
    if not path.exists():
        raise NodeError(f"There is no {path}.")
    if os.name == "nt":
        os.startfile(path)  # type: ignore[attr-defined]
        return
    opener = "open" if sys.platform == "darwin" else "xdg-open"
    nothing = subprocess.DEVNULL
    subprocess.Popen(
        [opener, str(path.resolve())],
        stdin=nothing,
        stdout=nothing,
        stderr=nothing,
        env=own_environment(),
        **DETACHED,
    )


def answers(client: Client) -> bool:
    """Returns whether a server answers.

    Raises:
        ServerError: it answers, but refuses this client.
    """
    if not find_server()[0]:
        return False
    try:
        client.ask(protocol.Hello(client.name, [protocol.VERSION]), ANSWER_SECONDS)
    except NoServerError:
        return False
    return True
