"""The server's folder: who may connect, and where the server listens.

    HOME/keys/server.key, server.key_secret     the server's CURVE keys
    HOME/keys/client.key, client.key_secret     this user's keys
    HOME/keys/clients/NAME.key                  the public keys that may connect
    HOME/server.json                            where the running server listens
    HOME/server.lock                            held by the running server

HOME is ~/.reenact, or what REENACT_HOME says. Secret files are readable by their owner alone.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from pathlib import Path

import reenact
import zmq.auth
from reenact.client import home as home  # one place says where it is

from core.base.errors import ReenactError
from core.base.files import atomic_write

ALLOW_LIST_SECONDS = 1.0  # for which the names of keys are remembered


class KeyFileError(ReenactError):
    """A key file is missing, holds no key, or exists already."""


def make_keys(folder: Path) -> None:
    """Makes the server's and this user's keys where there are none, and allows the latter in."""
    keys = folder / "keys"
    (keys / "clients").mkdir(parents=True, exist_ok=True)
    os.chmod(keys, 0o700)
    for name in ("server", "client"):
        if not (keys / f"{name}.key_secret").exists():
            make_key(keys, name)
            if name == "client":
                shutil.copyfile(keys / "client.key", keys / "clients" / "owner.key")


def make_key(folder: Path, name: str) -> Path:
    """Makes a pair of keys, NAME.key and NAME.key_secret (0600).

    Returns:
        The path of the secret one.
    """
    before = os.umask(0o077)
    try:
        _, secret = zmq.auth.create_certificates(folder, name)
    finally:
        os.umask(before)
    return Path(secret)


def add_key(folder: Path, name: str, public: Path) -> None:
    """Allows the holder of a key to connect.

    Args:
        folder: the server's.
        name: by which the holder is known.
        public: the file of the public key.

    Raises:
        KeyFileError: it holds no public key, or the name is taken.
    """
    target = _key_file(folder, name)
    if target.exists():
        raise KeyFileError(f"There is a key called {name} already. Revoke it first: keys revoke.")
    try:
        zmq.auth.load_certificate(public)
    except (OSError, ValueError) as error:
        raise KeyFileError(f"{public} holds no public key: {error}. Give NAME.key.") from None
    target.parent.mkdir(parents=True, exist_ok=True)
    text = [line for line in public.read_text().splitlines() if "secret-key" not in line]
    target.write_text("\n".join(text) + "\n")


def revoke_key(folder: Path, name: str) -> None:
    """Locks the holder of a key out, connected or not.

    Raises:
        KeyFileError: there is no key of this name.
    """
    try:
        _key_file(folder, name).unlink()
    except FileNotFoundError:
        raise KeyFileError(f"There is no key called {name}. See: reenact keys list.") from None


def allowed(folder: Path) -> dict[str, str]:
    """Returns the public keys (Z85) that may connect, and their names."""
    found = {}
    for path in sorted((folder / "keys" / "clients").glob("*.key")):
        try:
            found[zmq.auth.load_certificate(path)[0].decode()] = path.stem
        except (OSError, ValueError):
            continue  # half written, or no key
    return found


def _key_file(folder: Path, name: str) -> Path:
    if not re.fullmatch(r"[\w-]{1,64}", name, re.ASCII):
        raise KeyFileError(f"{name} is no name for a key: letters, digits, - and _, 64 at most.")
    return folder / "keys" / "clients" / f"{name}.key"


class AllowList:
    """The keys that may connect, as the folder has them now."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._names: dict[str, str] = {}
        self._read = -1e9  # monotonic seconds

    def callback(self, domain: str, key: bytes) -> bool:
        """Returns whether the holder of a key may connect.

        ZAP: pyzmq's authenticator calls this from its own thread, for every connection.
        """
        return key.decode() in allowed(self._folder)

    def name(self, key: str) -> str | None:
        """Returns a key's name, None if it is no longer allowed."""
        if time.monotonic() - self._read > ALLOW_LIST_SECONDS:
            self._names, self._read = allowed(self._folder), time.monotonic()
        return self._names.get(key)


def write_server_file(folder: Path, endpoint: str, public_key: str) -> None:
    """Writes server.json, by which clients find the server."""
    with atomic_write(folder / "server.json") as temporary:
        facts = {
            "endpoint": endpoint,
            "pid": os.getpid(),
            "key": public_key,
            "version": reenact.__version__,
        }
        temporary.write_text(json.dumps(facts))


def remove_server_file(folder: Path) -> None:
    """Removes server.json, where it exists."""
    (folder / "server.json").unlink(missing_ok=True)
