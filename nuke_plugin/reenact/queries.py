"""Single questions that a node asks the server: its characters and styles, and to start."""

import traceback
from pathlib import Path
from threading import Thread
from typing import Any, Callable, Dict, List

from reenact import launcher, protocol, thumbnails
from reenact.address import server_at
from reenact.client import Client
from reenact.errors import ServerError
from reenact.protocol import File
from reenact.runs import CONNECT_SECONDS, STEPS, NodeUpdate, Result, unexpected

NO_CHOICE = "on the server..."  # first item of a menu of the server's files


class ServerQuery(Thread):
    """Asks the server one thing for a node.

    Args:
        id: the node's.
        on_update: called from this thread with what `work` returns, or with its error.
        work: makes the query.
        server: `host:port`; empty for the one that is found.
    """

    def __init__(
        self,
        id: str,
        on_update: Callable[[NodeUpdate], None],
        work: Callable[[Client, str], NodeUpdate],
        server: str = "",
    ) -> None:
        super().__init__(daemon=True, name="reenact query")
        self.id, self._on_update, self._work, self._server = id, on_update, work, server

    def run(self) -> None:
        """Makes the query."""
        try:
            with Client("nuke", CONNECT_SECONDS, server_at(self._server)) as client:
                self._on_update(self._work(client, self.id))
        except ServerError as error:
            step = STEPS.get(error.code, "retry")
            self._on_update(NodeUpdate(self.id, "failed", str(error), step))
        except OSError as error:
            self._on_update(NodeUpdate(self.id, "failed", f"{error}.", "retry"))
        except Exception as error:
            traceback.print_exc()
            self._on_update(NodeUpdate(self.id, "failed", unexpected(error)))


def start_server(client: Client, id: str) -> NodeUpdate:
    """Starts the server; raises as `launcher.start_server` does."""
    launcher.start_server(client)
    return NodeUpdate(id, "", "The server is running.")


def list_files(client: Client, id: str, kind: str, character: str = "") -> NodeUpdate:
    """Lists the server's characters or styles for the node's menu.

    Args:
        client: a client of this thread.
        id: the node's.
        kind: `characters` or `styles`.
        character: file of the character whose styles are listed; empty for all.
    """
    found = _files(client, kind, character)
    count = f"{len(found)} {kind if len(found) != 1 else kind[:-1]}"
    text = f"{count} of this character on the server." if character else f"{count} on the server."
    choices = {kind: [NO_CHOICE, *map(_label, found)]}
    return NodeUpdate(id, "", text, result=Result(choices=choices))


def fetch_file(
    client: Client, id: str, kind: str, character: str, label: str, folder: Path
) -> NodeUpdate:
    """Downloads the file that was chosen from that menu.

    Args:
        client: a client of this thread.
        id: the node's.
        kind: `characters` or `styles`.
        character: as for `list_files`.
        label: the menu's item.
        folder: where the file goes.

    Raises:
        ServerError: `not_made`, the server has no such file.
        OSError: the file can't be written.
    """
    for entry in _files(client, kind, character):
        if _label(entry) == label:
            safe = "".join(c if c.isalnum() else "_" for c in entry["name"])
            path = folder / f"{safe}_{entry['hash'][:8]}.{kind[:-1]}"
            client.fetch(File(entry["hash"], entry["size"]), path)
            knobs = {"style": path} if kind == "styles" else thumbnails.character_knobs(path)
            return NodeUpdate(id, "", f"{path.name} is here.", result=Result(knobs))
    raise ServerError("not_made", f"The server has no {label} any more. Ask the server again.")


def _files(client: Client, kind: str, character: str) -> List[Dict[str, Any]]:
    found: List[Dict[str, Any]] = client.hello().get(kind, [])  # older servers list no styles
    if not character:
        return found
    own = protocol.file_hash(character)[0]
    return [entry for entry in found if entry["character"] == own]


def _label(entry: Dict[str, Any]) -> str:
    return f"{entry['name']} ({entry['hash'][:8]})"
