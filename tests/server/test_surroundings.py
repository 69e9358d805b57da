"""What lies around Reenact: folders, variables, addresses, keys, disks, machines and streams."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq
import zmq.auth
from command_line import reenact, reenact_here
from reenact import address, launcher
from reenact.client import Client, Pump, ServerError
from repository import ROOT
from running_server import Server, wait_for

from core.base import compiled
from server import start
from server.cli import remote
from server.cli.reporting import Report
from server.frontend import home

SECONDS = 5  # in which a wrong address is said; the bound
UNUSED = "192.0.2.1:7411"  # TEST-NET-1: nobody answers


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home with keys, and REENACT_HOME naming it."""
    folder = tmp_path / "home"
    monkeypatch.setenv("REENACT_HOME", str(folder))
    home.make_keys(folder)
    return folder


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    """A folder of files with the names of our modules, packages and the standard library's."""
    folder = tmp_path / "foreign"
    for name in ("core", "server", "reenact", "numpy"):
        (folder / name).mkdir(parents=True)
        (folder / name / "__init__.py").write_text("raise SystemExit('FOREIGN')")
    for name in ("zmq", "typing", "json", "re", "pathlib", "types", "typer"):
        (folder / f"{name}.py").write_text("raise SystemExit('FOREIGN')")
    return folder


# -- starts


