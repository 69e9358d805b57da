"""Nuke runs this when it starts, in the GUI, in a terminal and on a farm: adds the gizmos' folder.

Nothing of the plugin is imported: a farm renders the nodes' frames without it.
"""


def _reenact_start() -> None:
    from pathlib import Path

    import nuke

    gizmos = Path(__file__).resolve().parents[1] / "gizmos"
    nuke.pluginAddPath(gizmos.as_posix(), addToSysPath=False)


_reenact_start()
del _reenact_start  # names of an init.py are kept in the Script Editor
