"""Runs a module of Reenact in a process of its own that takes nobody else's files for modules.

    python -I server/start.py MODULE ARGUMENTS

With -I Python ignores its variables, the current folder and the user's packages: a `server.py`
there, or a `core/` on PYTHONPATH, is not imported. Standard library only.
"""

import os
import runpy
import sys


def command(module: str, *arguments: str) -> list[str]:
    """Returns the command that runs a module of Reenact with this Python, isolated."""
    return [sys.executable, "-I", os.path.abspath(__file__), module, *arguments]


if __name__ == "__main__":
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    # Last: an installed package's neighbours must not shadow the standard library.
    sys.path += [root, os.path.join(root, "nuke_plugin")]
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
