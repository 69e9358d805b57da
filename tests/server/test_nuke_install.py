"""Tests Nuke's part of the installation, with real interpreters, pips, wheels and sockets.

Folders look like Nuke's, but no Nuke runs: that is for tests/nuke/nuke_acceptance.py."""

import ast
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
import zmq
import zmq.auth
from hypothesis import given, settings
from hypothesis import strategies as st
from interpreters import find_interpreter
from reenact import __version__
from repository import ROOT
from running_server import Server

from server.install import doctor, nuke, nuke_installer
from server.install.environment import Environment
from server.install.pip import InstallError

VERSION = nuke.pyzmq_version(Environment(ROOT), nuke.Nuke(Path(), "14.0v1", "linux", (3, 9), None))
LINUX_ONLY = pytest.mark.skipif(sys.platform != "linux", reason="runs interpreters in Linux's tree")
PYTHONS = {"3.9": "14.1v2", "3.10": "15.1v3", "3.11": "16.0v2"}


def tree(root: Path, version: str, system: str, python: Path | None = None) -> Path:
    """Makes a folder like an installation of Nuke, with a Python that runs if one is given."""
    short = version.partition("v")[0]
    folder = root / f"Nuke{version}"
    inner = folder / f"Nuke{version}.app/Contents/MacOS" if system == "darwin" else folder
    inner.mkdir(parents=True)
    (inner / (f"Nuke{short}.exe" if system == "win32" else f"Nuke{short}")).touch()
    own = inner / ("python.exe" if system == "win32" else "python3")
    if python:
        own.symlink_to(python)
    else:
        own.write_text("not a program")
    return folder


def at(folder: Path) -> nuke.Nuke:
    found = nuke.at(folder)
    assert found is not None
    return found


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """Makes a checkout with the plugin, and an environment that contains only pip."""
    root = tmp_path_factory.mktemp("checkout with spaces")
    shutil.copy(ROOT / "constraints.txt", root)
    skip = shutil.ignore_patterns("vendor", "__pycache__")
    shutil.copytree(ROOT / "nuke_plugin", root / "nuke_plugin", ignore=skip)
    env = Environment(root)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(env.venv)], check=True)
    (env.site_packages / "pip").symlink_to(str(metadata.distribution("pip").locate_file("pip")))
    return env


