"""`install.py nuke`: makes Nuke find the plugin, and the plugin its pyzmq.

Standard library only, and pip of the environment, which is made bare where there is none: an
artist's machine that asks another's server needs no more. Each step finds its own work done.
"""

import argparse
import contextlib
import shlex
import shutil
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

from core.base.files import atomic_write
from server.install import doctor, nuke
from server.install.environment import Environment
from server.install.nuke import Nuke
from server.install.pip import (
    InstallError,
    installation_lock,
    make_environment,
    pip,
    succeeds,
)

CHECK_SERVER = """
from server.frontend import home
from server.install import doctor
home.make_keys(home.home())
print(doctor.examine("server").found)
"""


def main(env: Environment, arguments: list[str]) -> None:
    """Runs `install.py nuke`.

    Raises:
        InstallError: a step failed; its message says what to do.
    """
    options = parser().parse_args(arguments)
    init = options.studio or nuke.user_init()
    if init.suffix != ".py":
        init /= "init.py"
    if options.uninstall:
        remove_line(init)
        return
    if options.studio and not init.parent.is_dir():
        raise InstallError(f"there is no folder {init.parent}", "give one that is in NUKE_PATH")
    nukes = chosen(options.nukes)
    for one in nukes:
        print(one, flush=True)
    vendor(env, nukes, options.wheels)
    if add_line(env, init, options.yes):
        report_server(env)
        print("In Nuke, started anew: Tab in the node graph, then type Reenact.")


def parser() -> argparse.ArgumentParser:
    """Returns the parser of `install.py nuke`."""
    made = argparse.ArgumentParser(
        prog="install.py nuke",
        description="Makes Nuke 14 to 17 find the plugin.",
        allow_abbrev=False,
    )
    made.add_argument(
        "nukes",
        nargs="*",
        type=Path,
        metavar="NUKE",
        help="folder or program of a Nuke; without, those in the usual places",
    )
    made.add_argument("--studio", type=Path, metavar="FOLDER", help="change its init.py, not yours")
    made.add_argument("--wheels", type=Path, metavar="FOLDER", help="take pyzmq from here: offline")
    made.add_argument("--yes", action="store_true", help="change init.py without asking")
    made.add_argument("--uninstall", action="store_true", help="take the line out of init.py")
    return made


def line() -> str:
    """Returns the line that installs the plugin into Nuke."""
    return f"{doctor.install_line()} nuke"


def chosen(paths: list[Path]) -> list[Nuke]:
    """Returns the Nukes at some paths; without any path, those that are found.

    Raises:
        InstallError: there is none.
    """
    if not paths:
        if found := nuke.find():
            return found
        raise InstallError(
            "no Nuke 14 to 17 was found", f"say where it is: {line()} /path/to/Nuke15.1v3"
        )
    found_at = {path: nuke.at(path) for path in paths}
    for path, one in found_at.items():
        if one is None:
            raise InstallError(
                f"{path} is no Nuke 14 to 17",
                "give the folder that holds its program, such as /usr/local/Nuke15.1v3",
            )
    return [one for one in found_at.values() if one]


def prompt_install(env: Environment) -> None:
    """Asks, after an installation, whether Nuke is to have the plugin, if there is one without it.

    Where nobody can be asked, it prints the line that installs it.
    """
    nukes = nuke.find()
    if not nukes or nuke.plugin_line(env) in nuke.lines().values():
        return
    names = ", ".join(one.version for one in nukes)
    if not at_terminal():
        print(f"Nuke {names}: for the nodes, {line()}")
    elif agreed(f"Nuke {names} is here. Make it find Reenact?"):
        main(env, [])


def at_terminal() -> bool:
    """Returns whether somebody is there to be asked."""
    return sys.stdin.isatty() and sys.stdout.isatty()


def agreed(question: str) -> bool:
    """Asks a question, and returns whether the answer is yes."""
    try:
        return input(f"{question} [y/n] ").strip().lower() in ("y", "yes")
    except EOFError:
        return False


# --- pyzmq -------------------------------------------------------------------------------------


def vendor(env: Environment, nukes: list[Nuke], wheels: Path | None) -> None:
    """Puts pyzmq beside the plugin, for the Python and system of each Nuke that lacks it.

    Each appears whole or not at all, and only if it loads in that Python or, where that does not
    run here, was made for it.

    Args:
        env: the environment, whose pip is used.
        nukes: that are to have it.
        wheels: a folder with wheels of pyzmq; None: the package index.

    Raises:
        InstallError: it can't be had.
    """
    folder = nuke.vendor_folder(env)
    wanted = {one.target: one for one in nukes if nuke.problem(env, one)}
    if not wanted:
        return
    if not succeeds([str(env.python), "-m", "pip", "--version"], env):
        if env.python_version():
            raise InstallError(f"pip does not start in {env.venv}", doctor.install_line())
        make_environment(env)
    with installation_lock(env) as lock:
        folder.mkdir(exist_ok=True)
        for torso in folder.glob(".py*"):  # of an installation that was killed
            shutil.rmtree(torso)
        for target, one in wanted.items():
            made = folder / f".{target}.{uuid.uuid4().hex[:8]}"
            try:
                fetch(env, lock, one, made, wheels)
                swap(made, folder / target)
            finally:
                shutil.rmtree(made, ignore_errors=True)
            print(f"      pyzmq {nuke.pyzmq_version(env, one)} for {target}", flush=True)


