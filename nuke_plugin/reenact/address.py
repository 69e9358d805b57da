"""Where the server is, and the keys with which it is reached.

HOME/server.json               where the server of this home listens, and on which machine
HOME/keys/client.key_secret    this user's keys
HOME/keys/remote.key           the public key of the server that REENACT_SERVER or a node names
"""

import ipaddress
import json
import os
import re
import socket
from pathlib import Path
from threading import Thread
from typing import Any, Dict, List, Optional, Tuple

from reenact.errors import ServerError

RESOLVE_SECONDS = 2.0  # for which the name of a machine is looked up
_KEY = re.compile(rb"[0-9A-Za-z.:+=^!/*?&<>()\[\]{}@%$#-]{40}")  # Z85 of 32 bytes
_EVERYWHERE = ("0.0.0.0", "::", "*")  # what a server listens at that listens at all addresses


def home() -> Path:
    """Returns the folder with keys and server address: REENACT_HOME, else ~/.reenact; absolute.

    Raises:
        ServerError: `no_home`, there is no such folder, or its name is not UTF-8.
    """
    try:
        chosen = os.environ.get("REENACT_HOME")
        path = Path(chosen).expanduser() if chosen else Path.home() / ".reenact"
        path = Path(os.path.abspath(path))
        str(path).encode("utf-8")
    except UnicodeEncodeError:
        raise ServerError(
            "no_home",
            f"The name of the folder {str(path)!a} is not UTF-8. Set REENACT_HOME to another.",
        ) from None
    except (OSError, RuntimeError):  # the current folder is gone; the system knows no home
        raise ServerError(
            "no_home", "There is no home folder. Set REENACT_HOME to the whole path of a folder."
        ) from None
    return path


# -- addresses


def parse_address(text: str, least_port: int = 1) -> Tuple[str, int]:
    """Returns the host and the port of a server's address, `HOST:PORT` or `tcp://HOST:PORT`.

    Args:
        text: as a person writes it; an IPv6 address stands in brackets.
        least_port: 0 where a server may choose a free one.

    Raises:
        ServerError: `bad_address`, it is none; the port is missing or no number to 65535.
    """
    whole = text.strip().rstrip("/")
    scheme, separator, place = whole.rpartition("://")
    if separator and scheme.lower() != "tcp":
        raise _bad_address(text, f"it begins with {scheme}://")
    host, colon, port = place.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host or place.startswith("["):
        raise _bad_address(text, "an IPv6 address stands in brackets, and the port after it")
    if not colon or not port:
        raise _bad_address(text, "it has no port")
    if not host or (host == "*" and least_port) or re.search(r"[\s/?#@;,\[\]\"'\\]", host):
        raise _bad_address(text, "it names no machine")
    if not re.fullmatch(r"[0-9]{1,5}", port) or not least_port <= int(port) <= 65535:
        raise _bad_address(text, f"a port is a number from {least_port} to 65535")
    return host, int(port)


def _bad_address(text: str, why: str) -> ServerError:
    return ServerError(
        "bad_address",
        f'"{text}" is no address of a server: {why}. Write HOST:PORT, such as render7:7411.',
    )


def endpoint_of(host: str, port: int) -> str:
    """Returns ZeroMQ's endpoint of a host and a port."""
    return f"tcp://[{host}]:{port}" if ":" in host else f"tcp://{host}:{port}"