@pytest.fixture
def env(
    made: Environment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Environment]:
    """The checkout, for a user with an empty home, on a machine without Nuke."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("NUKE_PATH", raising=False)
    (tmp_path / "home").mkdir()
    yield made
    shutil.rmtree(nuke.vendor_folder(made), ignore_errors=True)


def wheel(folder: Path, tag: str, inside: str = "", version: str = VERSION, body: str = "") -> Path:
    """Makes a wheel of pyzmq for a tag in its name, and the same or `inside` in its metadata."""
    folder.mkdir(exist_ok=True)
    path = folder / f"pyzmq-{version}-{tag}.whl"
    info = f"pyzmq-{version}.dist-info"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("zmq/__init__.py", body or "def has(what): return True")
        file.writestr("zmq/auth.py", "")
        file.writestr(
            f"{info}/METADATA", f"Metadata-Version: 2.1\nName: pyzmq\nVersion: {version}\n"
        )
        file.writestr(f"{info}/WHEEL", f"Wheel-Version: 1.0\nTag: {inside or tag}\n")
        file.writestr(f"{info}/RECORD", "")
    return path


def vendored(env: Environment) -> list[str]:
    folder = nuke.vendor_folder(env)
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


# --- where Nuke is -----------------------------------------------------------------------------


def test_it_is_found_where_it_is_installed_and_where_paths_lead(
    env: Environment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    for version in ("16.0v2", "14.1v2", "13.2v5", "18.0v1"):
        tree(home, version, "linux")
    programs = tree(tmp_path / "Program Files", "15.1v3", "win32")
    studio = tree(tmp_path / "apps", "17.0v1", "linux")
    linked = tree(tmp_path / "elsewhere", "15.2v1", "linux")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/Nuke15.2").symlink_to(linked / "Nuke15.2")
    monkeypatch.setenv("PROGRAMFILES", str(programs.parent))
    monkeypatch.setenv("NUKE_PATH", os.pathsep.join([str(studio / "plugins"), "/nowhere", ""]))
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    found = [one for one in nuke.find() if tmp_path in one.program.parents]
    assert [one.version for one in found] == ["14.1v2", "15.1v3", "15.2v1", "16.0v2", "17.0v1"]
    assert [one.python for one in found] == [(3, 9), (3, 10), (3, 10), (3, 11), (3, 11)]
    assert [one.interpreter for one in found] == [None] * 5  # none of them runs


@pytest.mark.parametrize(
    ("system", "target"),
    [("linux", "py310-linux"), ("win32", "py310-win32"), ("darwin", "py310-darwin")],
)
def test_it_is_told_by_its_folder_its_application_or_its_program(
    tmp_path: Path, system: str, target: str
) -> None:
    folder = tree(tmp_path, "15.1v3", system)
    one = at(folder)
    assert (one.version, one.system, one.target) == ("15.1v3", system, target)
    assert at(one.program) == one
    assert at(one.program.parent) == one
    if system == "darwin":
        assert at(folder / "Nuke15.1v3.app") == one


def test_what_is_no_nuke_is_refused_and_says_what_to_give(env: Environment, tmp_path: Path) -> None:
    (tmp_path / "Nuke15.1v3").mkdir()  # uninstalled, but the folder is left
    for path in (tmp_path, tmp_path / "Nuke15.1v3", tree(tmp_path, "13.2v5", "linux")):
        with pytest.raises(InstallError, match="is no Nuke 14 to 17") as caught:
            nuke_installer.main(env, [str(path)])
        assert "/usr/local/Nuke" in caught.value.mend
    done = subprocess.run(
        [sys.executable, ROOT / "install.py", "nuke", tmp_path],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"\n{tmp_path} is no Nuke 14 to 17\nWhat to do: give the folder")


@LINUX_ONLY
def test_what_its_interpreter_says_goes_before_the_version(tmp_path: Path) -> None:
    own = Path(sys.executable)
    one = at(tree(tmp_path, "14.1v2", "linux", own))
    assert one.python == sys.version_info[:2]
    assert one.interpreter is not None
    assert "by its version" not in str(one)
    assert "by its version" in str(at(tree(tmp_path / "other", "14.1v2", "darwin")))


# --- pyzmq for it ------------------------------------------------------------------------------

TALK = """
import sys
before = list(sys.path)
from reenact.pyzmq import FOLDER, zmq
assert sys.path == before, sys.path
foreign = {m.partition(".")[0] for m in sys.modules} & {"numpy", "gevent", "tornado", "cffi"}
assert not foreign, foreign
socket = zmq.Context().socket(zmq.REQ)
socket.curve_publickey, socket.curve_secretkey = zmq.curve_keypair()
socket.curve_serverkey = sys.argv[2].encode()
socket.connect(sys.argv[1])
socket.send_string("{}.{}".format(*sys.version_info[:2]))
assert socket.poll(20000) and socket.recv() == b"heard"
print(zmq.__file__.startswith(str(FOLDER)), zmq.__version__)
"""


def run_plugin(python: Path, env: Environment, code: str, *arguments: str, more: str = "") -> str:
    """Runs code as Nuke would, with the plugin on sys.path and folders `more` before it."""
    path = os.pathsep.join(filter(None, [more, str(env.root / "nuke_plugin")]))
    done = subprocess.run(
        [python, "-s", "-c", code, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env={"PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"},
        check=False,
    )
    return done.stdout.strip() if not done.returncode else done.stderr


@LINUX_ONLY
def test_the_pythons_of_nuke_talk_with_the_pyzmq_laid_beside_the_plugin(
    env: Environment, tmp_path: Path
) -> None:
    pythons = {version: found for version in PYTHONS if (found := find_interpreter(version))}
    if not pythons:
        pytest.skip(f"no Python of {', '.join(PYTHONS)} here")
    nukes = [at(tree(tmp_path, PYTHONS[v], "linux", python)) for v, python in pythons.items()]
    try:
        nuke_installer.vendor(env, nukes, None)
    except InstallError as failure:
        pytest.skip(f"pyzmq can't be had: {failure.what}")
    assert vendored(env) == sorted(one.target for one in nukes)
    broken, own = tmp_path / "broken", tmp_path / "own"  # a studio's, before the plugin
    for folder, body in ((broken, "from zmq import error, backend"), (own, "here = 'own'")):
        (folder / "zmq/auth").mkdir(parents=True)
        (folder / "zmq/__init__.py").write_text(body)
        (folder / "zmq/error.py").touch()
        (folder / "zmq/auth/__init__.py").touch()

    with zmq.Context() as context, context.socket(zmq.REP) as server:
        public, server.curve_secretkey = zmq.curve_keypair()
        server.curve_server = True
        port = server.bind_to_random_port("tcp://127.0.0.1")
        heard: list[str] = []

        def answer() -> None:
            for _ in range(2 * len(pythons)):
                if server.poll(60000):
                    heard.append(server.recv_string())
                    server.send(b"heard")

        thread = threading.Thread(target=answer)
        thread.start()
        talk = (TALK, f"tcp://127.0.0.1:{port}", public.decode())
        for python in pythons.values():
            for more in ("", str(broken)):
                assert run_plugin(python, env, *talk, more=more) == f"True {VERSION}"
            show = "from reenact.pyzmq import zmq; print(zmq.here)"
            assert run_plugin(python, env, show, more=str(own)) == "own"
        thread.join()
        assert heard == [version for version in pythons for _ in range(2)]


def test_without_any_pyzmq_the_client_says_what_to_run(env: Environment) -> None:
    python = find_interpreter("3.9") or Path(sys.base_prefix) / "bin" / "python3"
    code = "import sys; sys.path[:] = [p for p in sys.path if 'site-packages' not in p]\n"
    code += "import reenact.client; reenact.client.Client()"
    said = run_plugin(python, env, code).splitlines()[-1]
    assert said.startswith("reenact.errors.ServerError: Reenact has no pyzmq that loads in Python")
    assert said.endswith(f"Run: python3 {env.root / 'install.py'} nuke")


@pytest.mark.parametrize(
    ("system", "tag"),
    [
        ("linux", "manylinux2014_x86_64"),
        ("win32", "win_amd64"),
        ("darwin", "macosx_10_15_universal2"),
    ],
)
def test_only_the_wheel_for_its_python_and_system_is_taken_from_a_folder(
    env: Environment, tmp_path: Path, system: str, tag: str
) -> None:
    one = at(tree(tmp_path, "14.1v2", system))
    wheels = tmp_path / "wheels"
    others = ["manylinux2014_x86_64", "win_amd64", "macosx_10_15_universal2"]
    for other in [f"cp39-cp39-{t}" for t in others if t != tag] + [f"cp310-cp310-{tag}"]:
        wheel(wheels, other)
    with pytest.raises(InstallError, match=f"has no pyzmq {VERSION} for {one.target}") as caught:
        nuke_installer.vendor(env, [one], wheels)
    assert f"--abi cp39 --platform {nuke.PLATFORMS[system][0]}" in caught.value.mend
    assert vendored(env) == []

    right = wheel(wheels, f"cp39-cp39-{tag}")
    nuke_installer.vendor(env, [one], wheels)
    assert vendored(env) == [one.target]
    assert nuke.problem(env, one) == ""
    right.unlink()
    nuke_installer.vendor(env, [one], wheels)  # nothing to do


@LINUX_ONLY
def test_a_wheel_that_is_not_what_it_says_leaves_the_one_that_is_there(
    env: Environment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    major, minor = sys.version_info[:2]
    tag = f"cp{major}{minor}-cp{major}{minor}-manylinux2014_x86_64"
    one = at(tree(tmp_path, "16.0v2", "linux", Path(sys.base_prefix) / "bin" / "python3"))
    wheel(tmp_path / "old", tag, version="1.0")
    monkeypatch.setattr(nuke, "pyzmq_version", lambda *_: "1.0")
    nuke_installer.vendor(env, [one], tmp_path / "old")
    monkeypatch.setattr(nuke, "pyzmq_version", lambda *_: "2.0")
    assert "there is no pyzmq 2.0" in nuke.problem(env, one)

    wheel(tmp_path / "foreign", tag, inside="cp38-cp38-win_amd64", version="2.0")
    with pytest.raises(InstallError, match="for another Python or system: cp38-cp38-win_amd64"):
        nuke_installer.vendor(env, [one], tmp_path / "foreign")
    wheel(tmp_path / "broken", tag, version="2.0", body="raise ImportError('libzmq is torn')")
    with pytest.raises(InstallError, match=r"does not load in .*: ImportError: libzmq is torn"):
        nuke_installer.vendor(env, [one], tmp_path / "broken")
    assert vendored(env) == [one.target]
    place = nuke.vendor_folder(env) / one.target
    assert (place / "pyzmq-1.0.dist-info").exists()

    wheel(tmp_path / "new", tag, version="2.0")
    nuke_installer.vendor(env, [one], tmp_path / "new")
    assert [path.name for path in place.glob("*.dist-info")] == ["pyzmq-2.0.dist-info"]
    assert vendored(env) == [one.target]


VENDOR = """
import sys
from pathlib import Path
from server.install import nuke, nuke_installer
from server.install.environment import Environment
nuke_installer.vendor(Environment(Path(sys.argv[1])), [nuke.at(Path(sys.argv[2]))], None)
"""


@pytest.mark.skipif(os.name == "nt", reason="sends POSIX signals")
def test_a_killed_installation_leaves_no_half_folder_and_goes_on(
    env: Environment, tmp_path: Path
) -> None:
    folder = tree(tmp_path, "14.1v2", "darwin")
    with socket.create_server(("127.0.0.1", 0)) as index:  # never answers
        process = subprocess.Popen(
            [sys.executable, "-c", VENDOR, str(env.root), str(folder)],
            cwd=ROOT,
            env=os.environ | {"PIP_INDEX_URL": f"http://127.0.0.1:{index.getsockname()[1]}/simple"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        index.settimeout(60)
        index.accept()
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    torso = nuke.vendor_folder(env) / ".py39-darwin.0" / "zmq"
    torso.mkdir(parents=True)  # if it had come that far
    assert "py39-darwin" not in vendored(env)
    wheel(tmp_path / "wheels", "cp39-cp39-macosx_10_15_universal2")
    nuke_installer.vendor(env, [at(folder)], tmp_path / "wheels")
    assert vendored(env) == ["py39-darwin"]


# --- the line in init.py -----------------------------------------------------------------------

TEXTS = st.lists(
    st.tuples(
        st.sampled_from(
            [b"", b"import nuke", b"# \xe9t\xe9", "\u30ce\u30fc\u30c9".encode(), b"\\", b"\x0c"]
        ),
        st.sampled_from([b"\n", b"\r\n", b"\r"]),
    )
).map(lambda lines: b"".join(text + end for text, end in lines))
CONTENTS = (
    st.none()
    | st.binary(max_size=60)
    | st.builds(
        lambda bom, text, rest: bom + text + rest,
        st.sampled_from([b"", b"\xef\xbb\xbf", b"\xff\xfe"]),
        TEXTS,
        st.binary(max_size=8),
    )
)


@given(content=CONTENTS, moved=st.booleans())
@settings(max_examples=300, deadline=None)
def test_any_init_py_is_after_uninstalling_what_it_was(content: bytes | None, moved: bool) -> None:
    line = "nuke.pluginAddPath('/opt/reenact/nuke_plugin')"
    added = nuke.with_line(content, "nuke.pluginAddPath('/old place')" if moved else line)
    added = nuke.with_line(added, line)
    assert nuke.with_line(added, line) == added
    assert nuke.line_in(added) == line
    assert added.startswith(content or b"")
    assert len(nuke.LINE.findall(added)) == 1
    assert nuke.without_line(added) == content


@pytest.mark.parametrize(
    "content",
    [
        None,
        b"",
        b"import nuke",
        b"import nuke\r\nif nuke.GUI:\r\n    pass",
        b"import nuke\rseen = 1\r",
        b"# -*- coding: latin-1 -*-\nname = '\xe9'\n# no more",
        "\ufeffname = '\u00e9'\n".encode(),
    ],
)
def test_python_runs_the_line_in_files_of_all_kinds(content: bytes | None, tmp_path: Path) -> None:
    env = Environment(tmp_path / "it's \u00e9t\u00e9 [1]")
    code = compile(nuke.with_line(content, nuke.plugin_line(env)), "init.py", "exec")
    paths: list[str] = []
    module = type(sys)("nuke")
    module.pluginAddPath, module.GUI = paths.append, False  # type: ignore[attr-defined]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "nuke", module)
        exec(code, {"nuke": module})
    assert paths == [(env.root / "nuke_plugin").as_posix()]


def test_lines_that_only_look_like_ours_stay() -> None:
    ours = nuke.with_line(None, "nuke.pluginAddPath('/a')")
    for content in (b"# " + ours, b"if True:\n    " + ours, ours.replace(nuke.MARK, b"")):
        assert nuke.without_line(content) == content
        assert nuke.with_line(content, "nuke.pluginAddPath('/a')") != content


@pytest.fixture
def ready(env: Environment, tmp_path: Path) -> tuple[Environment, list[str]]:
    """The checkout with pyzmq for a Nuke, and the arguments of `install.py nuke` for it."""
    folder = tree(tmp_path / "home", "14.1v2", "linux")
    wheel(tmp_path / "wheels", "cp39-cp39-manylinux2014_x86_64")
    nuke_installer.vendor(env, [at(folder)], tmp_path / "wheels")
    return env, [str(folder)]


def test_the_line_comes_and_goes_and_all_else_stays(
    ready: tuple[Environment, list[str]], tmp_path: Path
) -> None:
    env, told = ready
    init = tmp_path / "home/.nuke/init.py"
    nuke_installer.main(env, [*told, "--yes"])  # creates the file
    assert nuke.line_in(init.read_bytes()) == nuke.plugin_line(env)
    nuke_installer.main(env, ["--uninstall"])
    assert not init.exists()
    nuke_installer.main(env, ["--uninstall"])

    studio = tmp_path / "studio"
    studio.mkdir()
    real = studio / "kept elsewhere.py"
    real.write_bytes(b"import nuke\r\n# \xff")
    real.chmod(0o640)
    (studio / "init.py").symlink_to(real.name)
    nuke_installer.main(env, [*told, "--yes", "--studio", str(studio)])
    changed = real.read_bytes()
    nuke_installer.main(env, [*told, "--yes", "--studio", str(studio / "init.py")])
    assert real.read_bytes() == changed != b"import nuke\r\n# \xff"
    assert (studio / "init.py").is_symlink()
    assert real.stat().st_mode & 0o777 == 0o640
    assert not init.exists()
    nuke_installer.main(env, ["--uninstall", "--studio", str(studio)])
    assert real.read_bytes() == b"import nuke\r\n# \xff"
    assert (studio / "init.py").is_symlink()
    with pytest.raises(InstallError, match="there is no folder"):
        nuke_installer.main(env, [*told, "--yes", "--studio", str(tmp_path / "studoi")])


def test_a_read_only_init_py_is_left_and_the_line_told(
    ready: tuple[Environment, list[str]], tmp_path: Path
) -> None:
    env, told = ready
    init = tmp_path / "home/.nuke/init.py"
    init.parent.mkdir()
    init.write_bytes(b"import nuke\n")
    init.chmod(0o444)
    with pytest.raises(InstallError, match=r"init\.py was not changed: it is read-only") as caught:
        nuke_installer.main(env, [*told, "--yes"])
    assert caught.value.mend == f"put this line into it by hand: {nuke.plugin_line(env)}"
    init.chmod(0o644)
    nuke_installer.main(env, [*told, "--yes"])
    init.chmod(0o444)
    with pytest.raises(InstallError, match="it is read-only"):
        nuke_installer.main(env, ["--uninstall"])
    assert nuke.line_in(init.read_bytes())
    assert sorted(path.name for path in init.parent.iterdir()) == ["init.py"]


OFFER = """
import sys
from pathlib import Path
from server.install import nuke_installer
from server.install.environment import Environment
nuke_installer.prompt_install(Environment(Path(sys.argv[1])))
"""


@pytest.mark.skipif(os.name == "nt", reason="needs a terminal of POSIX")
def test_it_is_offered_at_a_terminal_only_and_a_no_changes_nothing(
    ready: tuple[Environment, list[str]], tmp_path: Path
) -> None:
    env, told = ready
    init = tmp_path / "home/.nuke/init.py"
    command = [sys.executable, "-c", OFFER, str(env.root)]
    asked = subprocess.run(
        command, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True
    )
    assert asked.stdout == f"Nuke 14.1v2: for the nodes, {doctor.install_line()} nuke\n"
    with pytest.raises(InstallError, match="nobody is there to be asked"):
        nuke_installer.main(env, told)
    assert not init.exists()

    for answers, changed in ((b"n\n", False), (b"y\nn\n", False), (b"y\ny\n", True)):
        master, slave = os.openpty()
        os.write(master, answers)
        subprocess.run(command, cwd=ROOT, stdin=slave, stdout=slave, stderr=slave, check=True)
        os.close(slave)
        os.close(master)
        assert init.exists() == changed
    quiet = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert quiet.stdout == ""  # it has the line already


# --- what Nuke runs ----------------------------------------------------------------------------

NUKE = """
import sys, types
nuke = sys.modules["nuke"] = types.ModuleType("nuke")
def pluginAddPath(path, addToSysPath=True):
    print(path, addToSysPath)
