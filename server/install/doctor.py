"""`install.py doctor`: what is there, what is missing, and the exact line that mends it.

It has two halves: `outside` looks at the machine with the standard library alone, so it works
before anything is installed; `python -m server.install.doctor` runs `inside` the environment and
prints one JSON line per check, so that a library that crashes takes no finished line with it.
"""

import hashlib
import importlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from server.install import nuke
from server.install.environment import Environment, base_version, why_outdated

GIB = 2**30
FREE_GIB = 3  # an installation with a CPU build of torch takes 2.5
ALEXNET = "alexnet-owt-7be5be79.pth"  # the name ends in the first digits of its SHA-256
FACE_MODELS = (
    "face_landmark/face_landmark_with_attention.tflite",
    "face_landmark/face_landmark.tflite",
    "face_detection/face_detection_short_range.tflite",
)
# Shared library -> its package on (Debian and Ubuntu, Rocky and Fedora).
SYSTEM_PACKAGES = {
    "libGL.so.1": ("libgl1", "mesa-libGL"),
    "libEGL.so.1": ("libegl1", "mesa-libEGL"),
    "libglib-2.0.so.0": ("libglib2.0-0", "glib2"),
    "libgthread-2.0.so.0": ("libglib2.0-0", "glib2"),
    "libSM.so.6": ("libsm6", "libSM"),
    "libICE.so.6": ("libice6", "libICE"),
    "libXext.so.6": ("libxext6", "libXext"),
    "libXrender.so.1": ("libxrender1", "libXrender"),
    "libX11.so.6": ("libx11-6", "libX11"),
    "libgomp.so.1": ("libgomp1", "libgomp"),
    "libstdc++.so.6": ("libstdc++6", "libstdc++"),
}


@dataclass(frozen=True)
class Check:
    """One thing looked at.

    state: "ok"; "warning": Reenact runs without it; "missing": it does not.
    found: what is there, in words. mend: the line to run or what to do, "" if nothing.
    details: the same as plain values, for scripts.
    """

    name: str
    state: Literal["ok", "warning", "missing"]
    found: str
    mend: str = ""
    details: dict[str, Any] = field(default_factory=dict)


def diagnose(env: Environment) -> Iterator[Check]:
    """Yields every check, the machine's first; inside the environment only where one runs."""
    yield check_python()
    yield check_environment(env)
    if env.python_version():
        yield from inside(env)
    else:
        for name in INSIDE:
            yield Check(name, "missing", "not installed", install_line())
    yield from check_nuke(env)
    yield check_disk(env)


def healthy(checks: list[Check]) -> bool:
    """Returns whether nothing that is needed is missing."""
    return all(check.state != "missing" for check in checks)


def install_line() -> str:
    """Returns the line that installs Reenact on this system."""
    return "py -3.11 install.py" if os.name == "nt" else "python3 install.py"


# --- outside -----------------------------------------------------------------------------------


def check_python() -> Check:
    """Checks the version of the Python that runs this."""
    version = ".".join(map(str, sys.version_info[:3]))
    details = {"version": version, "executable": sys.executable}
    if (3, 10) <= sys.version_info[:2] <= (3, 12):
        return Check("python", "ok", f"{version} ({sys.executable})", details=details)
    mend = "run install.py with Python 3.10, 3.11 or 3.12"
    return Check("python", "missing", f"{version}, 3.10 to 3.12 needed", mend, details)


def check_environment(env: Environment) -> Check:
    """Checks that there is an environment, and that it is up to date."""
    reason = why_outdated(env, set())
    version = env.python_version()
    details = {"path": str(env.venv), "current": reason is None, "python": version}
    if reason is None and version:
        found = f"{env.venv} (Python {version[0]}.{version[1]}), current"
        return Check("environment", "ok", found, details=details)
    state: Literal["warning", "missing"] = "warning" if version else "missing"
    return Check("environment", state, f"{env.venv}: {reason}", install_line(), details)


def check_nuke(env: Environment) -> Iterator[Check]:
    """Checks which Nukes are there, the pyzmq of each, and the line in init.py for the plugin."""
    nukes = nuke.find()
    path = os.environ.get("NUKE_PATH", "")
    details: dict[str, Any] = {"found": [str(one.program) for one in nukes], "NUKE_PATH": path}
    if not nukes:
        found = f"not found: only needed on artists' machines (NUKE_PATH {path or 'not set'})"
        yield Check("nuke", "warning", found, "", details)
    else:
        shown = f"{'; '.join(map(str, nukes))}; NUKE_PATH {path or 'not set'}"
        yield Check("nuke", "ok", shown, "", details)
    yield check_nuke_pyzmq(env, nukes)
    yield check_nuke_init(env, bool(nukes))


