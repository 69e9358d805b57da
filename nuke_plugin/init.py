"""Nuke runs this at its start, in the GUI, in a terminal and on a farm: it says where the gizmos
are and what is to happen to the nodes. Whatever fails here, Nuke starts.
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
del _start  # Nuke keeps the names of an init.py for its Script Editor
