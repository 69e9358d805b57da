"""The commands of install.py: make the environment, and run the demo, the tests or the doctor.

Standard library only. An installation is four steps that each find their own work already done,
so that running it again continues after a fault, a kill or Ctrl-C:

1. the virtual environment, 2. pip and setuptools, 3. everything else in ONE run of pip under
constraints.txt, the project itself editable, 4. a check of the result by the doctor.

The only record of success is a stamp, written last and removed first. A lock that the operating
system frees when its holders die keeps two installations apart; pip inherits it, so a pip that
outlives a killed install.py still holds it.
"""

import contextlib
import errno
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import IO

from server import doctor
from server.environment import Environment, base_version, damaged, why_outdated, write_stamp

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

STEPS = ("virtual environment", "pip", "packages", "check")
LEAST_GIB = 3  # with a CPU build of torch
CUDA_GIB = 12  # Linux: torch comes with CUDA's libraries; unpacked, and once more in pip's cache
PINNED_TORCH = ("torch", "torchvision")
INTERRUPTED = 130


class Failure(Exception):
    """An installation that cannot go on: what failed, and what to do about it."""

    def __init__(self, what: str, mend: str, excerpt: Sequence[str] = ()):
        super().__init__(what)
        self.what, self.mend, self.excerpt = what, mend, excerpt
        self.step = ""


def main(arguments: list[str], usage: str) -> int:
    """Runs one command of install.py and returns its exit code."""
    env = Environment(Path(__file__).resolve().parent.parent)
    command, *rest = arguments or ["install"]
    if command in ("-h", "--help", "help"):
        print(usage)
        return 0
    if command == "doctor" and rest in ([], ["--json"]):
        return report(env, as_json=bool(rest))
    if command not in ("install", "nuke", "demo", "test") or (command == "install" and rest):
        print(usage, file=sys.stderr)
        return 2
    from server import nuke_installer  # which needs this module

    try:
        if command == "nuke":
            nuke_installer.main(env, rest)
            return 0
        install(env, {"dev"} if command == "test" else set())
        if command == "install":
            nuke_installer.offer(env)
        if command == "demo":
            return run([str(env.script("reenact")), "demo", *rest], env, Path.cwd())
        if command == "test":
            return run_tests(env, rest)
    except Failure as failure:
        explain(failure, env)
        return 1
    except KeyboardInterrupt:
        again = " ".join([doctor.install_line(), *arguments])
        print(f"\nInterrupted. What is finished is kept; go on with: {again}", file=sys.stderr)
        return INTERRUPTED
    return 0


def run(command: list[str], env: Environment, folder: Path) -> int:
    sys.stdout.flush()
    return subprocess.run(command, cwd=folder, env=env.variables(), check=False).returncode


def run_tests(env: Environment, arguments: list[str]) -> int:
    """ruff, mypy, then pytest, whose closing line is the last: all run, the first fault counts.

    The whole suite runs on all cores; with arguments it is one process, that a debugger can enter.
    """
    python = str(env.python)
    arguments = arguments or ["-n", "auto", "--dist", "worksteal"]
    commands = (
        ["ruff", "check", "."],
        ["ruff", "format", "--check", "."],
        ["mypy"],
        ["pytest", *arguments],
    )
    codes = [run([python, "-m", *command], env, env.root) for command in commands]
    return next((code for code in codes if code), 0)


def report(env: Environment, as_json: bool) -> int:
    """Prints the doctor's findings; 0 if nothing that is needed is missing."""
    checks = []
    for check in doctor.diagnose(env):
        checks.append(check)
        if not as_json:
            print(f"{check.state:8} {check.name:12} {check.found}", flush=True)
            if check.mend:
                print(f"{'':21} -> {check.mend}", flush=True)
    if as_json:
        by_name = {check.name: asdict(check) for check in checks}
        print(json.dumps({"ok": doctor.healthy(checks), "checks": by_name}, indent=1))
    return 0 if doctor.healthy(checks) else 1


# --- installing --------------------------------------------------------------------------------


