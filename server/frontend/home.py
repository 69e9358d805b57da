"""The server's folder: who may connect, and where the server listens.

    HOME/keys/server.key, server.key_secret     the server's CURVE keys
    HOME/keys/client.key, client.key_secret     this user's keys
    HOME/keys/clients/NAME.key                  the public keys that may connect
    HOME/keys/lock                              held while keys are made
    HOME/server.json                            where the running server listens
    HOME/server.lock                            held by the running server

HOME is ~/.reenact, or what REENACT_HOME says. Secret files are readable by their owner alone.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import tempfile
import time
from pathlib import Path

import reenact
import zmq.auth
from reenact.address import home as home  # one place says where it is
from reenact.address import load_key, machine
from reenact.errors import ServerError

from core.base.errors import ReenactError
from core.base.files import atomic_write
from server.locks import exclusive_lock

KEYS_SECONDS = 20.0  # for which a command waits for another one to make keys
ALLOW_LIST_SECONDS = 1.0  # for which the names of keys are remembered


class KeyFileError(ReenactError):
    """A key file is missing, holds no key, or exists already."""


def make_keys(folder: Path) -> None:
    """Makes the server's and this user's keys where there are none, and allows the latter in.

    Commands that begin at the same time make one pair of each.

    Raises:
        LockHeldError: another command has been making them for long.
        OSError: the folder can't be written to.
    """
    keys = folder / "keys"
    secrets = {name: keys / f"{name}.key_secret" for name in ("server", "client")}
    if all(secret.exists() for secret in secrets.values()):
        return
    (keys / "clients").mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(PermissionError):  # root made the folder for its owner
        os.chmod(keys, 0o700)
    busy = f"Another command is making keys in {keys}. Run the same command again."
    with exclusive_lock(keys / "lock", busy, KEYS_SECONDS):
        for name, secret in secrets.items():
            if not secret.exists():
                _make_pair(keys, name, keys / "clients" / "owner.key" if name == "client" else None)


def make_key(folder: Path, name: str) -> Path:
    """Makes a pair of keys, NAME.key and NAME.key_secret (0600).

    Returns:
        The path of the secret one.

    Raises:
        KeyFileError: one of the files exists.
    """
    secret = folder / f"{name}.key_secret"
    for path in (secret, secret.with_suffix(".key")):
        if path.exists():
            raise KeyFileError(f"There is a file {path} already. Go to another folder.")
    _make_pair(folder, name)
    return secret


def _make_pair(folder: Path, name: str, also: Path | None = None) -> None:
    """Makes NAME.key and NAME.key_secret, the secret one last: where it is, all is there.

    Args:
        folder: of the files.
        name: of the pair.
        also: a further path for the public key.
    """
    before = os.umask(0o077)
    try:
        with tempfile.TemporaryDirectory(prefix=".new", dir=folder) as new:
            public, secret = zmq.auth.create_certificates(new, name)
            for path in filter(None, (also, folder / f"{name}.key")):
                with atomic_write(path) as temporary:
                    shutil.copyfile(public, temporary)
            with atomic_write(folder / f"{name}.key_secret") as temporary:
                shutil.copyfile(secret, temporary)
    finally:
        os.umask(before)


def server_keys(folder: Path) -> tuple[bytes, bytes]:
    """Returns the server's public and secret key; server.key follows the secret file.

    Raises:
        KeyFileError: the file is damaged, or may not be read.
    """
    public = folder / "keys" / "server.key"
    try:
        keys = load_key(public.with_suffix(".key_secret"))
    except ServerError as error:
        raise KeyFileError(str(error)) from None
    try:
        fits = load_key(public)[0] == keys[0]
    except ServerError:
        fits = False
    if not fits:  # what clients elsewhere would copy
        with contextlib.suppress(OSError):
            _write_public(public, public.with_suffix(".key_secret").read_text(encoding="utf-8"))
    return keys


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
        load_key(public)
        text = public.read_text(encoding="utf-8")
    except (ServerError, OSError, ValueError):
        raise KeyFileError(
            f"{public} holds no public key. Give the file NAME.key of whoever is to connect."
        ) from None
    _write_public(target, text)


def _write_public(path: Path, text: str) -> None:
    """Writes a certificate without its secret key."""
    lines = [line for line in text.splitlines() if "secret-key" not in line]
    with atomic_write(path) as temporary:
        temporary.write_text("\n".join(lines) + "\n")


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
            found[load_key(path)[0].decode()] = path.stem
        except ServerError:
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
        self._changed = 0  # when the folder had changed last, as it was read

    def callback(self, domain: str, key: bytes) -> bool:
        """Returns whether the holder of a key may connect.

        ZAP: pyzmq's authenticator calls this from its own thread, for every connection.
        """
        return key.decode() in allowed(self._folder)

    def name(self, key: str) -> str | None:
        """Returns a key's name, None if it is no longer allowed."""
        if time.monotonic() - self._read > ALLOW_LIST_SECONDS or (
            key not in self._names and self._folder_changed() != self._changed
        ):
            self._changed = self._folder_changed()
            self._names, self._read = allowed(self._folder), time.monotonic()
        return self._names.get(key)

    def _folder_changed(self) -> int:
        """Returns when a key was added or revoked last, in nanoseconds."""
        try:
            return (self._folder / "keys" / "clients").stat().st_mtime_ns
        except OSError:
            return 0


def write_server_file(folder: Path, endpoint: str, public_key: str) -> None:
    """Writes server.json, by which clients find the server, unless it says so already."""
    facts = {
        "endpoint": endpoint,
        "pid": os.getpid(),
        **machine(),
        "key": public_key,
        "version": reenact.__version__,
    }
    path, text = folder / "server.json", json.dumps(facts)
    if not path.is_file() or path.read_bytes() != text.encode():
        with atomic_write(path) as temporary:
            temporary.write_text(text)


def remove_server_file(folder: Path) -> None:
    """Removes server.json, where it exists."""
    (folder / "server.json").unlink(missing_ok=True)
