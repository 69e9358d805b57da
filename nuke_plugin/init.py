"""Nuke runs this when it starts, in the GUI, in a terminal and on a farm: adds the gizmos' folder
and registers the nodes' callbacks. Nuke starts whatever fails here.
"""

import sys
from pathlib import Path


def _start() -> None:
    import nuke

    gizmos = Path(__file__).resolve().parents[1] / "gizmos"
    nuke.pluginAddPath(gizmos.as_posix(), addToSysPath=False)
    try:
        from reenact import nodes

        nodes.register()
    except Exception as error:
        text = "Reenact's nodes have no callbacks: {}: {}".format(type(error).__name__, error)
        print(" ".join(text.split()), file=sys.stderr)


_start()
del _start  # names of an init.py are kept in the Script Editor
