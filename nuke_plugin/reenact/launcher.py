"""Starts the server on this machine."""

import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import List

from reenact import protocol
from reenact.channel import find_server, home
from reenact.client import Client
from reenact.errors import NoServerError, ServerError

START_SECONDS = 60.0  # how long a server may take to start
ANSWER_SECONDS = 2.0

# Variables of Nuke's own Python and Qt, which would break the server's.
NUKE_VARIABLES = ("PYTHONHOME", "PYTHONPATH", "LD_LIBRARY_PATH", "QT_PLUGIN_PATH")


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
    log = server_log()
    if _answers(client):
        return
    if "REENACT_SERVER" in os.environ:
        raise ServerError(
            "no_start",
            f"The server at {os.environ['REENACT_SERVER']} (REENACT_SERVER) does not answer. "
            "Start it there.",
        )
    log.parent.mkdir(parents=True, exist_ok=True)
    environment = {k: v for k, v in os.environ.items() if k not in NUKE_VARIABLES}
    with log.open("ab") as output:
        process = subprocess.Popen(
            server_command(),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            env=environment,
        )
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until:
        if _answers(client):
            return
        if process.poll() is not None and not find_server()[0]:
            break
        time.sleep(0.2)
    raise ServerError("no_start", f"The server does not start. Its log: {log}")


def _answers(client: Client) -> bool:
    if not find_server()[0]:
        return False
    try:
        client.ask(protocol.Hello("nuke", [protocol.VERSION]), ANSWER_SECONDS)
    except NoServerError:
        return False
    return True
