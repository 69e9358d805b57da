"""Nuke on this machine: where it is, which Python it has, whether the plugin's pyzmq for that
Python is in place, and the line in init.py that leads Nuke to the plugin.

Standard library only: install.py and the doctor ask before anything is installed.
"""

import contextlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from server.install.environment import Environment, parse_pins

PYTHONS = {14: (3, 9), 15: (3, 10), 16: (3, 11), 17: (3, 11)}  # of each Nuke that is supported
PROGRAM = re.compile(r"Nuke(\d+)\.(\d+)(\.exe)?")
FOLDER = re.compile(r"Nuke\d+\.\d+v\d+.*")
INTERPRETERS = ("python3", "python.exe", "python", "python.app/Contents/MacOS/python*")
PATIENCE = 60.0  # seconds for an interpreter on a network disk

# sys.platform -> the wheels that are for it, the best first. Nuke 15 and later ask for glibc 2.28,
# Nuke 14 for 2.17; on macOS one wheel holds both processors.
PLATFORMS = {
    "linux": ("manylinux_2_28_x86_64", "manylinux2014_x86_64"),
    "win32": ("win_amd64",),
    "darwin": ("macosx_11_0_universal2", "macosx_10_15_universal2"),
}

MARK = b"  # Reenact; taken out by install.py nuke --uninstall"
NEWLINE = re.compile(rb"\r\n|\r|\n")
LINE = re.compile(
    rb"(?<![^\r\n])(nuke\.pluginAddPath\([^\r\n]*\))" + re.escape(MARK) + rb"(\r\n|\r|\n|\Z)"
)

IMPORTS = """
import sys
sys.path.insert(0, sys.argv[1])
import zmq.auth
if not zmq.__file__.startswith(sys.argv[1]):
    sys.exit("another one was imported: " + zmq.__file__)
if not zmq.has("curve"):
    sys.exit("it cannot encrypt")
"""


@dataclass(frozen=True)
class Nuke:
    """An installed Nuke.

    system: its `sys.platform`, by the look of its files.
    python: (major, minor) of its Python, as its interpreter told, else by Nuke's version.
    interpreter: the one beside it; None if none runs on this machine.
    """

    program: Path
    version: str
    system: str
    python: tuple[int, int]
    interpreter: Path | None

    @property
    def target(self) -> str:
        """The folder of its pyzmq, as `reenact.pyzmq` looks for it."""
        return "py{}{}-{}".format(*self.python, self.system)

    def __str__(self) -> str:
        by = "" if self.interpreter else ", by its version"
        return "Nuke {} ({}), Python {}.{}{}".format(self.version, self.program, *self.python, by)


# --- where it is -------------------------------------------------------------------------------


def find() -> list[Nuke]:
    """Returns Nuke 14 to 17, the oldest first.

    It is looked for in the usual places of Linux, Windows and macOS, and on PATH and NUKE_PATH.
    """
    found = {nuke.program: nuke for path in _places() if (nuke := at(path))}
    return sorted(found.values(), key=lambda n: [int(d) for d in re.findall(r"\d+", n.version)])


def _places() -> Iterator[Path]:
    roots: list[str | Path] = [
        "/usr/local",
        "/opt",
        "/opt/foundry",
        "/opt/Foundry",
        "/Applications",
        Path.home(),
    ]
    roots += [os.environ[key] for key in ("PROGRAMFILES", "PROGRAMW6432") if key in os.environ]
    for root in roots:
        yield from _named(FOLDER, _listing(Path(root)))
    for folder in os.get_exec_path():
        yield from _named(PROGRAM, _listing(Path(folder)))
    for entry in plugin_folders():  # of an installation, perhaps
        yield from _named(FOLDER, [entry, *entry.parents])


def plugin_folders() -> list[Path]:
    """Returns the folders in NUKE_PATH."""
    return [Path(entry) for entry in os.environ.get("NUKE_PATH", "").split(os.pathsep) if entry]


def _named(pattern: re.Pattern[str], paths: list[Path]) -> list[Path]:
    return [path for path in paths if pattern.fullmatch(path.name)]


