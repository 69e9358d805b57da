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
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from server.install import doctor, nuke_installer
from server.install.environment import (
    Environment,
    base_version,
    damaged,
    why_outdated,
    write_stamp,
)
from server.install.pip import (
    CUDA_GIB,
    InstallError,
    advice,
    again,
    installation_lock,
    isolate_command,
    isolated,
    make_environment,
    pip,
    succeeds,
)

STEPS = ("virtual environment", "pip", "packages", "check")
LEAST_GIB = 3  # with a CPU build of torch
PINNED_TORCH = ("torch", "torchvision")
INTERRUPTED = 130


def main(arguments: list[str], usage: str) -> int:
    """Runs one command of install.py and returns its exit code."""
    env = Environment(Path(__file__).resolve().parents[2])
    command, *rest = arguments or ["install"]
    if command in ("-h", "--help", "help"):
        print(usage)
        return 0
    if command == "doctor" and rest in ([], ["--json"]):
        return print_findings(env, as_json=bool(rest))
    if command not in ("install", "nuke", "demo", "test") or (command == "install" and rest):
        print(usage, file=sys.stderr)
        return 2

    try:
        if command == "nuke":
            nuke_installer.main(env, rest)
            return 0
        install(env, {"dev"} if command == "test" else set())
        if command == "install":
            nuke_installer.prompt_install(env)
        if command == "demo":
            return run([str(env.script("reenact")), "demo", *rest], env, Path.cwd())
        if command == "test":
            return run_tests(env, rest)
    except InstallError as error:
        explain(error, env)
        return 1
    except KeyboardInterrupt:
        again = " ".join([doctor.install_line(), *arguments])
        print(f"\nInterrupted. What is finished is kept; go on with: {again}", file=sys.stderr)
        return INTERRUPTED
    return 0


def run(command: list[str], env: Environment, folder: Path) -> int:
    """Runs a program of the environment in a folder; returns its exit code."""
    sys.stdout.flush()
    return subprocess.run(command, cwd=folder, env=env.variables(), check=False).returncode


# Has numba compile what draws synthetic people; it is kept beside the sources.
COMPILE_PERFORMER = """
from core.synthetic import performer
face = performer.random_identity(0)
face[[performer.INDEX["glasses"], performer.INDEX["hair_amount"]]] = 1
performer.render(face, 64)
"""


def run_tests(env: Environment, arguments: list[str]) -> int:
    """Runs ruff, mypy, then pytest, whose closing line is the last; returns the first fault's code.

    The whole suite runs on all cores; with arguments it is one process, that a debugger can enter.
    """
    python = str(env.python)
    # One worker more than cores, for tests that wait. A file's tests share what takes long to make.
    workers = (os.cpu_count() or 1) + 1
    arguments = arguments or ["-n", f"{workers}", "--dist", "loadfile", "--no-loadscope-reorder"]
    checks = (["ruff", "check", "."], ["ruff", "format", "--check", "."], ["mypy"])
    # Meanwhile, and once: every worker of pytest would compile it for half a minute.
    with subprocess.Popen([python, "-c", COMPILE_PERFORMER], cwd=env.root, env=env.variables()):
        codes = [run([python, "-m", *command], env, env.root) for command in checks]
    codes.append(run([python, "-m", "pytest", *arguments], env, env.root))
    return next((code for code in codes if code), 0)


def print_findings(env: Environment, as_json: bool) -> int:
    """Prints the doctor's findings; returns 0 if nothing that is needed is missing."""
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
        InstallError: a step failed; its message says what to do, and a further call goes on.
    """
    with installation_lock(env) as lock:
        reason = outdated_here(env, extras)
        if reason is None:
            isolate_command(env)  # an installation of a version before did not
            return
        print(f"Installing Reenact into {env.venv}: {reason}.", flush=True)
        begun = time.monotonic()
        with step(1):
            check_disk(env)
            make_environment(env)
            extras = extras | recorded_extras(env)
            env.stamp.unlink(missing_ok=True)
        with step(2):
            torch = installed_torch(env)  # first: a repair would remove a damaged one unasked
            remove_damaged(env)
            prepare_pip(env, lock)
        with step(3):
            target = f".[{','.join(sorted(extras))}]" if extras else "."
            # No compiling: a package without a wheel for this machine is a clear fault at once.
            options = ["--only-binary", ":all:", "--no-build-isolation", "-c", "constraints.txt"]
            options += ["--resume-retries", "20", "--progress-bar", "raw"]
            pip(env, lock, "install", *options, "-e", target)
            isolate_command(env)
        with step(4):
            verify(env, torch)
            write_stamp(env, extras)
        print(f"Reenact is installed ({time.monotonic() - begun:.0f} s).", flush=True)


def outdated_here(env: Environment, extras: set[str]) -> str | None:
    """Returns why there is work to do; an environment of another Python is outdated too."""
    version = env.python_version()
    if version and version != sys.version_info[:2]:
        return "it was made by Python {}.{} and this is {}.{}".format(
            *version, *sys.version_info[:2]
        )
    return why_outdated(env, extras)


def recorded_extras(env: Environment) -> set[str]:
    """Returns the extras of the last installation, which stay in step with the constraints."""
    try:
        return set(json.loads(env.stamp.read_text(encoding="utf-8"))["extras"])
    except (OSError, ValueError, KeyError, TypeError):
        return set()


@contextlib.contextmanager
def step(number: int) -> Iterator[None]:
    """Prints a step's title and its time; an error inside names the step."""
    title = STEPS[number - 1]
    print(f"[{number}/{len(STEPS)}] {title}", flush=True)
    begun = time.monotonic()
    try:
        yield
    except InstallError as error:
        error.step = title
        raise
    except OSError as error:
        broken = InstallError(str(error), advice(str(error))[1])
        broken.step = title
        raise broken from error
    print(f"      done in {time.monotonic() - begun:.1f} s", flush=True)