def check_nuke_pyzmq(env: Environment, nukes: list[nuke.Nuke]) -> Check:
    """Checks that each Nuke has a pyzmq that loads in its Python."""
    problems = {one.version: nuke.problem(env, one) for one in nukes}
    wrong = [f"Nuke {version}: {why}" for version, why in problems.items() if why]
    details = {"trouble": problems}
    if wrong:
        return Check("nuke-pyzmq", "warning", "; ".join(wrong), f"{install_line()} nuke", details)
    there = ", ".join(sorted({one.target for one in nukes})) or "no Nuke to have it"
    return Check("nuke-pyzmq", "ok", there, "", details)


def check_nuke_init(env: Environment, needed: bool) -> Check:
    """Checks that an init.py leads Nuke to the plugin."""
    wanted, lines = nuke.plugin_line(env), nuke.lines()
    details = {"lines": {str(init): line for init, line in lines.items()}}
    leading = [str(init) for init, line in lines.items() if line == wanted]
    if leading:
        found = f"{', '.join(leading)} leads to the plugin"
        return Check("nuke-init", "ok", found, "", details)
    if lines:
        found = "; ".join(f"{init} leads elsewhere: {line}" for init, line in lines.items())
    else:
        found = f"no line that leads to the plugin in {nuke.user_init()}, nor on NUKE_PATH"
    if not (needed or lines):
        return Check("nuke-init", "ok", found, "", details)
    return Check("nuke-init", "warning", found, f"{install_line()} nuke", details)


def check_disk(env: Environment) -> Check:
    """Checks the room on the checkout's disk."""
    free = shutil.disk_usage(env.root).free
    found = f"{free / GIB:.0f} GiB free on the disk of {env.root}"
    details = {"free_bytes": free}
    if free >= FREE_GIB * GIB:
        return Check("disk", "ok", found, details=details)
    return Check("disk", "warning", found, f"free {FREE_GIB} GiB or more there", details)


def inside(env: Environment) -> Iterator[Check]:
    """Runs this module in the environment and yields its checks as they come."""
    command = [str(env.python), "-m", "server.install.doctor"]
    process = subprocess.Popen(
        command,
        cwd=env.root,
        env=env.variables(),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        encoding="utf-8",
    )
    assert process.stdout
    waiting = list(INSIDE)
    for line in process.stdout:
        if line.startswith('{"name"'):  # a library may print a line of its own
            yield Check(**json.loads(line))
            waiting.pop(0)
    code = process.wait()
    for position, name in enumerate(waiting):
        found = f"Python ended with code {code} at this check" if position == 0 else "not reached"
        yield Check(name, "missing", found, install_line())


# --- inside ------------------------------------------------------------------------------------


def check_torch() -> Check:
    """Checks torch, and that it uses the NVIDIA card if there is one."""
    import torch

    details: dict[str, Any] = {"version": torch.__version__, "cuda": torch.cuda.is_available()}
    details["devices"] = [
        {"name": p.name, "memory_bytes": p.total_memory}
        for p in map(torch.cuda.get_device_properties, range(torch.cuda.device_count()))
    ]
    if details["cuda"]:
        cards = [f"{d['name']}, {d['memory_bytes'] / GIB:.0f} GiB" for d in details["devices"]]
        return Check("torch", "ok", f"{torch.__version__}, CUDA: {'; '.join(cards)}", "", details)
    if not (shutil.which("nvidia-smi") or Path("/dev/nvidiactl").exists()):
        return Check("torch", "ok", f"{torch.__version__}, CPU only", "", details)
    if torch.version.cuda:
        found = f"{torch.__version__}, but the NVIDIA driver does not offer CUDA"
        mend = f"nvidia-smi   # then a driver for CUDA {torch.version.cuda} or newer"
    else:
        found = f"{torch.__version__} is a CPU build, and this machine has an NVIDIA card"
        mend = (
            f"the line of pytorch.org/get-started/locally for your CUDA, begun with {pip()} "
            f"and with torch=={base_version(torch.__version__)}"
        )
    return Check("torch", "warning", found, mend, details)