def resolve(host: str, port: int) -> Tuple[str, bool]:
    """Returns the endpoint of a machine by its number, and whether that is of IPv6.

    ZeroMQ would look the name up itself, but without a word and without a limit of time. A machine
    with addresses of both kinds is reached by IPv4.

    Raises:
        ServerError: `bad_address`, no machine of this name is known.
    """
    found: List[Any] = []

    def look_up() -> None:
        try:
            found.append(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
        except (OSError, UnicodeError):
            found.append([])

    try:
        ipaddress.ip_address(host)
        look_up()
    except ValueError:
        thread = Thread(target=look_up, daemon=True, name="reenact resolve")
        thread.start()
        thread.join(RESOLVE_SECONDS)
    known = [place for family, _, _, _, place in (found[0] if found else []) if place]
    if not known:
        raise ServerError(
            "bad_address",
            f"No machine called {host} is known here. Check the name in the server's address.",
        )
    known.sort(key=lambda place: ":" in place[0])
    number = known[0][0]
    return endpoint_of(number, port), ":" in number


# -- the server of this home


def machine() -> Dict[str, str]:
    """Returns what tells this machine from others: its name, and an identity beside the name.

    Containers and network namespaces, whose 127.0.0.1 is another, count as machines.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        identity = f"{boot} {os.readlink('/proc/self/ns/net')}"
    except OSError:  # not Linux: the name alone
        identity = ""
    return {"host": socket.gethostname(), "machine": identity}


def _server_file() -> Optional[Dict[str, Any]]:
    """Returns what server.json says, None where it is absent or damaged."""
    try:
        path = home() / "server.json"
        if not path.is_file():  # a pipe would be waited for
            return None
        facts = json.loads(path.read_text(encoding="utf-8"))
        parse_address(facts["endpoint"])
        return dict(facts) if _is_key(facts["key"].encode()) else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    except ServerError as error:
        if error.code == "bad_address":
            return None
        raise


def _is_here(facts: Dict[str, Any]) -> bool:
    """Whether the server of a server.json runs on this machine; a version before does not say."""
    return "machine" not in facts or {k: facts.get(k) for k in ("host", "machine")} == machine()


def _is_local(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def find_server() -> Tuple[str, str]:
    """Returns the endpoint and public key of the server; both are empty if none is known.

    REENACT_SERVER (`host:port`, with the key `keys/remote.key`) takes precedence over the
    server that runs for `home()`.

    Raises:
        ServerError: `bad_address`, REENACT_SERVER is none; `no_key`, the remote server's key is
            missing or damaged; `no_home`.
    """
    named = server_at(os.environ.get("REENACT_SERVER", ""))
    if named is not None:
        return named
    facts = _server_file()
    if facts is None:
        return "", ""
    host, port = parse_address(facts["endpoint"])
    here = _is_here(facts)
    if host in _EVERYWHERE:
        host = ("::1" if ":" in host else "127.0.0.1") if here else str(facts["host"])
    elif not here and _is_local(host):
        return "", ""
    return endpoint_of(host, port), str(facts["key"])


def server_elsewhere() -> str:
    """Returns why this home's server can't be reached from here, if it runs on another machine.

    Returns:
        A sentence; empty where no server runs, or one that may be reached.
    """
    facts = _server_file()
    if facts is None or _is_here(facts) or not _is_local(parse_address(facts["endpoint"])[0]):
        return ""
    host, here = str(facts.get("host")), machine()
    booted = [str(one.get("machine")).partition(" ")[0] for one in (facts, here)]
    where = "in another container or network of this machine"
    if host != here["host"]:
        where = f"on the machine {host}"
    elif booted[0] != booted[1]:  # the power was cut: nobody removed the file
        return (
            f"The server of {home()} ran before this machine was started again, or runs on another "
            f"one that is called {host}, too. Start it: reenact serve. If that fails, set "
            "REENACT_HOME to another folder here."
        )
    return (
        f"The server of {home()} runs {where} (process {facts.get('pid')}) and listens to that "
        "machine alone. Set REENACT_HOME to another folder here; or stop it there, and start it "
        "with --bind."
    )


def server_at(name: str) -> Optional[Tuple[str, str]]:
    """Returns the endpoint and public key of a server that is named by `host:port`.

    Returns:
        None for an empty name, which means what `find_server` returns.

    Raises:
        ServerError: `bad_address`, the name is none; `no_key`, the remote server's key is missing
            or damaged.
    """
    if not name.strip():
        return None
    endpoint = endpoint_of(*parse_address(name))
    return endpoint, load_key(home() / "keys" / "remote.key")[0].decode()


# -- keys

_MENDING = {
    "client.key_secret": "Delete it: the next reenact command makes a new one, which whoever runs "
    "a server elsewhere has to add again.",
    "server.key_secret": "Delete it: the next start of the server makes a new one, of which "
    "clients on other machines need the new server.key.",
    "remote.key": "Copy the server's keys/server.key there again.",
}


def load_key(path: Path) -> Tuple[bytes, bytes]:
    """Returns the public key in a file, and the secret one of a .key_secret, else b"".

    Raises:
        ServerError: `no_key`, the file is missing, may not be read, or holds no whole key.
    """
    try:
        from reenact.pyzmq import zmq  # imported late: Nuke's renders don't need it
    except ImportError as error:
        raise ServerError("no_pyzmq", str(error)) from error
    mend = _MENDING.get(path.name, "Copy it again.")
    try:
        if path.exists() and not path.is_file():  # a pipe would be waited for
            raise ValueError
        public, secret = zmq.auth.load_certificate(path)
    except PermissionError:
        raise ServerError(
            "no_key", f"The key {path} may not be read: it belongs to another user. Take it over."
        ) from None
    except (OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # the file itself may be whole
            raise ServerError(
                "no_key", f"The key {path} can't be read: {error.strerror}. Try again."
            ) from None
        if path.exists():
            raise ServerError("no_key", f"The file {path} holds no key. {mend}") from None
        raise ServerError(
            "no_key",
            f"There is no key {path}. Whoever runs the server can make one: reenact keys add.",
        ) from None
    whole = _is_key(public)
    if whole and path.suffix == ".key_secret":
        try:
            whole = secret is not None and zmq.curve_public(secret) == public
        except (zmq.ZMQError, ValueError):
            whole = False
    if not whole:
        raise ServerError("no_key", f"The key in {path} is damaged. {mend}")
    return public, secret or b""


def _is_key(key: bytes) -> bool:
    return _KEY.fullmatch(key) is not None
