#!/usr/bin/env python3
"""Installs Reenact into .venv beside this file, and runs it from there.

    python3 install.py           make or mend the environment
    python3 install.py nuke      make Nuke 14 to 17 find the plugin (--help)
    python3 install.py demo      the demonstration; further arguments go to "reenact demo"
    python3 install.py test      ruff, mypy and pytest; further arguments go to pytest
    python3 install.py doctor    what is there, what is missing and the line that mends it (--json)

This file parses under every Python since 2.7, so that a wrong one gets a sentence and not a
syntax error. The work is done by server/install/installer.py, with the standard library alone.
"""

import os
import sys

if not (3, 10) <= sys.version_info[:2] <= (3, 12):
    sys.exit(
        "Reenact needs Python 3.10, 3.11 or 3.12, and this is Python "
        + sys.version.split()[0]
        + " ("
        + sys.executable
        + ").\n"
        + "Run it with one of those, for example: python3.11 install.py"
    )

if os.environ.get("PYTHONPATH"):  # a typing.py there is not the standard library's
    foreign = [os.path.abspath(one) for one in os.environ["PYTHONPATH"].split(os.pathsep)]
    library = os.path.dirname(os.path.abspath(os.__file__))
    sys.path[:] = [
        one for one in sys.path if one.startswith(library) or os.path.abspath(one) not in foreign
    ]
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

from server.install.installer import main  # after the check: only the right Python can parse it

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], __doc__))