nuke.pluginAddPath = pluginAddPath
names = dict(__file__=sys.argv[1], __name__="__main__")
exec(compile(open(sys.argv[1]).read(), sys.argv[1], "exec"), names)
print(sorted(name for name in names if not name.startswith("__")))
"""


def test_nuke_starts_without_importing_the_plugin(tmp_path: Path) -> None:
    """Also where the plugin is broken; its menu says what is wrong (test_nuke_boundary)."""
    plugin = tmp_path / "nuke_plugin"
    (plugin / "reenact").mkdir(parents=True)
    (plugin / "reenact/__init__.py").write_text("def :")
    shutil.copy(ROOT / "nuke_plugin/init.py", plugin)
    done = subprocess.run(
        [find_interpreter("3.9") or sys.executable, "-c", NUKE, plugin / "init.py"],
        env={"PYTHONPATH": str(plugin)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines() == [f"{(tmp_path / 'gizmos').as_posix()} False", "[]"]
    assert done.stderr == ""


def test_init_py_is_python_3_9() -> None:
    ast.parse((ROOT / "nuke_plugin/init.py").read_text(encoding="utf-8"), feature_version=(3, 9))


# --- the doctor --------------------------------------------------------------------------------


def test_the_doctor_tells_what_nuke_lacks_and_mends_it(
    env: Environment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def look() -> list[tuple[str, str]]:
        checks = list(doctor.check_nuke(env))
        assert [check.name for check in checks] == ["nuke", "nuke-pyzmq", "nuke-init"]
        assert all(check.state in ("ok", "warning") for check in checks)
        json.dumps([check.details for check in checks])
        return [(check.state, check.mend) for check in checks]

    monkeypatch.setenv("PATH", "")
    if nuke.find():
        pytest.skip("there is a Nuke here")
    assert look() == [("warning", ""), ("ok", ""), ("ok", "")]
    mend = f"{doctor.install_line()} nuke"
    tree(tmp_path / "home", "14.1v2", "linux")
    assert look() == [("ok", ""), ("warning", mend), ("warning", mend)]
    wheel(tmp_path / "wheels", "cp39-cp39-manylinux2014_x86_64")
    nuke_installer.main(env, ["--wheels", str(tmp_path / "wheels"), "--yes"])
    assert look() == [("ok", ""), ("ok", ""), ("ok", "")]
    init = nuke.user_init()
    init.write_bytes(nuke.with_line(init.read_bytes(), "nuke.pluginAddPath('/moved')"))
    assert look()[2] == ("warning", mend)
    studio = tmp_path / "studio"
    studio.mkdir()
    (studio / "init.py").write_bytes(nuke.with_line(None, nuke.plugin_line(env)))
    monkeypatch.setenv("NUKE_PATH", os.pathsep.join([str(studio), str(studio / "init.py")]))
    assert look()[2] == ("ok", "")


def test_the_doctor_knows_whether_a_server_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REENACT_HOME", str(tmp_path))
    assert doctor.check_server().state == "ok"  # none runs, and the first command starts one
    monkeypatch.setenv("REENACT_SERVER", "tcp://127.0.0.1:1")
    check = doctor.check_server()
    assert check.state == "warning"
    assert "remote.key" in check.found
    monkeypatch.delenv("REENACT_SERVER")
    zmq.auth.create_certificates(tmp_path, "client")
    (tmp_path / "keys").mkdir()
    (tmp_path / "client.key_secret").rename(tmp_path / "keys/client.key_secret")
    key = zmq.curve_keypair()[0].decode()
    gone = {"endpoint": "tcp://127.0.0.1:1", "key": key}  # nothing listens on port 1
    (tmp_path / "server.json").write_text(json.dumps(gone))
    check = doctor.check_server()
    assert check.state == "warning"
    assert "No Reenact server answers at tcp://127.0.0.1:1" in check.found

    (tmp_path / "real").mkdir()
    monkeypatch.setenv("REENACT_HOME", str(tmp_path / "real"))
    server = Server(tmp_path / "real").start()
    try:
        check = doctor.check_server()
    finally:
        server.stop()
    assert (check.state, check.details["version"]) == ("ok", __version__)
    assert "answers, version" in check.found