def fetch(env: Environment, lock: int, one: Nuke, folder: Path, wheels: Path | None) -> None:
    """Puts the pyzmq of a Nuke into a folder, and checks it.

    Raises:
        InstallError: it can't be had, or does not load.
    """
    version = nuke.pyzmq_version(env, one)
    wheel = [
        "--no-deps",
        "--only-binary",
        ":all:",
        "--implementation",
        "cp",
        "--python-version",
        "{}.{}".format(*one.python),
        "--abi",
        "cp{}{}".format(*one.python),
        *(word for name in nuke.PLATFORMS[one.system] for word in ("--platform", name)),
        f"pyzmq=={version}",
    ]
    source = ["--no-index", "--find-links", str(wheels.resolve())] if wheels else []
    try:
        pip(env, lock, "install", *source, "--no-compile", "--target", str(folder), *wheel)
    except InstallError as error:
        lacking = wheels and any("matching distribution" in text for text in error.excerpt)
        raise InstallError(
            f"{wheels} has no pyzmq {version} for {one.target}" if lacking else error.what,
            f"run {line()} again with a network; or with one elsewhere: {doctor.python()} -m pip "
            f"download -d wheels {shlex.join(wheel)}, copy wheels here: {line()} --wheels wheels",
            error.excerpt,
        ) from error
    if reason := nuke.check_pyzmq(folder, one, version):
        raise InstallError(reason, f"report it with the output of {doctor.install_line()} doctor")


def swap(made: Path, destination: Path) -> None:
    """Puts a folder in place of another, or where there is none.

    Raises:
        InstallError: a Nuke that runs holds the other one.
    """
    old = made.with_name(f"{made.name}.old")
    try:
        if destination.exists():
            destination.rename(old)
        made.rename(destination)
    except OSError as error:  # Windows: a Nuke that runs holds it
        raise InstallError(str(error), f"close Nuke, then {line()} again") from error
    shutil.rmtree(old, ignore_errors=True)


# --- init.py -----------------------------------------------------------------------------------


def add_line(env: Environment, init: Path, yes: bool) -> bool:
    """Adds the line to init.py, after asking, and returns whether it is there now.

    Raises:
        InstallError: init.py can't be changed, or nobody is there to be asked.
    """
    wanted = nuke.plugin_line(env)
    with by_hand(init, f"put this line into it by hand: {wanted}"):
        content = nuke.read(init)
        changed = nuke.with_line(content, wanted)
        if changed == content:
            print(f"{init} leads to the plugin already.")
            return True
        older = nuke.line_in(content)
        print(f"{init} needs a line{', in place of ' + older if older else ''}:\n    {wanted}")
        if not yes and not at_terminal():
            raise InstallError(
                "nobody is there to be asked; init.py was not changed", f"{line()} --yes"
            )
        if not yes and not agreed("Add it?"):
            print("Nothing was changed. The line can be put there by hand.")
            return False
        write(init, changed)
    return True


def remove_line(init: Path) -> None:
    """Takes the line out of init.py, and removes an init.py that was made for it.

    Raises:
        InstallError: init.py can't be changed.
    """
    with by_hand(init, "take the line that ends in --uninstall out by hand"):
        content = nuke.read(init)
        older = nuke.line_in(content)
        if content is None or not older:
            print(f"There is no line of Reenact's in {init}.")
            return
        write(init, nuke.without_line(content))
        print(f"Taken out of {init}: {older}")


@contextlib.contextmanager
def by_hand(init: Path, mend: str) -> Iterator[None]:
    """Turns an error of the file system into advice for the person.

    Raises:
        InstallError: init.py can't be read or changed.
    """
    try:
        yield
    except OSError as error:
        raise InstallError(f"{init} was not changed: {error}", mend) from error


def write(init: Path, content: bytes | None) -> None:
    """Replaces an init.py, whole or not at all; None removes it. A link to one stays a link."""
    init = init.resolve()
    if init.exists() and not init.stat().st_mode & 0o222:
        raise PermissionError("it is read-only")
    if content is None:
        init.unlink()
        return
    with atomic_write(init) as temporary:
        temporary.write_bytes(content)
        if init.exists():
            shutil.copymode(init, temporary)


# --- the server --------------------------------------------------------------------------------


def report_server(env: Environment) -> None:
    """Makes this user's keys where there are none, and says whether a server answers."""
    done = subprocess.run(
        [str(env.python), "-c", CHECK_SERVER],
        cwd=env.root,
        env=env.variables(),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        print(f"No server is installed here. For one: {doctor.install_line()}")
    else:
        print(f"Server: {done.stdout.strip()}")