def install(env: Environment, extras: set[str]) -> None:
    """Brings the environment up to date with constraints.txt and pyproject.toml.

    Raises:
        Failure: a step failed; its message says what to do, and a further call goes on.
    """
    with exclusive(env) as lock:
        reason = outdated_here(env, extras)
        if reason is None:
            return
        print(f"Installing Reenact into {env.venv}: {reason}.", flush=True)
        begun = time.monotonic()
        with step(1):
            check_disk(env)
            make_environment(env)
            extras = extras | recorded_extras(env)
            env.stamp.unlink(missing_ok=True)
        with step(2):
            torch = chosen_torch(env)  # first: a repair would remove a damaged one unasked
            repair(env)
            prepare_pip(env, lock)
        with step(3):
            target = f".[{','.join(sorted(extras))}]" if extras else "."
            # No compiling: a package without a wheel for this machine is a clear fault at once.
            options = ["--only-binary", ":all:", "--no-build-isolation", "-c", "constraints.txt"]
            options += ["--resume-retries", "20", "--progress-bar", "raw"]
            pip(env, lock, "install", *options, "-e", target)
        with step(4):
            verify(env, torch)
            write_stamp(env, extras)
        print(f"Reenact is installed ({time.monotonic() - begun:.0f} s).", flush=True)


def outdated_here(env: Environment, extras: set[str]) -> str | None:
    """why_outdated, and an environment of another Python counts as outdated too."""
    version = env.python_version()
    if version and version != sys.version_info[:2]:
        return "it was made by Python {}.{} and this is {}.{}".format(
            *version, *sys.version_info[:2]
        )
    return why_outdated(env, extras)


def recorded_extras(env: Environment) -> set[str]:
    """The extras of the last installation, so that they stay in step with the constraints."""
    try:
        return set(json.loads(env.stamp.read_text(encoding="utf-8"))["extras"])
    except (OSError, ValueError, KeyError, TypeError):
        return set()


@contextlib.contextmanager
def step(number: int) -> Iterator[None]:
    title = STEPS[number - 1]
    print(f"[{number}/{len(STEPS)}] {title}", flush=True)
    begun = time.monotonic()
    try:
        yield
    except Failure as failure:
        failure.step = title
        raise
    except OSError as error:
        broken = Failure(str(error), remedy(str(error))[1])
        broken.step = title
        raise broken from error
    print(f"      done in {time.monotonic() - begun:.1f} s", flush=True)


def explain(failure: Failure, env: Environment) -> None:
    where = f'Step "{failure.step}" failed: ' if failure.step else ""
    lines = [f"\n{where}{failure.what}", f"What to do: {failure.mend}"]
    if failure.excerpt:
        lines += ["What pip said:", *(f"    {line}" for line in failure.excerpt)]
        lines += [f"The whole log: {env.log}"]
    print("\n".join(lines), file=sys.stderr, flush=True)


@contextlib.contextmanager
def exclusive(env: Environment) -> Iterator[int]:
    """Holds the installation's lock, waiting for another installation to end first.

    The file keeps the holder's process number for people to read; the lock itself is the
    system's, so one left by a killed process is no obstacle.
    """
    try:
        descriptor = os.open(env.lock, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise Failure(str(error), f"make the folder {env.root} writable for you") from error
    try:
        waiting = False
        while not try_lock(descriptor):
            if not waiting:
                holder = read_holder(descriptor) or "unknown"
                print(f"Another installation (process {holder}) is at work; waiting for it.")
                sys.stdout.flush()
                waiting = True
            time.sleep(0.3)
        stale = read_holder(descriptor)
        if stale and not waiting:
            print(f"An earlier installation (process {stale}) did not end; going on from there.")
        write_holder(descriptor, str(os.getpid()))
        yield descriptor
        write_holder(descriptor, "")
    except (Failure, KeyboardInterrupt):
        write_holder(descriptor, "")
        raise
    finally:
        os.close(descriptor)


def try_lock(descriptor: int) -> bool:
    try:
        if sys.platform == "win32":
            os.lseek(descriptor, 1 << 20, os.SEEK_SET)  # past the text: a locked byte is unreadable
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        else:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES, errno.EDEADLK):
            return False
        raise
    return True


