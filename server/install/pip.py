"""The environment that packages are installed into, its lock, and pip, whose faults become advice.

Standard library only: this runs before anything is installed.
"""

import base64
import contextlib
import csv
import hashlib
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

from server.install import doctor
from server.install.environment import Environment
from server.locks import try_lock

CUDA_GIB = 12  # Linux: torch comes with CUDA's libraries; unpacked, and once more in pip's cache


class InstallError(Exception):
    """An installation cannot go on.

    Attributes:
        what: failed.
        mend: what to do about it.
        excerpt: lines of pip's output that say why.
        step: of the installation; empty outside of one.
    """

    def __init__(self, what: str, mend: str, excerpt: Sequence[str] = ()):
        super().__init__(what)
        self.what, self.mend, self.excerpt = what, mend, excerpt
        self.step = ""


# --- the environment and its lock --------------------------------------------------------------


@contextlib.contextmanager
def installation_lock(env: Environment) -> Iterator[int]:
    """Holds the installation's lock, waiting for another installation to end first.

    The file keeps the holder's process number for people to read; the lock itself is the
    system's, so one left by a killed process is no obstacle.

    Yields:
        The descriptor of the lock file, for programs that hold the lock too.

    Raises:
        InstallError: the lock file can't be written.
    """
    try:
        descriptor = os.open(env.lock, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise InstallError(str(error), f"make the folder {env.root} writable for you") from error
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
    except (InstallError, KeyboardInterrupt):
        write_holder(descriptor, "")
        raise
    finally:
        os.close(descriptor)


def read_holder(descriptor: int) -> str:
    """Returns the process number in a lock file; empty where none holds it, or ended with it."""
    os.lseek(descriptor, 0, os.SEEK_SET)
    return os.read(descriptor, 32).decode("ascii", "replace").strip()


def write_holder(descriptor: int, text: str) -> None:
    """Writes the process number into a lock file."""
    os.ftruncate(descriptor, 0)
    os.lseek(descriptor, 0, os.SEEK_SET)
    os.write(descriptor, text.encode("ascii"))


def make_environment(env: Environment) -> None:
    """Makes .venv; one that does not run, or that another Python made, is made anew."""
    version = env.python_version()
    if version == sys.version_info[:2] and succeeds([str(env.python), "-c", ""], env):
        return
    if env.venv.exists():
        held = env.installed().get("torch")
        state = "made by Python {}.{}".format(*version) if version else "incomplete"
        print(
            f"      {env.venv} is {state}: making it anew"
            + (f" (without its torch {held})" if held else "")
        )
    made = subprocess.run(
        [sys.executable, "-I", "-m", "venv", "--clear", str(env.venv)],
        env=env.variables(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
        check=False,
    )
    if made.returncode:
        what, mend = advice(made.stdout)
        raise InstallError(what, mend, made.stdout.strip().splitlines()[-6:])


def isolated(env: Environment) -> list[str]:
    """Returns the environment's Python as it runs modules: not those of the current folder."""
    return [str(env.python), "-I", "-X", "utf8"]


def succeeds(command: list[str], env: Environment) -> bool:
    """Returns whether a program runs, quietly, and ends without an error."""
    quiet = subprocess.DEVNULL
    try:
        done = subprocess.run(command, env=env.variables(), stdout=quiet, stderr=quiet, check=False)
    except OSError:
        return False
    return done.returncode == 0


def isolate_command(env: Environment) -> None:
    """Has the environment's `reenact` ignore Python's variables and the current folder.

    The pip that writes it knows no flags of Python, and a `core/` or `json.py` on PYTHONPATH would
    be imported before anything of ours could prevent it. Does nothing if that is done already.
    """
    script = env.script("reenact")
    if not script.exists():
        return
    before = script.read_bytes()
    after = with_flag(before, str(env.python))
    if after == before:
        return
    temporary = script.with_name(f".{script.name}.tmp")
    temporary.write_bytes(after)
    shutil.copymode(script, temporary)
    os.replace(temporary, script)
    record_size(env, script, after)


def with_flag(script: bytes, python: str) -> bytes:
    """Returns a program of pip's that starts Python with -I.

    Args:
        script: a text that begins with #!; or Windows' launcher, a line with Python's path, a zip.
        python: the path of the interpreter.
    """
    if script.startswith(b"MZ"):
        return re.sub(rb'(#![^\r\n]*?python\w*\.exe"?)(?=\r?\nPK\x03\x04)', rb"\1 -I", script)
    # By sh: a path after #! may be neither long nor have spaces. For Python it is a text.
    start = f"#!/bin/sh\n'''exec' {shlex.quote(python)} -I \"$0\" \"$@\"\n' '''\n"
    skipped = 3 if script.startswith(b"#!/bin/sh") else 1
    return os.fsencode(start) + b"\n".join(script.split(b"\n")[skipped:])


def record_size(env: Environment, path: Path, content: bytes) -> None:
    """Notes a changed file in the list by which pip and `environment.damaged` know it."""
    digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
    for record in env.site_packages.glob("reenact-*.dist-info/RECORD"):
        rows = list(csv.reader(record.read_text(encoding="utf-8").splitlines()))
        for row in rows:
            if row and os.path.normpath(env.site_packages / row[0]) == str(path):
                row[1:] = [f"sha256={digest}", str(len(content))]
        with open(record, "w", encoding="utf-8", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows(rows)


# --- pip ---------------------------------------------------------------------------------------


def pip(env: Environment, lock: int, *arguments: str) -> None:
    """Runs pip in the environment; its output goes to the log, and in short to the terminal.

    pip writes the log itself and this process reads along, so that a pip whose install.py was
    killed can still finish.

    Args:
        env: where it installs.
        lock: descriptor of the installation's lock, which pip holds too.
        arguments: of pip.

    Raises:
        InstallError: pip ended with an error.
    """
    command = [*isolated(env), "-m", "pip", *arguments]
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
        what, mend = advice("\n".join(lines), process.returncode)
        raise InstallError(what, mend, error_lines(lines))


def follow(process: subprocess.Popen, file: IO[bytes]) -> list[str]:
    """Reads pip's output from its log until it ends, and shows what a person wants to see of it.

    Returns:
        The lines.
    """
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
    """Returns a line of pip's output as it is shown; None for the many that only the log keeps."""
    if re.search(r"^\s*(Downloading|Using cached) \S+ \([\d.]+ [MG]B\)", line):
        return line.strip().replace("Using cached", "Had already").removesuffix(".metadata")
    if match := re.match(r"Installing collected packages: (.*)", line):
        return f"Unpacking {match[1].count(',') + 1} packages"
    if match := re.match(r"\s+Uninstalling (\S+)-([^-]+):$", line):
        return f"Replacing {match[1]} {match[2]}"
    return line.strip() if re.match(r"WARNING: .*(retry|resum|incomplete)", line, re.I) else None


def error_lines(lines: list[str]) -> list[str]:
    """Returns the lines with pip's errors, or the last lines where it names none."""
    errors = [line for line in lines if re.search(r"\berror\b|^\w*Error:", line, re.IGNORECASE)]
    return (errors or [line for line in lines if line.strip()])[-6:]


def again() -> str:
    """Returns the end of an advice: to run the installation again."""
    return f"then run {doctor.install_line()} again"


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


def advice(output: str, code: int = 1) -> tuple[str, str]:
    """Returns what went wrong and what to do about it, from the output of pip or venv.

    Args:
        output: what they printed.
        code: their exit code.
    """
    values = {
        "install": doctor.install_line(),
        "pip": f"{doctor.python()} -m pip",
        "python": ".".join(map(str, sys.version_info[:2])),
        "machine": f"{platform.system()} {platform.machine()}",
        "platform": platform_advice(output, *platform.libc_ver()),
        "root": str(Path(__file__).resolve().parents[2]),
    }
    if code in (-9, 137):
        return "pip was killed, most likely because memory ran out", f"close programs, {again()}"
    for pattern, what, mend in REMEDIES:
        if re.search(pattern, output, re.IGNORECASE):
            return what.format(**values), mend.format(**values)
    return "it ended with an error of its own", f"read the lines below, {again()}"


def platform_advice(output: str, libc: str, version: str) -> str:
    """Returns what to do where pip finds no wheel for this machine.

    Args:
        output: of pip.
        libc: the name of this system's C library.
        version: of that.
    """
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
