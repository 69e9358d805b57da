"""The server's folder: who may connect, where the server listens, and that there is only one.

    HOME/keys/server.key, server.key_secret     the server's CURVE keys
    HOME/keys/client.key, client.key_secret     this user's
    HOME/keys/clients/NAME.key                  the public keys that may connect
    HOME/server.json                            where the running server listens

HOME is ~/.reenact, or what REENACT_HOME says. Secret files are readable by their owner alone.
"""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import zmq.auth
from reenact.client import home as home  # one place says where it is

from core.base.errors import ReenactError
from server.installer import try_lock


class KeyTrouble(ReenactError):
    """A key that is not there, not one, or there already."""


class ServerRuns(ReenactError):
    """A server holds this folder already."""


def make_keys(folder: Path) -> None:
    """Makes the server's and this user's keys, where there are none, and allows the latter in."""
    keys = folder / "keys"
    (keys / "clients").mkdir(parents=True, exist_ok=True)
    os.chmod(keys, 0o700)
    for name in ("server", "client"):
        if not (keys / f"{name}.key_secret").exists():
            make_key(keys, name)
            if name == "client":
                shutil.copyfile(keys / "client.key", keys / "clients" / "owner.key")


def make_key(folder: Path, name: str) -> Path:
    """Makes a pair of keys, NAME.key and NAME.key_secret (0600); returns the secret one's path."""
    before = os.umask(0o077)
    try:
        _, secret = zmq.auth.create_certificates(folder, name)
    finally:
        os.umask(before)
    return Path(secret)


def add_key(folder: Path, name: str, public: Path) -> None:
    """Lets the holder of a key in.

    Raises:
        KeyTrouble: it is no public key, or the name is taken.
    """
    target = _key(folder, name)
    if target.exists():
        raise KeyTrouble(f"There is a key called {name} already. Revoke it first: keys revoke.")
    try:
        zmq.auth.load_certificate(public)
    except (OSError, ValueError) as error:
        raise KeyTrouble(f"{public} holds no public key: {error}. Give NAME.key.") from None
    target.parent.mkdir(parents=True, exist_ok=True)
    text = [line for line in public.read_text().splitlines() if "secret-key" not in line]
    target.write_text("\n".join(text) + "\n")


def revoke_key(folder: Path, name: str) -> None:
    """Lets the holder of a key in no more, connected or not.

    Raises:
        KeyTrouble: there is none of that name.
    """
    try:
        _key(folder, name).unlink()
    except FileNotFoundError:
        raise KeyTrouble(f"There is no key called {name}. See: reenact keys list.") from None


def allowed(folder: Path) -> dict[str, str]:
    """Public keys (Z85) that may connect, and their names."""
    found = {}
    for path in sorted((folder / "keys" / "clients").glob("*.key")):
        try:
            found[zmq.auth.load_certificate(path)[0].decode()] = path.stem
        except (OSError, ValueError):
            continue  # half written, or no key
    return found


def _key(folder: Path, name: str) -> Path:
    if not re.fullmatch(r"[\w-]{1,64}", name, re.ASCII):
        raise KeyTrouble(f"{name} is no name for a key: letters, digits, - and _, 64 at most.")
    return folder / "keys" / "clients" / f"{name}.key"


@contextmanager
def only_one(path: Path, said: str, patience: float = 0) -> Iterator[None]:
    """Holds a lock file; the system frees it however the process ends.

    Args:
        path: made if it is not there.
        said: the sentence to raise.
        patience: seconds to wait for it.

    Raises:
        ServerRuns: another process holds it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        end = time.monotonic() + patience
        while not try_lock(descriptor):
            if time.monotonic() >= end:
                raise ServerRuns(said)
            time.sleep(0.1)
        yield
    finally:
        os.close(descriptor)