def _listing(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []


def at(path: Path) -> Nuke | None:
    """Returns the Nuke 14 to 17 of an installation's folder, macOS application or program."""
    path = path.resolve()
    if path.is_file():
        programs = [path]
    else:
        folders = [path, path / "Contents/MacOS", *sorted(path.glob("Nuke*.app/Contents/MacOS"))]
        programs = [program for folder in folders for program in _listing(folder)]
    for program in programs:
        match = PROGRAM.fullmatch(program.name)
        if match and int(match[1]) in PYTHONS:
            return _describe(program, match)
    return None


def _describe(program: Path, match: re.Match[str]) -> Nuke:
    folder, short = program.parent, f"{match[1]}.{match[2]}"
    full = re.findall(rf"{re.escape(short)}v\d+", str(folder))
    mac = folder.parts[-2:] == ("Contents", "MacOS")
    system = "win32" if match[3] else "darwin" if mac else "linux"
    python, interpreter = PYTHONS[int(match[1])], None
    if system == sys.platform:
        for candidate in (file for name in INTERPRETERS for file in sorted(folder.glob(name))):
            answer = _run(candidate, "import sys; print(*sys.version_info[:2])")
            if not answer.returncode:
                major, minor = answer.stdout.split()
                python, interpreter = (int(major), int(minor)), candidate
                break
    return Nuke(program, full[-1] if full else short, system, python, interpreter)


def _run(interpreter: Path, code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs code in an interpreter, without any user's packages or ours.

    It takes no licence of Nuke, since it does not import nuke.
    """
    command = [str(interpreter), "-I", "-c", code, *arguments]
    try:
        return subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return subprocess.CompletedProcess(command, 1, "", str(error))


# --- its pyzmq ---------------------------------------------------------------------------------


def vendor_folder(env: Environment) -> Path:
    """Returns the folder in which the plugin looks for its pyzmq."""
    return env.root / "nuke_plugin" / "reenact" / "vendor"


def pyzmq_version(env: Environment, nuke: Nuke) -> str:
    """Returns the version of pyzmq that constraints.txt pins for a Nuke's Python."""
    text = (env.root / "constraints.txt").read_text(encoding="utf-8")
    return parse_pins(text, nuke.python)["pyzmq"]


def problem(env: Environment, nuke: Nuke) -> str:
    """Returns why the pyzmq of a Nuke is not in place beside the plugin; "" if it is."""
    return check_pyzmq(vendor_folder(env) / nuke.target, nuke, pyzmq_version(env, nuke))


def check_pyzmq(folder: Path, nuke: Nuke, version: str) -> str:
    """Returns why the pyzmq in a folder is not the one for a Nuke; "" if it is.

    Its tags must be those of Nuke's Python and system, and where that Python runs here, it must
    load there.
    """
    try:
        text = (folder / f"pyzmq-{version}.dist-info" / "WHEEL").read_text(encoding="utf-8")
    except OSError:
        return f"there is no pyzmq {version} in {folder}"
    tags = re.findall(r"^Tag: (\S+)", text, re.M)
    abi = "cp{}{}".format(*nuke.python)
    if not {f"{abi}-{abi}-{platform}" for platform in PLATFORMS[nuke.system]} & set(tags):
        return f"the pyzmq in {folder} is for another Python or system: {', '.join(tags)}"
    if nuke.interpreter:
        done = _run(nuke.interpreter, IMPORTS, str(folder))
        if done.returncode:
            lines = done.stderr.strip().splitlines() or [f"code {done.returncode}"]
            return f"the pyzmq in {folder} does not load in {nuke.interpreter}: {lines[-1]}"
    return ""


# --- the line in init.py -----------------------------------------------------------------------


def user_init() -> Path:
    """Returns the init.py of this user. Nuke looks where HOME leads first, on Windows too."""
    return Path(os.environ.get("HOME") or Path.home()) / ".nuke" / "init.py"


def plugin_line(env: Environment) -> str:
    """Returns the line that leads Nuke to the plugin, in ASCII and with forward slashes."""
    return f"nuke.pluginAddPath({(env.root / 'nuke_plugin').as_posix()!a})"


def with_line(content: bytes | None, line: str) -> bytes:
    """Returns an init.py with the line in it, once, at its end or where an older one was.

    All other bytes stay, in whatever encoding and with whatever line ends. Where the file did not
    end in a line end, or was not there (None), the added line has none either: `without_line` tells
    by that what was there before.
    """
    ours = line.encode("ascii") + MARK
    if content is None:
        return ours
    if older := LINE.search(content):
        after = LINE.sub(b"", content[older.end() :])
        return content[: older.start()] + ours + older[2] + after
    newline = (NEWLINE.findall(content) or [b"\n"])[-1]
    if not content or content.endswith((b"\r", b"\n")):
        return content + ours + newline
    return content + newline + ours


def without_line(content: bytes) -> bytes | None:
    """Returns an init.py as it was before `with_line`; None: there was none."""
    if not (ours := LINE.search(content)):
        return content
    before, after = content[: ours.start()], content[ours.end() :]
    if ours[2]:
        return before + after
    return re.sub(rb"(\r\n|\r|\n)\Z", b"", before) if before else None


def line_in(content: bytes | None) -> str:
    """Returns the line of ours in an init.py, without its mark; "" if it has none."""
    ours = LINE.search(content or b"")
    return ours[1].decode("ascii", "replace") if ours else ""


def lines() -> dict[Path, str]:
    """Returns the lines of ours in the init.py files that Nuke runs for this user."""
    found = {}
    for init in (user_init(), *(folder / "init.py" for folder in plugin_folders())):
        with contextlib.suppress(OSError):
            found[init] = line_in(read(init))
    return {init: line for init, line in found.items() if line}


def read(init: Path) -> bytes | None:
    """Returns the content of an init.py; None if there is none."""
    try:
        return init.read_bytes()
    except FileNotFoundError:
        return None
