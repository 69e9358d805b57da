"""Where Reenact's environment is, what belongs in it, and whether it is all there.

Standard library only: this runs before anything is installed.
"""

import hashlib
import json
import os
import re
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

PIN = re.compile(r'([\w.-]+)==([^\s;]+)(?:\s*;\s*python_version\s*(<|>=)\s*"3\.(\d+)")?', re.ASCII)


def canonical(name: str) -> str:
    """Returns a distribution's name in the one spelling that indexes compare (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def base_version(version: str) -> str:
    """Returns a version without its local part: "2.13.0+cu130" is "2.13.0" (PEP 440)."""
    return version.partition("+")[0]


@dataclass(frozen=True)
class Environment:
    """The virtual environment of the checkout at `root`."""

    root: Path

    @property
    def venv(self) -> Path:
        return self.root / ".venv"

    @property
    def python(self) -> Path:
        return self.script("python")

    @property
    def site_packages(self) -> Path:
        if os.name == "nt":
            return self.venv / "Lib" / "site-packages"
        major, minor = self.python_version() or sys.version_info[:2]
        return self.venv / "lib" / f"python{major}.{minor}" / "site-packages"

    @property
    def stamp(self) -> Path:
        return self.venv / "reenact-install.json"

    @property
    def log(self) -> Path:
        return self.venv / "install.log"

    @property
    def lock(self) -> Path:
        return self.root / ".venv.lock"  # beside .venv: making that anew must not free the lock

    def script(self, name: str) -> Path:
        """Returns the path of a program that the environment holds, such as "reenact"."""
        if os.name == "nt":
            return self.venv / "Scripts" / f"{name}.exe"
        return self.venv / "bin" / name

    def python_version(self) -> tuple[int, int] | None:
        """Returns the (major, minor) that made the environment; None if it is not complete."""
        try:
            text = (self.venv / "pyvenv.cfg").read_text(encoding="utf-8")
        except OSError:
            return None
        found = re.search(r"^version(?:_info)?\s*=\s*(\d+)\.(\d+)", text, re.M)
        if not found or not self.python.exists():
            return None
        return int(found[1]), int(found[2])

    def variables(self) -> dict[str, str]:
        """Returns os.environ for its programs, without what leads Python elsewhere."""
        leading_elsewhere = {"PYTHONPATH", "PYTHONHOME", "__PYVENV_LAUNCHER__"}
        kept = {k: v for k, v in os.environ.items() if k not in leading_elsewhere}
        return {**kept, "PYTHONUTF8": "1"}

    def pins(self) -> dict[str, str]:
        """Returns constraints.txt as {canonical name: version} for the environment's Python."""
        text = (self.root / "constraints.txt").read_text(encoding="utf-8")
        return parse_pins(text, self.python_version() or sys.version_info[:2])

    def installed(self) -> dict[str, str]:
        """Returns every distribution in the environment as {canonical name: version}."""
        found = metadata.distributions(path=[str(self.site_packages)])
        return {
            canonical(dist.metadata["Name"]): dist.version
            for dist in found
            if dist.metadata["Name"] and dist.metadata["Version"]  # else cut short by a kill
        }


def parse_pins(text: str, python: tuple[int, int]) -> dict[str, str]:
    """Reads the lines `name==version [; python_version <|>= "3.N"]` that hold for `python`.

    Raises:
        ValueError: a line has another form: constraints.txt pins exact versions only.
    """
    pins = {}
    for raw in text.splitlines():
        line = raw.partition("#")[0].strip()
        if not line:
            continue
        match = PIN.fullmatch(line)
        if not match:
            raise ValueError(f'constraints.txt: "{line}" does not pin an exact version')
        name, version, operator, minor = match.groups()
        if operator is None or (python >= (3, int(minor))) == (operator == ">="):
            pins[canonical(name)] = version
    return pins


def fingerprint(env: Environment) -> str:
    """Returns a hash of everything that an installation follows from.

    The folder counts, since an editable installation and its scripts hold absolute paths.
    """
    parts = [repr((str(env.root), env.python_version())).encode()]
    parts += [(env.root / name).read_bytes() for name in ("constraints.txt", "pyproject.toml")]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()


def read_stamp(env: Environment) -> dict | None:
    """Returns what the last finished installation wrote; None where none finished."""
    try:
        stamp = json.loads(env.stamp.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    keys = {"fingerprint", "extras", "packages"}
    return stamp if isinstance(stamp, dict) and keys <= set(stamp) else None


def write_stamp(env: Environment, extras: set[str]) -> None:
    """Records a finished installation, atomically."""
    stamp = {
        "fingerprint": fingerprint(env),
        "extras": sorted(extras),
        "packages": env.installed(),
    }
    temporary = env.stamp.with_suffix(".tmp")
    with open(temporary, "w", encoding="utf-8") as file:
        json.dump(stamp, file, indent=1, sort_keys=True)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, env.stamp)


def why_outdated(env: Environment, extras: set[str]) -> str | None:
    """Returns why an installation with these extras has work to do; None if all is in place.

    A torch or torchvision of the same version in another build (CUDA, ROCm, CPU) is in place.
    """
    if env.python_version() is None:
        return "there is no complete environment" if env.venv.exists() else "nothing is installed"
    stamp = read_stamp(env)
    if stamp is None:
        return "the last installation did not finish"
    if stamp["fingerprint"] != fingerprint(env):
        return "constraints.txt, pyproject.toml or the folder changed since"
    if not extras <= set(stamp["extras"]):
        return "the test tools are not installed"
    installed = env.installed()
    for name, version in stamp["packages"].items():
        now = installed.get(name)
        if now is None:
            return f"{name} {version} is gone"
        if base_version(now) != base_version(version):
            return f"{name} is {now} now, {version} was installed"
    return None


def damaged(env: Environment) -> list[Path]:
    """Returns the .dist-info folders of distributions that are not complete, as a killed pip leaves
    them.

    Packages that share a folder (both OpenCVs) overwrite each other's files: a file is sound if
    its size is the one that any of its owners recorded.
    """
    owners: dict[Path, list[tuple[Path, int]]] = {}
    found = []
    for info in sorted(env.site_packages.glob("*.dist-info")):
        files = metadata.Distribution.at(info).files
        if not files or not (info / "METADATA").is_file():
            found.append(info)
            continue
        for file in files:
            if file.size is not None and file.suffix != ".pyc":  # Python rewrites those
                path = Path(os.path.normpath(env.site_packages / file))
                owners.setdefault(path, []).append((info, file.size))
    for path, claims in owners.items():
        try:
            size = path.stat().st_size
        except OSError:
            size = -1
        if all(size != recorded for _, recorded in claims):
            found += [info for info, _ in claims if info not in found]
    return found