def read_holder(descriptor: int) -> str:
    os.lseek(descriptor, 0, os.SEEK_SET)
    return os.read(descriptor, 32).decode("ascii", "replace").strip()


def write_holder(descriptor: int, text: str) -> None:
    os.ftruncate(descriptor, 0)
    os.lseek(descriptor, 0, os.SEEK_SET)
    os.write(descriptor, text.encode("ascii"))


def check_disk(env: Environment) -> None:
    if "torch" in env.installed():
        return
    free = shutil.disk_usage(env.root).free / doctor.GIB
    if free < LEAST_GIB:
        raise Failure(
            f"{free:.1f} GiB are free on the disk of {env.root}; at least {LEAST_GIB} are needed, "
            f"{CUDA_GIB} with a CUDA build of torch",
            "free some there, or move the checkout to a larger disk",
        )
    if free < CUDA_GIB and sys.platform == "linux":
        print(f"      only {free:.0f} GiB are free: a CUDA build of torch needs {CUDA_GIB}")


def make_environment(env: Environment) -> None:
    """Makes .venv; one that does not run, or that another Python made, is made anew."""
    version = env.python_version()
    if version == sys.version_info[:2] and runs([str(env.python), "-c", ""], env):
        return
    if env.venv.exists():
        held = env.installed().get("torch")
        state = "made by Python {}.{}".format(*version) if version else "incomplete"
        print(
            f"      {env.venv} is {state}: making it anew"
            + (f" (without its torch {held})" if held else "")
        )
    made = subprocess.run(
        [sys.executable, "-m", "venv", "--clear", str(env.venv)],
        env=env.variables(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
        check=False,
    )
    if made.returncode:
        what, mend = remedy(made.stdout)
        raise Failure(what, mend, made.stdout.strip().splitlines()[-6:])


def runs(command: list[str], env: Environment) -> bool:
    quiet = subprocess.DEVNULL
    try:
        done = subprocess.run(command, env=env.variables(), stdout=quiet, stderr=quiet, check=False)
    except OSError:
        return False
    return done.returncode == 0


def repair(env: Environment) -> None:
    """Makes pip see half-written packages as absent: it trusts any .dist-info folder it finds."""
    for leftover in env.site_packages.glob("~*"):  # what pip renames while it replaces a package
        shutil.rmtree(leftover, ignore_errors=True)
    for info in damaged(env):
        print(f"      {info.name.removesuffix('.dist-info')} is not complete: installing it again")
        shutil.rmtree(info)


def prepare_pip(env: Environment, lock: int) -> None:
    python = str(env.python)
    if not runs([python, "-m", "pip", "--version"], env):
        for remains in env.site_packages.glob("pip*"):
            shutil.rmtree(remains)
        if not runs([python, "-m", "ensurepip"], env):
            raise Failure("pip does not start in .venv", f"delete {env.venv}, {again()}")
    installed, pins = env.installed(), env.pins()
    wanted = [f"{name}=={pins[name]}" for name in ("pip", "setuptools")]
    if any(installed.get(name) != pins[name] for name in ("pip", "setuptools")):
        pip(env, lock, "install", "--upgrade", *wanted)


def chosen_torch(env: Environment) -> dict[str, str]:
    """The torch and torchvision already there: kept in any build of the pinned version.

    Raises:
        Failure: one has another version. It may be somebody's choice, so it is not replaced.
    """
    installed, pins = env.installed(), env.pins()
    there = {name: installed[name] for name in PINNED_TORCH if name in installed}
    for name, version in there.items():
        if base_version(version) != pins[name]:
            raise Failure(
                f"{name} {version} is installed in {env.venv}, and Reenact is tested with "
                f"{pins[name]}; install.py never replaces it by itself",
                f"{shlex.quote(str(env.python))} -m pip uninstall -y {' '.join(PINNED_TORCH)}, "
                + again(),
            )
    return there


def verify(env: Environment, torch_before: dict[str, str]) -> None:
    """The doctor's checks of the packages, and that torch is the one that was there or pinned."""
    installed, pins = env.installed(), env.pins()
    for name in PINNED_TORCH:
        version = installed.get(name, "none")
        if base_version(version) != pins[name] or torch_before.get(name, version) != version:
            wanted = torch_before.get(name, pins[name])
            raise Failure(f"{name} is {version} now, not {wanted}", f"delete {env.venv}, {again()}")
    for check in doctor.inside(env):
        if check.state == "missing":
            raise Failure(f"{check.name}: {check.found}", f"{check.mend}, {again()}")
        print(f"      {check.name}: {check.found}", flush=True)


def again() -> str:
    return f"then run {doctor.install_line()} again"


# --- pip ---------------------------------------------------------------------------------------


def pip(env: Environment, lock: int, *arguments: str) -> None:
    """Runs pip in the environment; its output goes to the log, and in short to the terminal.

    pip writes the log itself and this process reads along, so that a pip whose install.py was
    killed can still finish.
    """
    command = [str(env.python), "-m", "pip", *arguments]
    # Downloads of gigabytes are unpacked here, not on a /tmp that may be a small RAM disk.
    scratch = env.venv / "tmp"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    variables = env.variables() | {
        "TMPDIR": str(scratch),
        "TEMP": str(scratch),
        "PIP_USER": "0",
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "PIP_NO_INPUT": "1",
    }
    with open(env.log, "ab") as log:
        log.write(f"\n$ {shlex.join(command)}\n".encode())
        log.flush()
        start = log.tell()
        process = subprocess.Popen(
            command,
            cwd=env.root,
            env=variables,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            pass_fds=() if os.name == "nt" else (lock,),
        )
    try:
        with open(env.log, "rb") as file:
            file.seek(start)
            lines = follow(process, file)
    except KeyboardInterrupt:
        process.terminate()
        process.wait()
        raise
    shutil.rmtree(scratch, ignore_errors=True)
    if process.returncode:
        what, mend = remedy("\n".join(lines), process.returncode)
        raise Failure(what, mend, what_matters(lines))


def follow(process: subprocess.Popen, file: IO[bytes]) -> list[str]:
    """Reads pip's output from its log until it ends, showing what a person wants to see of it."""
    lines, rest = [], b""
    shown = time.monotonic()
    while True:
        ended = process.poll() is not None  # asked before reading: nothing comes after its end
        *whole, rest = (rest + file.read()).split(b"\n")
        for raw in whole:
            line = raw.decode("utf-8", "replace").rstrip()
            now = time.monotonic()
            if (match := re.fullmatch(r"Progress (\d+) of (\d+)", line)) is None:
                lines.append(line)
                short = shortened(line)
            elif int(match[2]) and now - shown > 10:
                short = f"{int(match[1]) / 1e6:.0f} of {int(match[2]) / 1e6:.0f} MB"
            else:
                short = None
            if short:
                print(f"      {short}", flush=True)
                shown = now
        if ended:
            return lines
        if time.monotonic() - shown > 30:
            print("      ... still at work", flush=True)
            shown = time.monotonic()
        time.sleep(0.2)


def shortened(line: str) -> str | None:
    """A line of pip's output as shown to the person; None for the many that only the log keeps."""
    if re.search(r"^\s*(Downloading|Using cached) \S+ \([\d.]+ [MG]B\)", line):
        return line.strip().replace("Using cached", "Had already").removesuffix(".metadata")
    if match := re.match(r"Installing collected packages: (.*)", line):
        return f"Unpacking {match[1].count(',') + 1} packages"
    if match := re.match(r"\s+Uninstalling (\S+)-([^-]+):$", line):
        return f"Replacing {match[1]} {match[2]}"
    return line.strip() if re.match(r"WARNING: .*(retry|resum|incomplete)", line, re.I) else None


def what_matters(lines: list[str]) -> list[str]:
    """pip's errors, or the last lines where it names none."""
    errors = [line for line in lines if re.search(r"\berror\b|^\w*Error:", line, re.IGNORECASE)]
    return (errors or [line for line in lines if line.strip()])[-6:]


# What pip, venv or the system say -> what it means, and what to do; the first that fits counts.
REMEDIES = (
    (
        r"No space left on device|Errno 28|WinError 112",
        "the disk is full",
        f"free {CUDA_GIB} GB there, or keep pip's downloads on another disk: "
        "PIP_CACHE_DIR=/path/on/a/large/disk {install}",
    ),
    (
        r"ensurepip is not\s+available|No module named '?(ensurepip|venv)|python3[\d.]*-venv",
        "this Python cannot make virtual environments",
        "sudo apt install python{python}-venv, then run {install} again",
    ),
    (
        r"SSL module is not available|ssl module in Python is not available",
        "this Python was built without SSL and cannot download",
        "use a Python from python.org or of your distribution, then run {install} again",
    ),
    (
        r"CERTIFICATE_VERIFY_FAILED|SSLError|SSLCertVerificationError",
        "the server's certificate is not trusted, as behind a proxy that inspects traffic",
        "PIP_CERT=/path/to/your/company-ca.pem {install}",
    ),
    (
        r"ProxyError|Tunnel connection failed|407 Proxy",
        "the proxy refused the connection",
        "HTTPS_PROXY=http://user:password@host:port {install}",
    ),
    (
        r"NewConnectionError|NameResolutionError|name resolution|getaddrinfo|Network is unreachable"
        r"|ConnectTimeout|ReadTimeout|Connection (refused|reset|aborted|broken)|Max retries",
        "the package index could not be reached",
        "connect to the network and run {install} again (what was downloaded is kept); behind a "
        "proxy: HTTPS_PROXY=http://host:port {install}; without internet, on a like machine with "
        'it: {pip} download -d wheels -c constraints.txt pip setuptools ".[dev]", then copy wheels '
        "here: PIP_NO_INDEX=1 PIP_FIND_LINKS=wheels {install}",
    ),
    (
        r"DO NOT MATCH THE HASHES|IncompleteRead|incomplete-download|BadZipFile|is invalid",
        "a download arrived damaged",
        "{pip} cache purge, then run {install} again",
    ),
    (
        r"no matching distribution|Could not find a version|not a supported wheel",
        "a package has no wheel for this machine ({machine}, Python {python})",
        "{platform}",
    ),
    (
        r"ResolutionImpossible|conflicting dependencies",
        "the versions asked for exclude each other",
        "restore constraints.txt and pyproject.toml: git checkout constraints.txt pyproject.toml",
    ),
    (
        r"Permission denied|Errno 13|WinError (5|32)\b|Read-only file system",
        "a file could not be written",
        "make this folder writable for you and close programs that use it: {root}",
    ),
)


def remedy(output: str, code: int = 1) -> tuple[str, str]:
    """What went wrong and what to do about it, from the output of pip or venv."""
    values = {
        "install": doctor.install_line(),
        "pip": f"{doctor.python()} -m pip",
        "python": ".".join(map(str, sys.version_info[:2])),
        "machine": f"{platform.system()} {platform.machine()}",
        "platform": platform_advice(output, *platform.libc_ver()),
        "root": str(Path(__file__).resolve().parent.parent),
    }
    if code in (-9, 137):
        return "pip was killed, most likely because memory ran out", f"close programs, {again()}"
    for pattern, what, mend in REMEDIES:
        if re.search(pattern, output, re.IGNORECASE):
            return what.format(**values), mend.format(**values)
    return "it ended with an error of its own", f"read the lines below, {again()}"


def platform_advice(output: str, libc: str, version: str) -> str:
    """What to do where pip finds no wheel: the machines for which the pinned packages have any."""
    if libc == "glibc" and tuple(map(int, version.split("."))) < (2, 28):
        return f"this system's glibc is {version}: Rocky 8, Ubuntu 20.04 or newer are needed (2.28)"
    if sys.maxsize < 2**32:
        return "use a 64-bit Python"
    # The second is what pip says of a package that is pinned by a constraint.
    name = re.search(r"No matching distribution found for ([^\s;]+)", output) or re.search(
        r"no matching distributions available for your environment:\s+(\S+)", output
    )
    wanted = f" (not found: {name[1]})" if name else ""
    return (
        "use Linux x86-64 with glibc 2.28 or newer, Windows x86-64 or macOS on Apple silicon, with "
        f"Python 3.10 to 3.12 from python.org; if yours is one, update pip's mirror{wanted}"
    )
