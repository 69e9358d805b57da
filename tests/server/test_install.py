"""install.py, the environment's state and the doctor, on real interpreters, pips and processes."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import metadata
from pathlib import Path

import pytest
from interpreters import interpreter
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version
from repository import ROOT

from server import locks
from server.install import doctor, environment, installer, pip
from server.install.environment import Environment

CONSTRAINTS = (ROOT / "constraints.txt").read_text(encoding="utf-8")
MINOR = sys.version_info[1]


@pytest.fixture
def checkout(tmp_path: Path) -> Environment:
    """What install.py needs of a checkout, in a folder without an environment."""
    for name in ("install.py", "constraints.txt", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path / name)
    needed = {
        "server": {"__init__.py", "locks.py", "install"},
        "core": {"__init__.py", "errors.py", "files.py", "base"},
    }
    for package, names in needed.items():
        for source in (ROOT / package).iterdir():
            target = tmp_path / package / source.name
            target.parent.mkdir(exist_ok=True)
            if source.name not in names:
                continue
            if source.is_dir():
                shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(source, target)
    return Environment(tmp_path)


@pytest.fixture
def bare(checkout: Environment) -> Environment:
    """The checkout with an environment that holds nothing, not even pip."""
    make_venv(sys.executable, checkout, "--without-pip")
    return checkout


@pytest.fixture
def with_pip(checkout: Environment, monkeypatch: pytest.MonkeyPatch) -> Environment:
    """The checkout with an environment that holds a pip, which looks at no index of the user's."""
    make_venv(sys.executable, checkout, "--without-pip")
    shutil.copytree(
        Path(str(metadata.distribution("pip").locate_file("pip"))),
        checkout.site_packages / "pip",
        ignore=shutil.ignore_patterns("__pycache__"),
    )
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_CACHE_DIR", str(checkout.root / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return checkout


def make_venv(python: str, env: Environment, *options: str) -> None:
    subprocess.run([python, "-m", "venv", *options, str(env.venv)], check=True)


def put(env: Environment, name: str, version: str, **files: str) -> Path:
    """Lays a distribution into the environment as pip would; returns its .dist-info."""
    info = env.site_packages / f"{name}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    record = f"{info.name}/METADATA,,\n{info.name}/RECORD,,\n"
    for stem, text in files.items():
        path = env.site_packages / f"{stem}.py"
        path.write_text(text)
        record += f"{path.name},sha256=x,{len(text)}\n"
    (info / "RECORD").write_text(record)
    return info


def run_install(root: Path, *arguments: str, python: str | Path = sys.executable, **variables: str):
    return subprocess.run(
        [python, str(root / "install.py"), *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, **variables},
        timeout=60,
        check=False,
    )


# --- the command ----

HOSTILE = ("re", "json", "typing", "os", "server")
ENTRY = """import sys
if __name__ == '__main__':
    print(sys.flags.isolated, *sys.argv[1:])
"""