def check_torchvision() -> Check:
    """Checks that it was made for the torch beside it (it requires an exact version)."""
    torch, vision = metadata.version("torch"), metadata.version("torchvision")
    details: dict[str, Any] = {"version": vision, "torch": torch}
    requires = re.findall(
        r"^torch\b\W*==\s*([\w.]+)", "\n".join(metadata.requires("torchvision") or []), re.M
    )
    if requires and requires[0] != base_version(torch):
        found = f"{vision} is made for torch {requires[0]}, and torch is {torch}"
        return Check("torchvision", "missing", found, reinstall("torch", "torchvision"), details)
    try:
        importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
        details["operators"] = False
        found = (
            f"{vision}; its compiled operators do not load beside torch {torch}: not needed here"
        )
        return Check("torchvision", "ok", found, details=details)
    details["operators"] = True
    return Check("torchvision", "ok", vision, details=details)


def check_opencv() -> Check:
    """Checks that both OpenCV packages, which share a folder, have one version."""
    import cv2

    names = ("opencv-python", "opencv-contrib-python")
    versions = {name: metadata.version(name) for name in names}
    details = {"version": cv2.__version__, **versions}
    if len(set(versions.values())) > 1:
        found = "; ".join(f"{k} {v}" for k, v in versions.items()) + ": they share the folder cv2"
        return Check("opencv", "missing", found, reinstall(*names), details)
    return Check("opencv", "ok", cv2.__version__, details=details)


def check_mediapipe() -> Check:
    """Checks mediapipe's model files alone: Reenact never imports mediapipe itself to track."""
    version = metadata.version("mediapipe")
    modules = Path(str(metadata.distribution("mediapipe").locate_file("mediapipe/modules")))
    absent = [name for name in FACE_MODELS if not (modules / name).is_file()]
    details = {"version": version, "models": str(modules), "absent": absent}
    if absent:
        found = f"{version} without {', '.join(absent)}"
        return Check("mediapipe", "missing", found, reinstall("mediapipe"), details)
    return Check("mediapipe", "ok", f"{version}, {len(FACE_MODELS)} face models", "", details)


def check_colour() -> Check:
    """Checks OpenImageIO, and that the OCIO config can be read."""
    import OpenImageIO

    version = metadata.version("OpenImageIO")
    chosen = os.environ.get("OCIO", "")
    details = {"version": version, "OCIO": chosen}
    if zipfile.is_zipfile(chosen):  # OpenImageIO 3.0's own OCIO crashes on it
        error = f"{chosen} is an archive (.ocioz); unpack it, and name the config.ocio inside"
    else:
        config = OpenImageIO.ColorConfig(chosen or "ocio://default")
        error = config.geterror()
        details["config"] = config.configname()
    if error:
        unset = "set OCIO=" if os.name == "nt" else "unset OCIO"
        mend = f"{unset}   # or name a config that can be read"
        return Check("colour", "warning", f"OpenImageIO {version}; OCIO: {error}", mend, details)
    origin = f"OCIO {chosen}" if chosen else "built-in OCIO config (OCIO not set)"
    return Check("colour", "ok", f"OpenImageIO {version}, {origin}", details=details)


def check_video() -> Check:
    """Checks the decoders and encoders that PyAV was built with."""
    import av

    wanted = [("h264", "r"), ("prores", "r"), ("dnxhd", "r"), ("libx264", "w")]
    absent = []
    for name, mode in wanted:
        try:
            av.Codec(name, "r" if mode == "r" else "w")
        except ValueError:  # av.codec.codec.UnknownCodecError
            absent.append(f"{name} {'decoder' if mode == 'r' else 'encoder'}")
    version = metadata.version("av")
    details = {"version": version, "absent": absent}
    if absent:
        found = f"av {version} without {', '.join(absent)}: such mov and mp4 files cannot be used"
        return Check("video", "warning", found, reinstall("av"), details)
    return Check("video", "ok", f"av {version}, H.264 in and out, ProRes, DNxHD", "", details)