def explain(error: InstallError, env: Environment) -> None:
    """Prints what failed, and what to do about it."""
    where = f'Step "{error.step}" failed: ' if error.step else ""
    lines = [f"\n{where}{error.what}", f"What to do: {error.mend}"]
    if error.excerpt:
        lines += ["What pip said:", *(f"    {line}" for line in error.excerpt)]
        lines += [f"The whole log: {env.log}"]
    print("\n".join(lines), file=sys.stderr, flush=True)


def check_disk(env: Environment) -> None:
    """
    Raises:
        InstallError: there is too little room for the packages.
    """
    if "torch" in env.installed():
        return
    free = shutil.disk_usage(env.root).free / doctor.GIB
    if free < LEAST_GIB:
        raise InstallError(
            f"{free:.1f} GiB are free on the disk of {env.root}; at least {LEAST_GIB} are needed, "
            f"{CUDA_GIB} with a CUDA build of torch",
            "free some there, or move the checkout to a larger disk",
        )
    if free < CUDA_GIB and sys.platform == "linux":
        print(f"      only {free:.0f} GiB are free: a CUDA build of torch needs {CUDA_GIB}")


def remove_damaged(env: Environment) -> None:
    """Removes half-written packages, for pip trusts any .dist-info folder that it finds."""
    for leftover in env.site_packages.glob("~*"):  # what pip renames while it replaces a package
        shutil.rmtree(leftover, ignore_errors=True)
    for info in damaged(env):
        print(f"      {info.name.removesuffix('.dist-info')} is not complete: installing it again")
        shutil.rmtree(info)


def prepare_pip(env: Environment, lock: int) -> None:
    """Makes pip run in the environment, and brings it and setuptools to the pinned versions."""
    if not succeeds([*isolated(env), "-m", "pip", "--version"], env):
        for remains in env.site_packages.glob("pip*"):
            shutil.rmtree(remains)
        if not succeeds([*isolated(env), "-m", "ensurepip"], env):
            raise InstallError("pip does not start in .venv", f"delete {env.venv}, {again()}")
    installed, pins = env.installed(), env.pins()
    wanted = [f"{name}=={pins[name]}" for name in ("pip", "setuptools")]
    if any(installed.get(name) != pins[name] for name in ("pip", "setuptools")):
        pip(env, lock, "install", "--upgrade", *wanted)


def installed_torch(env: Environment) -> dict[str, str]:
    """Returns the versions of torch and torchvision that are there; builds of the pinned ones stay.

    Raises:
        InstallError: one has another version. It may be somebody's choice, so it is not replaced.
    """
    installed, pins = env.installed(), env.pins()
    present = {name: installed[name] for name in PINNED_TORCH if name in installed}
    for name, version in present.items():
        if base_version(version) != pins[name]:
            raise InstallError(
                f"{name} {version} is installed in {env.venv}, and Reenact is tested with "
                f"{pins[name]}; install.py never replaces it by itself",
                f"{shlex.quote(str(env.python))} -m pip uninstall -y {' '.join(PINNED_TORCH)}, "
                + again(),
            )
    return present


def verify(env: Environment, torch_before: dict[str, str]) -> None:
    """Checks the packages as the doctor does, and that torch is the one that was there, or pinned.

    Raises:
        InstallError: a package does not work, or torch was replaced.
    """
    installed, pins = env.installed(), env.pins()
    for name in PINNED_TORCH:
        version = installed.get(name, "none")
        if base_version(version) != pins[name] or torch_before.get(name, version) != version:
            wanted = torch_before.get(name, pins[name])
            raise InstallError(
                f"{name} is {version} now, not {wanted}", f"delete {env.venv}, {again()}"
            )
    for check in doctor.inside(env):
        if check.state == "missing":
            raise InstallError(f"{check.name}: {check.found}", f"{check.mend}, {again()}")
        print(f"      {check.name}: {check.found}", flush=True)