def test_foreign_modules_are_not_run(
    foreign: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a command, by the server that it starts, and by a worker."""
    monkeypatch.chdir(foreign)
    monkeypatch.setenv("PYTHONPATH", str(foreign))
    monkeypatch.setenv("PYTHONHOME", str(foreign))
    done = reenact("keys", "list", cwd=foreign)
    assert (done.returncode, done.stdout.split()[0]) == (0, "owner"), done.stderr
    with remote.connected(Report(machine=True)) as client:
        client.hello()
    os.kill(json.loads((folder / "server.json").read_text())["pid"], signal.SIGTERM)
    assert "FOREIGN" not in launcher.server_log().read_text()
    worker = subprocess.run(
        start.command("server.worker", str(folder / "store")),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (worker.returncode, worker.stderr) == (0, "")


def test_what_nuke_sets_does_not_reach_the_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("PYTHONPATH", "PYTHONHOME", "PYTHONSTARTUP", "LD_LIBRARY_PATH", "QT_PLUGIN_PATH"):
        monkeypatch.setenv(name, "/nuke")
    assert "/nuke" not in launcher.own_environment().values()
    plugin = tmp_path / "nuke_plugin" / "reenact"
    script = tmp_path / ".venv" / "bin" / "reenact"
    for folder in (plugin, script.parent):
        folder.mkdir(parents=True)
    script.touch()
    monkeypatch.setattr(launcher, "__file__", str(plugin / "launcher.py"))
    python = str(script.parent / "python")
    assert launcher.server_command() == [python, "-I", str(script), "serve"]


def test_numba_compiles_where_it_may_keep_nothing() -> None:
    space: dict[str, object] = {}
    exec(compile("def twice(x):\n    return 2 * x\n", "<nowhere>", "exec"), space)
    twice = compiled.compiled()(space["twice"])  # numba has no place for code without a file
    assert twice(3) == 6


# -- addresses and keys


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("localhost:7411", ("localhost", 7411)),
        (" tcp://render7:7411/ ", ("render7", 7411)),
        ("TCP://10.0.0.1:1", ("10.0.0.1", 1)),
        ("[::1]:7411", ("::1", 7411)),
        ("tcp://[fe80::1%eth0]:65535", ("fe80::1%eth0", 65535)),
    ],
)
def test_addresses_are_completed(text: str, place: tuple[str, int]) -> None:
    assert address.parse_address(text) == place


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("localhost", "no port"),
        ("tcp://localhost", "no port"),
        ("localhost:", "no port"),
        ("tcp://", "no port"),
        ("http://localhost:7411", "begins with http"),
        ("ipc:///tmp/x", "begins with ipc"),
        ("::1", "brackets"),
        ("::1:7411", "brackets"),
        ("[::1", "brackets"),
        ("[::1]", "brackets"),
        (":7411", "no machine"),
        ("*:7411", "no machine"),
        ("my render node:7411", "no machine"),
        ("me@host:7411", "no machine"),
        ("localhost:0", "from 1 to 65535"),
        ("localhost:99999", "from 1 to 65535"),
        ("localhost:-1", "from 1 to 65535"),
        ("localhost:\uff17\uff14", "from 1 to 65535"),
        ("localhost:7411/x", "from 1 to 65535"),
        ("nobody.invalid:7411", "No machine called nobody.invalid"),
        ("b\udce9b:7411", "No machine called"),
        (f"{'x' * 300}:7411", "No machine called"),
    ],
)
def test_wrong_addresses_are_said(
    text: str, why: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To scripts and Nuke's nodes by the same client, and it ends."""
    shutil.copyfile(folder / "keys/server.key", folder / "keys/remote.key")
    monkeypatch.setenv("REENACT_SERVER", text)
    begun = time.monotonic()
    with Client("test") as client, pytest.raises(ServerError, match=why) as raised:
        client.hello()
    assert raised.value.code == "bad_address"
    key = (folder / "keys/server.key").read_text().split('"')[1]
    with Client("test", server=(text, key)) as client, pytest.raises(ServerError, match=why):
        client.hello()
    assert time.monotonic() - begun < SECONDS


@pytest.fixture
def mute() -> Iterator[str]:
    """The address of a program that accepts connections and says nothing."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield f"localhost:{listener.getsockname()[1]}"


def test_whoever_does_not_answer_is_said(mute: str, folder: Path) -> None:
    key = (folder / "keys/server.key").read_text().split('"')[1]
    wrong = zmq.curve_keypair()[0].decode()
    running = Server(folder).start()
    try:
        there = json.loads((folder / "server.json").read_text())["endpoint"]
        for server, why in (
            ((mute, key), "is no Reenact server"),
            ((there, wrong), "another key than"),
            ((there, ""), "key or address is wrong"),
            ((there, "é" * 40), "key or address is wrong"),
            (("127.0.0.1:1", key), "No Reenact server answers"),
            ((UNUSED, key), "answers"),  # by a sandbox's network, perhaps
        ):
            begun = time.monotonic()
            with Client("test", server=server) as client, pytest.raises(ServerError, match=why):
                client.hello()
            assert time.monotonic() - begun < SECONDS
        with Client("test", server=(there.removeprefix("tcp://"), key)) as client:
            client.hello()
    finally:
        running.kill()


@pytest.mark.parametrize(
    "content",
    [b"", b"x", b"\xff" * 90, b'public-key = "short"\n', None],
    ids=["empty", "text", "binary", "short", "halves"],
)
def test_damaged_keys_are_said(
    content: bytes | None, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """None: a pair of halves that don't fit."""
    keys = folder / "keys"
    shutil.copyfile(keys / "server.key", keys / "remote.key")
    for name in ("client.key_secret", "server.key_secret", "remote.key"):
        whole = (keys / name).read_bytes()
        if content is not None:
            (keys / name).write_bytes(content)
        elif name == "remote.key":
            continue
        else:
            other = zmq.curve_keypair()[0]
            mine = zmq.auth.load_certificate(keys / name)[0]
            (keys / name).write_bytes(whole.replace(mine, other))
        if name == "server.key_secret":
            done = reenact_here("serve", cwd=folder)
        else:
            monkeypatch.setenv("REENACT_SERVER", "127.0.0.1:1")
            done = reenact_here("status", cwd=folder)
            monkeypatch.delenv("REENACT_SERVER")
        assert done.returncode == 1
        assert str(keys / name) in done.stderr
        assert "Delete it" in done.stderr or "Copy the server's" in done.stderr
        (keys / name).write_bytes(whole)


# Processes that make the keys of a home at the same moments.
MAKE_KEYS = """
import sys, time
from pathlib import Path
from server.frontend import home
print(flush=True)
start = float(sys.stdin.readline())
for i in range(60):
    while time.time() < start + i / 60:
        pass
    home.make_keys(Path(sys.argv[1], str(i)))
"""


def test_first_commands_at_once_make_keys_that_fit(tmp_path: Path) -> None:
    paths = os.pathsep.join([str(ROOT), str(ROOT / "nuke_plugin")])
    together = [
        subprocess.Popen(
            [sys.executable, "-c", MAKE_KEYS, tmp_path],
            env=os.environ | {"PYTHONPATH": paths},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    for one in together:
        assert one.stdout is not None
        one.stdout.readline()
    start = time.time() + 0.1
    for one in together:
        assert one.stdin is not None
        one.stdin.write(f"{start}\n")
        one.stdin.flush()
    for one in together:
        one.communicate(timeout=60)
    assert [one.returncode for one in together] == [0] * 4
    for i in range(60):
        keys = tmp_path / str(i) / "keys"
        for name in ("server", "client"):
            public, secret = zmq.auth.load_certificate(keys / f"{name}.key_secret")
            assert secret is not None
            assert zmq.curve_public(secret) == public
            assert zmq.auth.load_certificate(keys / f"{name}.key")[0] == public
            assert (keys / f"{name}.key_secret").stat().st_mode & 0o777 == 0o600
        assert list(home.allowed(tmp_path / str(i))) == [public.decode()]


def test_a_damaged_public_key_of_the_server_is_written_again(folder: Path) -> None:
    public = folder / "keys/server.key"
    whole = zmq.auth.load_certificate(public)[0]
    public.write_bytes(b"")
    home.server_keys(folder)
    assert zmq.auth.load_certificate(public) == (whole, None)


def test_a_new_pair_replaces_nobodys_keys(folder: Path) -> None:
    """`keys add client`, in the folder of the keys."""
    keys = folder / "keys"
    before = (keys / "client.key_secret").read_bytes()
    done = reenact_here("keys", "add", "client", cwd=keys)
    assert done.returncode == 1
    assert "already" in done.stderr
    assert (keys / "client.key_secret").read_bytes() == before


# -- where the server listens


@pytest.mark.parametrize(
    ("bind", "code", "why"),
    [
        ("127.0.0.1", 2, "no port"),
        (":7411", 2, "no machine"),
        ("127.0.0.1:99999", 2, "from 0 to 65535"),
        ("http://127.0.0.1:7411", 2, "begins with http"),
        ("nobody.invalid:7411", 2, "No machine called nobody.invalid"),
        (UNUSED, 1, "no address of this machine"),
        ("", 2, "no port"),
    ],
)
def test_where_nobody_can_listen_is_said(bind: str, code: int, why: str, folder: Path) -> None:
    done = reenact_here("serve", "--bind", bind, cwd=folder)
    assert done.returncode == code
    assert why in done.stderr
    assert not (folder / "server.json").exists()


def test_a_port_in_use_is_said(mute: str, folder: Path) -> None:
    done = reenact_here("serve", "--bind", mute, cwd=folder)
    assert done.returncode == 1
    assert "is in use" in done.stderr
    assert "port 0 takes a free one" in done.stderr


def test_servers_listen_by_ipv6_and_everywhere(tmp_path: Path) -> None:
    for bind in ("[::1]:0", "*:0"):
        running = Server(tmp_path / bind[0].strip("["), "--bind", bind)
        if bind[0] == "[" and not socket.has_ipv6:
            continue
        running.start()
        try:
            with running.client() as client:
                client.hello()
        finally:
            running.kill()


# -- one home on two machines


def test_a_server_on_another_machine_is_named_at_once(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = Server(folder).start()
    try:
        there = address.machine()
        monkeypatch.setattr(address, "machine", lambda: {**there, "host": "another"})
        with Client("test") as client, pytest.raises(ServerError) as raised:
            client.hello()
        assert f"runs on the machine {there['host']} (process {running.process.pid})" in str(
            raised.value
        )
    finally:
        running.kill()


def test_a_server_in_another_network_of_this_machine_is_named(folder: Path) -> None:
    """As in containers: its 127.0.0.1 is another."""
    apart = ["unshare", "-n", "sh", "-c", 'ip link set lo up; exec "$@"', "-"]
    if subprocess.run([*apart, "true"], capture_output=True, check=False).returncode:
        pytest.skip("only root may make a network")
    running = Server(folder).start()
    try:
        code = (
            "from server.cli import remote; from server.cli.reporting import Report\n"
            "with remote.connected(Report(machine=True)) as client: client.hello()"
        )
        paths = os.pathsep.join([str(ROOT), str(ROOT / "nuke_plugin")])
        for command in ([sys.executable, "-c", code], start.command("server.cli.main", "serve")):
            done = subprocess.run(
                [*apart, *command],
                env=os.environ | {"PYTHONPATH": paths},
                capture_output=True,
                text=True,
                timeout=30,
                check=False,
            )
            assert done.returncode == 1
            assert "in another container or network of this machine" in done.stderr
        assert running.process is not None
        assert running.process.poll() is None
        with running.client() as client:
            client.hello()
    finally:
        running.kill()


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not tell their starts")
def test_a_server_that_ran_before_a_power_cut_is_started_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its server.json is still there: nobody is sent to look for it in another container."""
    running = Server(folder).start()
    left = (folder / "server.json").read_bytes()
    running.kill()
    (folder / "server.json").write_bytes(left)
    boot, network = address.machine()["machine"].split(" ")
    after = {**address.machine(), "machine": f"{boot[::-1]} {network}"}
    monkeypatch.setattr(address, "machine", lambda: after)
    with Client("nuke") as client:
        with pytest.raises(ServerError, match="before this machine was started again") as raised:
            client.hello()
        assert raised.value.code == "no_server"  # so a node offers to start it
        assert "container" not in str(raised.value)
        monkeypatch.undo()  # the new server is of this boot
        monkeypatch.setenv("REENACT_HOME", str(folder))
        launcher.launch(client, start.command("server.cli.main", "serve", "--idle-exit", "20"))
        client.hello()


def test_a_server_that_listens_everywhere_is_reached_by_its_name(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = (folder / "keys/server.key").read_text().split('"')[1]
    home.write_server_file(folder, "tcp://0.0.0.0:7411", key)
    assert address.find_server() == ("tcp://127.0.0.1:7411", key)
    host = address.machine()["host"]
    monkeypatch.setattr(address, "machine", lambda: {"host": "another", "machine": ""})
    assert address.find_server() == (f"tcp://{host}:7411", key)


# -- folders and disks


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"[]", b"{}", b"null", b"\xff\xfe\x00", b'{"endp', b"[" * 100_000),
        b'{"endpoint": 5, "key": []}',
        b'{"endpoint": "tcp://127.0.0.1:7411", "key": ""}',
    ],
)
def test_a_damaged_server_file_counts_as_none(content: bytes, folder: Path) -> None:
    (folder / "server.json").write_bytes(content)
    assert address.find_server() == ("", "")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes in folders")
def test_pipes_in_the_home_are_not_waited_for(folder: Path) -> None:
    os.mkfifo(folder / "server.json")
    assert address.find_server() == ("", "")
    os.mkfifo(folder / "keys/remote.key")
    with pytest.raises(ServerError, match="holds no key"):
        address.server_at("127.0.0.1:1")


def test_whoever_watches_a_job_is_told_why_nothing_comes(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REENACT_SERVER", "127.0.0.1:9")
    pump, news = Pump("test"), []
    pump.watch("job")
    wait_for(lambda: news.extend(pump.drain()) or news, 10, "the reason")
    pump.close()
    assert [(one["type"], one["up"]) for one in news] == [("connection", False)]
    assert "There is no key" in news[0]["message"]


def test_a_zmq_that_cannot_encrypt_is_told_from_a_damaged_key(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another tool's in the same Nuke, built without CURVE, or older than its events."""

    def refuse(*_: object) -> bytes:
        raise zmq.ZMQError(zmq.ENOTSUP)

    with monkeypatch.context() as patched:
        patched.setattr(zmq, "has", lambda what: what != "curve")
        patched.setattr(zmq, "curve_public", refuse)
        with pytest.raises(
            ServerError, match=r"zmq that this Python finds first, .*, is too old or can't encrypt"
        ) as raised:
            Client("nuke", 1.0, ("tcp://127.0.0.1:9", 40 * "x")).hello()
        assert raised.value.code == "no_pyzmq"
    monkeypatch.delattr(zmq, "EVENT_HANDSHAKE_FAILED_AUTH")
    with pytest.raises(ServerError, match="is too old"):
        Client("nuke", 1.0, ("tcp://127.0.0.1:9", 40 * "x")).hello()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such limit")
def test_a_program_that_can_open_no_more_files_lives_on(folder: Path) -> None:
    """Short of a few descriptors, ZeroMQ would end the whole process: Nuke, with the script."""
    code = """if True:
        import os, resource, sys
        from pathlib import Path
        from reenact.address import load_key
        from reenact.client import Client
        from reenact.errors import ServerError
        from reenact.pyzmq import zmq
        free = os.dup(0)
        os.close(free)
        limit = free + int(sys.argv[1])
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
        try:
            if sys.argv[2:]:
                load_key(Path(sys.argv[2]))
            with Client("nuke", 1.0, ("tcp://127.0.0.1:9", 40 * "x")) as client:
                client.hello()
        except ServerError as error:
            print(error.code, error)
    """
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "nuke_plugin")}

    def said(*arguments: object) -> str:
        command = [sys.executable, "-c", code, *map(str, arguments)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, (arguments, done.stderr)
        return done.stdout

    for spare in (*range(10), 31):
        assert said(spare).startswith("too_many_files "), spare
    assert said(60).startswith("no_server ")
    key = folder / "keys/client.key_secret"
    assert said(0, key) == f"no_key The key {key} can't be read: Too many open files. Try again.\n"


def test_every_command_makes_a_key_that_was_deleted(folder: Path) -> None:
    (folder / "keys/client.key_secret").unlink()
    done = reenact_here("status", cwd=folder)
    assert done.returncode == 1
    assert "There is no key" not in done.stderr
    address.load_key(folder / "keys/client.key_secret")


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("store/jobs.sqlite", b"\x00\xff" * 4000, "is damaged"),
        ("store/jobs.sqlite", None, "can't be used"),
        ("store", b"", "A file is where a folder belongs"),
        ("store/files", b"", "A file is where a folder belongs"),
        ("store/jobs", b"", "A file is where a folder belongs"),
        ("server.json", None, "A folder is where a file belongs"),
        ("server.lock", None, "A folder is where a file belongs"),
    ],
)
def test_a_damaged_home_is_said_and_kept(
    name: str, content: bytes | None, why: str, folder: Path
) -> None:
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.mkdir() if content is None else path.write_bytes(content)
    done = reenact_here("serve", cwd=folder)
    assert done.returncode == 1
    assert str(path) in done.stderr
    assert why in done.stderr
    assert path.is_dir() if content is None else path.read_bytes() == content


def test_what_the_server_says_reaches_whoever_started_it(folder: Path) -> None:
    (folder / "store").mkdir()
    (folder / "store" / "jobs.sqlite").write_bytes(b"\x00\xff" * 4000)
    with (
        pytest.raises(remote.JobFailedError, match=r"jobs\.sqlite is damaged"),
        remote.connected(Report(machine=True)),
    ):
        pass
    shutil.rmtree(folder / "store")
    (folder / "store").touch()
    with (
        pytest.raises(remote.JobFailedError, match="Mend that, or set REENACT_HOME"),
        remote.connected(Report(machine=True)),
    ):
        pass


@pytest.mark.parametrize("size", ["64k", "16k"])
def test_a_full_disk_is_said_by_the_server(size: str, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("only root may mount a small disk")
    try:
        done = subprocess.run(
            start.command("server.cli.main", "serve"),
            env=os.environ | {"REENACT_HOME": str(disk)},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 1
        assert done.stderr.startswith("reenact: No space left for")
        assert "Traceback" not in done.stderr
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def test_homes_of_any_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("REENACT_HOME", "relative")
    assert address.home() == tmp_path / "relative"
    strange = tmp_path / "ü ñ 日本"
    monkeypatch.setenv("REENACT_HOME", str(strange))
    assert reenact("keys", "list", cwd=tmp_path).stdout.startswith("owner")
    monkeypatch.setenv("REENACT_HOME", str(tmp_path / "b\udce9b"))
    done = reenact("keys", "list", cwd=tmp_path)
    assert done.returncode == 1
    assert "is not UTF-8" in done.stderr
    monkeypatch.delenv("REENACT_HOME")

    def nobody() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", staticmethod(nobody))
    with pytest.raises(ServerError, match="Set REENACT_HOME"):
        address.home()


# -- streams


def test_closed_streams(folder: Path) -> None:
    line = " ".join(f"'{part}'" for part in start.command("server.cli.main", "keys", "list"))
    for closed, code in ((">&-", 0), (">&- 2>&- <&-", 0), (">/dev/full", 1), ("| true", 0)):
        done = subprocess.run(
            ["sh", "-c", f"{line} {closed}"], capture_output=True, text=True, check=False
        )
        assert done.returncode == code
        assert "Traceback" not in done.stderr
        assert "Exception" not in done.stderr