@pytest.mark.parametrize(
    "header", ["#!{python}", "#!/bin/sh\n'''exec' \"{python}\" \"$0\" \"$@\"\n' '''"]
)
def test_the_command_ignores_what_lies_around(
    header: str, tmp_path: Path, with_pip: Environment
) -> None:
    script = with_pip.script("reenact")
    script.write_text(f"{header.format(python=with_pip.python)}\n{ENTRY}")
    script.chmod(0o755)
    info = put(with_pip, "reenact", "0.1.0")
    place = os.path.relpath(script, with_pip.site_packages)
    with (info / "RECORD").open("a") as record:
        record.write(f"{place},sha256=x,{script.stat().st_size}\n")
    for _ in range(2):
        pip.isolate_command(with_pip)
        assert environment.damaged(with_pip) == []
    hostile = tmp_path / "hostile"
    hostile.mkdir()
    for name in HOSTILE:
        (hostile / f"{name}.py").write_text("raise SystemExit('FOREIGN')")
    link = tmp_path / "a link"
    link.symlink_to(script)
    for command in (script, link):
        done = subprocess.run(
            [command, "a b", "$HOME"],
            cwd=hostile,
            env=os.environ | {"PYTHONPATH": str(hostile), "PYTHONHOME": str(hostile)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.stdout, done.stderr) == ("1 a b $HOME\n", "")


def test_the_command_of_windows_ignores_it_too(tmp_path: Path) -> None:
    """pip's launcher there: a program, the line with Python's path, and a zip that Python runs."""
    packed = tmp_path / "main.zip"
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("__main__.py", ENTRY)
    begin = b"MZ" + bytes(500) + b"#! no line python.exe\r\n" + bytes(500)
    for python in (b"C:\\venv\\Scripts\\python.exe", b'"C:\\a b\\Scripts\\python.exe"'):
        program = begin + b"#!" + python + b"\r\n" + packed.read_bytes()
        changed = pip.with_flag(program, "")
        assert changed == begin + b"#!" + python + b" -I\r\n" + packed.read_bytes()
        assert pip.with_flag(changed, "") == changed
        (tmp_path / "reenact.exe").write_bytes(changed)
        done = subprocess.run(
            [sys.executable, "-I", tmp_path / "reenact.exe"], capture_output=True, text=True
        )
        assert done.stdout == "1\n"


def test_install_py_ignores_pythonpath(tmp_path: Path, bare: Environment) -> None:
    hostile = tmp_path / "hostile"
    hostile.mkdir()
    for name in ("json", "typing", "subprocess", "server", "core", "venv"):
        (hostile / f"{name}.py").write_text("raise SystemExit('FOREIGN')")
    done = run_install(bare.root, "--help", PYTHONPATH=str(hostile))
    assert (done.returncode, done.stderr) == (0, "")


# --- which Python ------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["2.7", "3.6", "3.8", "3.9", "3.13"])
def test_wrong_python_gets_a_sentence(version: str) -> None:
    done = subprocess.run(
        [interpreter(version), str(ROOT / "install.py")], capture_output=True, text=True
    )
    assert done.returncode == 1
    assert done.stderr.startswith("Reenact needs Python 3.10, 3.11 or 3.12, and this is Python")
    assert version in done.stderr
    assert "Traceback" not in done.stderr
    assert "SyntaxError" not in done.stderr


@pytest.mark.parametrize("version", ["3.10", "3.12"])
def test_the_other_pythons_run_it(version: str, checkout: Environment) -> None:
    done = run_install(checkout.root, "doctor", "--json", python=interpreter(version))
    checks = json.loads(done.stdout)["checks"]
    assert checks["python"]["state"] == "ok"
    assert checks["python"]["details"]["version"].startswith(version)


# --- pins --------------------------------------------------------------------------------------


@pytest.mark.parametrize("minor", [10, 11, 12])
def test_pins_are_what_packaging_reads(minor: int) -> None:
    expected = {}
    for line in CONSTRAINTS.splitlines():
        if line and not line.startswith("#"):
            requirement = Requirement(line)
            marker = requirement.marker
            if marker is None or marker.evaluate({"python_version": f"3.{minor}"}):
                name = canonicalize_name(requirement.name)
                assert name not in expected, f"{name} is pinned twice"
                (specifier,) = requirement.specifier
                assert specifier.operator == "=="
                expected[name] = specifier.version
    assert environment.parse_pins(CONSTRAINTS, (3, minor)) == expected


@pytest.mark.parametrize("line", ["numpy>=1.26", "numpy", "torch==2.13.0 ; os_name == 'nt'"])
def test_a_line_that_pins_nothing_is_refused(line: str) -> None:
    with pytest.raises(ValueError, match="does not pin an exact version"):
        environment.parse_pins(line, (3, 11))


def test_everything_installed_is_pinned_and_torch_is_one() -> None:
    pins = environment.parse_pins(CONSTRAINTS, sys.version_info[:2])
    present = [(canonicalize_name(d.metadata["Name"]), d.version) for d in metadata.distributions()]
    # torch's own CUDA packages come with it, at versions that it requires exactly
    cuda = re.compile(r"nvidia-|cuda-|triton$")
    ours = [(n, v) for n, v in set(present) if n != "reenact" and not cuda.match(n)]
    wrong = [f"{n} {v}" for n, v in ours if pins.get(n) != Version(v).public]
    assert wrong == []
    assert len({v for n, v in present if n == "torch"}) == 1
    assert pins["opencv-python"] == pins["opencv-contrib-python"]


# --- the stamp ---------------------------------------------------------------------------------


def test_stamp_follows_what_an_installation_follows_from(bare: Environment) -> None:
    assert environment.why_outdated(bare, set()) == "the last installation did not finish"
    put(bare, "numpy", "1.26.4")
    environment.write_stamp(bare, {"dev"})
    assert environment.why_outdated(bare, set()) is None
    assert environment.why_outdated(bare, {"dev"}) is None
    assert installer.recorded_extras(bare) == {"dev"}

    for name in ("constraints.txt", "pyproject.toml"):
        before = (bare.root / name).read_bytes()
        (bare.root / name).write_bytes(before + b"# changed\n")
        assert "changed" in (environment.why_outdated(bare, set()) or "")
        (bare.root / name).write_bytes(before)
    assert environment.why_outdated(bare, set()) is None

    environment.write_stamp(bare, set())
    assert environment.why_outdated(bare, {"dev"}) == "the test tools are not installed"

    bare.stamp.write_bytes(bare.stamp.read_bytes()[:40])  # a torn write
    assert environment.why_outdated(bare, set()) == "the last installation did not finish"


def test_packages_changed_behind_its_back_are_seen_but_another_build_of_torch_is_kept(
    bare: Environment,
) -> None:
    numpy, torch = put(bare, "numpy", "1.26.4"), put(bare, "torch", "2.13.0+cpu")
    environment.write_stamp(bare, set())
    shutil.rmtree(torch)
    torch = put(bare, "torch", "2.13.0+cu130")
    assert environment.why_outdated(bare, set()) is None
    shutil.rmtree(torch)
    put(bare, "torch", "2.12.1+cu126")
    assert "torch is 2.12.1+cu126" in (environment.why_outdated(bare, set()) or "")
    shutil.rmtree(numpy)
    assert "numpy 1.26.4 is gone" in (environment.why_outdated(bare, set()) or "")


def test_a_moved_checkout_is_outdated(bare: Environment) -> None:
    environment.write_stamp(bare, set())
    moved = Environment(bare.root.with_name(bare.root.name + "-moved"))
    bare.root.rename(moved.root)
    assert "folder changed" in (environment.why_outdated(moved, set()) or "")


def test_an_environment_of_another_python_is_made_anew_after_saying_so(
    checkout: Environment, capsys: pytest.CaptureFixture[str]
) -> None:
    other = next(v for v in ("3.10", "3.12", "3.11") if v != f"3.{MINOR}")
    make_venv(interpreter(other), checkout, "--without-pip")
    put(checkout, "torch", "2.13.0+cu130")
    assert other in (installer.outdated_here(checkout, set()) or "")
    pip.make_environment(checkout)
    said = capsys.readouterr().out
    assert f"made by Python {other}" in said
    assert "without its torch 2.13.0+cu130" in said
    assert checkout.python_version() == sys.version_info[:2]


@pytest.mark.parametrize("torso", ["no pyvenv.cfg", "no python"])
def test_a_half_made_environment_is_made_anew(bare: Environment, torso: str) -> None:
    environment.write_stamp(bare, set())
    if torso == "no python":
        for program in bare.python.parent.glob("python*"):
            program.unlink()
    else:
        (bare.venv / "pyvenv.cfg").unlink()
    assert environment.why_outdated(bare, set()) == "there is no complete environment"
    pip.make_environment(bare)
    assert subprocess.run([bare.python, "-m", "pip", "--version"]).returncode == 0


# --- half-written packages ---------------------------------------------------------------------


def test_half_written_packages_are_found_and_others_left_alone(bare: Environment) -> None:
    whole = put(bare, "whole", "1", whole="x = 1\n")
    lost = put(bare, "lost", "1", lost="x = 1\n")
    short = put(bare, "short", "1", short="x = 1\n")
    unrecorded = put(bare, "unrecorded", "1")
    first, second = put(bare, "first", "1", both="one"), put(bare, "second", "1", both="three")
    assert environment.damaged(bare) == []  # "both" has the size that one of its owners recorded

    (bare.site_packages / "lost.py").unlink()
    (bare.site_packages / "short.py").write_text("x")
    (unrecorded / "RECORD").unlink()
    assert set(environment.damaged(bare)) == {lost, short, unrecorded}
    (bare.site_packages / "both.py").write_text("neither")
    assert {first, second} <= set(environment.damaged(bare))

    (bare.site_packages / "~horch").mkdir()
    installer.remove_damaged(bare)
    assert [path.name for path in bare.site_packages.glob("*.dist-info")] == [whole.name]
    assert not (bare.site_packages / "~horch").exists()


# --- the lock ----------------------------------------------------------------------------------

HOLD = """
import sys, time
from pathlib import Path
from server.install import pip
from server.install.environment import Environment
with pip.installation_lock(Environment(Path(sys.argv[1]))):
    print("held", flush=True)
    time.sleep(float(sys.argv[2]))
"""


def hold(root: Path, seconds: float) -> subprocess.Popen:
    command = [sys.executable, "-c", HOLD, str(root), str(seconds)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def test_a_second_installation_waits_and_a_killed_one_does_not_block(tmp_path: Path) -> None:
    first = hold(tmp_path, 60)
    assert first.stdout
    assert first.stdout.readline() == "held\n"
    second = hold(tmp_path, 0)
    assert second.stdout
    waiting = second.stdout.readline()
    assert f"Another installation (process {first.pid}) is at work" in waiting
    assert second.poll() is None
    first.kill()
    first.wait()
    assert second.communicate(timeout=10)[0] == "held\n"

    third = hold(tmp_path, 60)
    assert third.stdout
    assert third.stdout.readline() == "held\n"
    third.kill()
    third.wait()
    fourth, _ = hold(tmp_path, 0).communicate(timeout=10)
    assert f"An earlier installation (process {third.pid}) did not end" in fourth
    assert fourth.endswith("held\n")
    assert hold(tmp_path, 0).communicate(timeout=10)[0] == "held\n"  # no trace once one has ended


# --- torch -------------------------------------------------------------------------------------


def test_torch_of_another_version_is_named_and_not_replaced(bare: Environment) -> None:
    torch = put(bare, "torch", "2.12.1+cu126")
    with pytest.raises(pip.InstallError, match=r"torch 2\.12\.1\+cu126 is installed") as caught:
        installer.installed_torch(bare)
    assert f"{bare.python} -m pip uninstall -y torch torchvision" in caught.value.mend
    assert torch.exists()


def test_a_damaged_torch_of_another_version_is_not_replaced_either(checkout: Environment) -> None:
    make_venv(sys.executable, checkout, "--without-pip")
    torch = put(checkout, "torch", "2.12.1+cu126", torch="x = 1\n")
    (checkout.site_packages / "torch.py").unlink()
    done = run_install(checkout.root)
    assert done.returncode == 1
    assert 'Step "pip" failed: torch 2.12.1+cu126 is installed' in done.stderr
    assert torch.exists()


def test_pip_keeps_another_build_of_the_pinned_torch(with_pip: Environment) -> None:
    version = with_pip.pins()["torch"] + "+cu130"
    put(with_pip, "torch", version)
    assert installer.installed_torch(with_pip) == {"torch": version}
    with pip.installation_lock(with_pip) as lock:
        pip.pip(with_pip, lock, "install", "--no-index", "-c", "constraints.txt", "torch")
    assert with_pip.installed()["torch"] == version


# --- failures ----------------------------------------------------------------------------------


def fail(env: Environment, *arguments: str) -> pip.InstallError:
    with pip.installation_lock(env) as lock, pytest.raises(pip.InstallError) as caught:
        pip.pip(env, lock, "install", *arguments)
    assert " ".join(arguments) in env.log.read_text()
    return caught.value


def test_a_version_that_does_not_exist_is_named(with_pip: Environment) -> None:
    (with_pip.root / "constraints.txt").write_text("numpy==1.99.99\n")
    failure = fail(with_pip, "--no-index", "-c", "constraints.txt", "numpy")
    assert "no wheel for this machine" in failure.what
    assert "not found: numpy" in failure.mend
    assert any("numpy" in line for line in failure.excerpt)


def test_an_index_that_cannot_be_reached_is_told_from_a_package_that_is_not_there(
    with_pip: Environment,
) -> None:
    index = "http://127.0.0.1:1/simple"  # nothing listens on port 1
    failure = fail(with_pip, "--retries", "1", "--index-url", index, "numpy")
    assert "could not be reached" in failure.what
    assert "HTTPS_PROXY=" in failure.mend
    assert "PIP_FIND_LINKS=wheels" in failure.mend


@pytest.mark.parametrize(
    ("said", "what", "mend"),
    [
        ("ERROR: [Errno 28] No space left on device", "disk is full", "PIP_CACHE_DIR="),
        (
            "The virtual environment was not created successfully because ensurepip is not\n"
            "available.  On Debian/Ubuntu systems, you need to install the python3-venv",
            "cannot make virtual environments",
            f"sudo apt install python3.{MINOR}-venv",
        ),
        ("SSLError(SSLCertVerificationError(1, '[SSL: CERT", "not trusted", "PIP_CERT="),
        (
            "Max retries exceeded with url (Caused by ProxyError('Cannot connect to proxy.'))",
            "proxy refused",
            "HTTPS_PROXY=http://user",
        ),
        ("ERROR: [Errno 13] Permission denied: '/x'", "could not be written", "writable"),
        ("ERROR: something new", "error of its own", "read the lines"),
    ],
)
def test_other_faults_say_what_to_do(said: str, what: str, mend: str) -> None:
    meaning, advice = pip.advice(said)
    assert what in meaning
    assert mend in advice


def test_an_old_glibc_is_named() -> None:
    said = "ERROR: No matching distribution found for torch==2.13.0"
    assert "glibc is 2.17" in pip.platform_advice(said, "glibc", "2.17")
    assert "glibc is" not in pip.platform_advice(said, "glibc", "2.36")
    assert "torch==2.13.0" in pip.platform_advice(said, "glibc", "2.36")


# --- interrupted downloads ---------------------------------------------------------------------


class Index(BaseHTTPRequestHandler):
    """A package index with one wheel, whose first transfer breaks off or stalls half-way."""

    wheel: bytes
    stall = False
    served: list[tuple[str, str | None]]

    def do_GET(self) -> None:
        name = "sample-1.0-py3-none-any.whl"
        wanted = self.headers.get("Range")
        if self.path.endswith(".whl"):
            begin = int(re.findall(r"\d+", wanted)[0]) if wanted else 0
            first = not self.served
            self.served.append((self.path, wanted))
            self.send_response(206 if wanted else 200)
            self.send_header("Content-Type", "application/octet-stream")
            self.send_header("Content-Length", str(len(self.wheel) - begin))
            self.send_header("Cache-Control", "max-age=3600, immutable, public")
            self.send_header("ETag", '"one"')
            if wanted:
                end = len(self.wheel)
                self.send_header("Content-Range", f"bytes {begin}-{end - 1}/{end}")
            self.end_headers()
            self.wfile.write(self.wheel[begin : len(self.wheel) // 2 if first else None])
            if first and self.stall:
                time.sleep(20)
            return
        page = f'<!DOCTYPE html><a href="/{name}">{name}</a>'.encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", str(len(page)))
        self.end_headers()
        self.wfile.write(page)

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def index(tmp_path: Path) -> Iterator[tuple[str, type[Index]]]:
    path = tmp_path / "sample.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        info = "sample-1.0.dist-info"
        wheel.writestr("sample.bin", os.urandom(1 << 21))
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: sample\nVersion: 1.0\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")

    class ThisIndex(Index):
        wheel = path.read_bytes()
        served: list[tuple[str, str | None]] = []  # noqa: RUF012 (one class per test)

    server = ThreadingHTTPServer(("127.0.0.1", 0), ThisIndex)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/simple", ThisIndex
    server.shutdown()
    thread.join()


def test_a_broken_transfer_goes_on_where_it_broke_and_is_kept(
    with_pip: Environment, index: tuple[str, type[Index]]
) -> None:
    url, handler = index
    host = url.split("/")[2]  # pip caches what comes by http only from hosts declared trusted
    arguments = ["install", "--index-url", url, "--trusted-host", host]
    arguments += ["--resume-retries", "20", "sample"]
    with pip.installation_lock(with_pip) as lock:
        pip.pip(with_pip, lock, *arguments)
        assert len(handler.served) == 2
        assert re.fullmatch(rf"bytes={len(handler.wheel) // 2}-", handler.served[1][1] or "")
        assert (with_pip.site_packages / "sample.bin").stat().st_size == 1 << 21
        for path in with_pip.site_packages.glob("sample*"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        pip.pip(with_pip, lock, *arguments)  # from pip's cache
    assert len(handler.served) == 2
    assert with_pip.installed()["sample"] == "1.0"


STEP = """
import sys
from pathlib import Path
from server.install import pip
from server.install.environment import Environment
env = Environment(Path(sys.argv[1]))
with pip.installation_lock(env) as lock:
    pip.pip(env, lock, "install", "--index-url", sys.argv[2], "sample")
"""


@pytest.mark.skipif(os.name == "nt", reason="sends POSIX signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_pip_leaves_nothing_running_unlocked(
    with_pip: Environment, index: tuple[str, type[Index]], number: int
) -> None:
    url, handler = index
    handler.stall = True
    process = subprocess.Popen(
        [sys.executable, "-c", STEP, str(with_pip.root), url],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    while not handler.served:
        time.sleep(0.05)
    process.send_signal(number)
    process.wait(timeout=10)
    descriptor = os.open(with_pip.lock, os.O_RDWR)
    free = locks.try_lock(descriptor)
    os.close(descriptor)
    # Ctrl-C ends pip; a kill cannot, and then pip itself still holds the lock.
    assert free == (number == signal.SIGINT)
    if not free:
        os.killpg(process.pid, signal.SIGKILL)
    assert "sample" not in with_pip.installed()


# --- the doctor --------------------------------------------------------------------------------

NUKE = ["nuke", "nuke-pyzmq", "nuke-init"]
REQUIRED = ["python", "environment", *doctor.INSIDE, *NUKE, "disk"]


def test_doctor_tells_what_is_installed() -> None:
    env = Environment(ROOT)
    if Path(sys.prefix) != env.venv:
        pytest.skip("the tests run outside this checkout's environment")
    done = run_install(ROOT, "doctor", "--json")
    report = json.loads(done.stdout)
    checks = report["checks"]
    assert list(checks) == REQUIRED
    assert report["ok"] == (done.returncode == 0)
    assert report["ok"] == all(check["state"] != "missing" for check in checks.values())
    packages = {"torch": "torch", "torchvision": "torchvision", "opencv": "opencv-python"}
    packages |= {"mediapipe": "mediapipe", "colour": "OpenImageIO", "video": "av", "lpips": "lpips"}
    for name, package in packages.items():
        version = metadata.version(package)
        told = checks[name]["details"].get(package, checks[name]["details"]["version"])
        assert told == version
        assert checks[name]["state"] in ("ok", "warning")
    import torch

    assert checks["torch"]["details"]["cuda"] == torch.cuda.is_available()
    assert len(checks["torch"]["details"]["devices"]) == torch.cuda.device_count()


def test_doctor_before_installation(checkout: Environment) -> None:
    done = run_install(checkout.root, "doctor")
    assert done.returncode == 1
    for name in REQUIRED:
        assert re.search(rf"^(ok|warning|missing) +{name} ", done.stdout, re.M)
    assert re.search(r"^missing +torch +not installed\n +-> .*install\.py$", done.stdout, re.M)
    assert not checkout.venv.exists()
    assert done.stderr == ""


def test_doctor_names_a_damaged_ocio_config() -> None:
    check = doctor_inside("colour", OCIO="/nowhere/config.ocio")
    assert check["state"] == "warning"
    assert "/nowhere/config.ocio" in check["found"]
    assert "OCIO" in check["mend"]


def test_doctor_survives_an_archived_ocio_config(tmp_path: Path) -> None:
    archive = tmp_path / "show.ocioz"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("config.ocio", "ocio_profile_version: 2")
    check = doctor_inside("colour", OCIO=str(archive))
    assert check["state"] == "warning"
    assert "unpack it" in check["found"]


def test_doctor_sees_truncated_lpips_weights(tmp_path: Path) -> None:
    weights = tmp_path / "hub/checkpoints" / doctor.ALEXNET
    weights.parent.mkdir(parents=True)
    weights.write_bytes(b"half of a download")
    check = doctor_inside("lpips", TORCH_HOME=str(tmp_path))
    assert check["state"] == "warning"
    assert "damaged" in check["found"]
    assert str(weights) in check["mend"]


def test_doctor_says_how_to_get_clip(tmp_path: Path) -> None:
    check = doctor_inside("clip", TORCH_HOME=str(tmp_path))
    assert check["state"] == "warning"
    assert check["details"]["models"] == []
    for name in ("ViT-B-32", "ViT-B-16"):
        assert str(tmp_path / "hub" / "clip" / name) in check["mend"]
        for file in ("open_clip_config.json", "open_clip_model.safetensors"):
            (tmp_path / "hub" / "clip" / name).mkdir(parents=True, exist_ok=True)
            (tmp_path / "hub" / "clip" / name / file).write_bytes(b"")
    assert doctor_inside("clip", TORCH_HOME=str(tmp_path))["state"] == "ok"


def doctor_inside(name: str, **variables: str) -> dict:
    code = f"import json, dataclasses; from server.install import doctor; \
print(json.dumps(dataclasses.asdict(doctor.examine({name!r}))))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def test_doctor_survives_a_crashing_library(bare: Environment) -> None:
    (bare.site_packages / "torch.py").write_text("import os; os._exit(11)")
    checks = {check.name: check for check in doctor.inside(bare)}
    assert list(checks) == list(doctor.INSIDE)
    assert checks["torch"].state == "missing"
    assert "code 11" in checks["torch"].found


def test_a_missing_system_library_names_its_package() -> None:
    error = "libGL.so.1: cannot open shared object file: No such file or directory"
    line = doctor.system_library(error)
    expected = "apt install libgl1" if shutil.which("apt-get") else "dnf install mesa-libGL"
    assert line == f"sudo {expected}"
    assert doctor.system_library("No module named 'cv2'") is None


def test_unknown_commands_change_nothing(checkout: Environment) -> None:
    done = run_install(checkout.root, "instal")
    assert done.returncode == 2
    assert "install.py doctor" in done.stderr
    assert not checkout.venv.exists()
