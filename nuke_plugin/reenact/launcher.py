"""Starts the server on this machine."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Sequence

from reenact import protocol
from reenact.channel import find_server, home
from reenact.client import Client
from reenact.errors import NoServerError, ServerError

START_SECONDS = 60.0  # how long a server may take to start
ANSWER_SECONDS = 2.0

CREATE_NO_WINDOW, CREATE_NEW_PROCESS_GROUP = 0x08000000, 0x200  # Windows' process creation flags

# Variables of Nuke's own Python and Qt, which would break the server's.
NUKE_VARIABLES = ("PYTHONHOME", "PYTHONPATH", "LD_LIBRARY_PATH", "QT_PLUGIN_PATH")


# How a program is started that outlives Nuke; on Windows no console window appears.
DETACHED: Dict[str, Any] = (
    {"creationflags": CREATE_NO_WINDOW | CREATE_NEW_PROCESS_GROUP}
    if os.name == "nt"
    else {"start_new_session": True}
)


def own_environment() -> Dict[str, str]:
    """Returns the environment for programs that are not Nuke's."""
    return {k: v for k, v in os.environ.items() if k not in NUKE_VARIABLES}


def server_command() -> List[str]:
    """Returns the command that starts a server: from the environment beside the plugin, else PATH.

    Raises:
        ServerError: `no_command`.
    """
    environment = Path(__file__).resolve().parents[2] / ".venv"
    for script in ("bin/reenact", "Scripts/reenact.exe"):
        if (environment / script).exists():
            return [str(environment / script), "serve"]
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
    if not launch(client, server_command(), own_environment()):
        raise ServerError("no_start", f"The server does not start. Its log: {server_log()}")


def launch(
    client: Client, command: Sequence[str], environment: Optional[Mapping[str, str]] = None
) -> bool:
    """Starts a server, and waits until it answers.

    Args:
        client: asks it.
        command: the server's; it outlives this process.
        environment: its variables; by default those of this process.

    Returns:
        Whether a server answers, this one or one that another process started meanwhile.
    """
    log = server_log()
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=environment,
            **DETACHED,
        )
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until:
        if answers(client):
            return True
        # Another process may have been quicker: then this server ends, and that one answers.
        if process.poll() not in (None, 0) and not find_server()[0]:
            return False
        time.sleep(0.1)
    return False


def open_path(path: Path) -> None:
    """Has the desktop open a file or a folder, with an environment that is not Nuke's."""
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