def check_lpips() -> Check:
    """Checks lpips, and the weights of its trunk."""
    import torch

    version = metadata.version("lpips")
    path = Path(torch.hub.get_dir()) / "checkpoints" / ALEXNET
    details = {"version": version, "weights": str(path)}
    fetch = (
        f'{python()} -c "from torchvision.models import alexnet; '
        "alexnet(weights='IMAGENET1K_V1')\""
    )
    mend = f"{fetch}   # with internet; without, run it elsewhere and copy the file to {path}"
    without = "not needed until characters are trained"
    if not path.is_file():
        return Check("lpips", "warning", f"{version}, no trunk weights: {without}", mend, details)
    with open(path, "rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    if not digest.hexdigest().startswith(path.stem.rpartition("-")[2]):
        found = f"{version}, trunk weights damaged: {without}"
        return Check("lpips", "warning", found, f"delete {path}, then {mend}", details)
    return Check("lpips", "ok", f"{version}, trunk weights {path}", "", details)


def check_server() -> Check:
    """Checks what Nuke will meet: this user's key, and a server. None is started."""
    from reenact import protocol
    from reenact.client import Client, ServerError, find_server, home

    details: dict[str, Any] = {"home": str(home())}
    try:
        endpoint, _ = find_server()
        details["endpoint"] = endpoint
        if not endpoint:
            found = f"none runs for {home()}: the first command that needs one starts it"
            return Check("server", "ok", found, "", details)
        with Client("doctor", deadline=3) as client:
            details["version"] = client.ask(protocol.Health())["server"]
    except ServerError as error:
        return Check("server", "warning", str(error), "", details)
    return Check("server", "ok", f"{endpoint} answers, version {details['version']}", "", details)


def check_clip() -> Check:
    """Checks CLIP, which styles by sentences need; where it is missing, says how to get it."""
    from core.stylize import clip_model

    here = [name for name in clip_model.MODELS if clip_model.is_installed(name)]
    absent = [name for name in clip_model.DEFAULT if name not in here]
    details: dict[str, Any] = {"version": None, "models": here, "absent": absent}
    without = "styles by --program and --pictures work without"
    try:
        details["version"] = metadata.version("open_clip_torch")
    except metadata.PackageNotFoundError:
        mend = f"{pip()} install -c constraints.txt open_clip_torch"
        return Check("clip", "warning", f"open_clip is not installed: {without}", mend, details)
    found = f"open_clip {details['version']}"
    if absent:
        mend = " && ".join(clip_model.fetch_line(name, python()) for name in absent)
        mend += (
            f"   # with internet; without, elsewhere, and copy the folders to {clip_model.root()}"
        )
        return Check(
            "clip", "warning", f"{found}, no {', '.join(absent)}: {without}", mend, details
        )
    return Check("clip", "ok", f"{found}, {', '.join(here)}", "", details)


INSIDE: dict[str, Callable[[], Check]] = {
    "torch": check_torch,
    "torchvision": check_torchvision,
    "opencv": check_opencv,
    "mediapipe": check_mediapipe,
    "colour": check_colour,
    "video": check_video,
    "lpips": check_lpips,
    "server": check_server,
    "clip": check_clip,
}


def examine(name: str) -> Check:
    """Runs one check inside the environment; an error that it raises becomes its finding."""
    try:
        return INSIDE[name]()
    except metadata.PackageNotFoundError as error:
        return Check(name, "missing", f"{error.name} is not installed", install_line())
    except Exception as error:
        mend = system_library(str(error)) or install_line()
        return Check(name, "missing", f"{type(error).__name__}: {error}", mend)


def system_library(error: str) -> str | None:
    """Returns the line that installs the shared library that a failed import names, if any."""
    match = re.search(r"(lib[\w+.-]+\.so[.\d]*): cannot open shared object file", error)
    if not match:
        return None
    debian, fedora = SYSTEM_PACKAGES.get(match[1], ("", ""))
    if shutil.which("apt-get"):
        return f"sudo apt install {debian}" if debian else f"apt-file search {match[1]}"
    return f"sudo dnf install {fedora or repr('*/' + match[1])}"


def python() -> str:
    """Returns this Python, as a shell reads it."""
    return shlex.quote(sys.executable) if os.name != "nt" else f'"{sys.executable}"'


def pip() -> str:
    """Returns this Python's pip, as a shell reads it."""
    return f"{python()} -m pip"


def reinstall(*names: str) -> str:
    """Returns the line that installs packages again."""
    return f"{pip()} uninstall -y {' '.join(names)} && {install_line()}"


if __name__ == "__main__":
    for name in INSIDE:
        print(json.dumps(asdict(examine(name))), flush=True)
