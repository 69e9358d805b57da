"""Nuke runs this when it starts with a GUI: adds the node menu and the jobs panel, and has the
nodes follow their jobs. Nuke starts whatever fails here.
"""

import sys

NODES = (
    ("ReenactPersonalize", "Personalize"),
    ("Reenact", "Reenact"),
    ("ReenactRepair", "Repair"),
    ("ReenactEdit", "Edit"),
    ("ReenactStyle", "Style"),
    ("ReenactComp", "Comp"),
)


def _fill() -> None:
    from reenact import host, nodes

    nodes.register()
    for node, label in NODES:
        host.add_command(f"Reenact/{label}", f"nuke.createNode({node!r})", f"{node}.png")
    update = "import reenact.nodes as n; n.update_selected()"
    host.add_command("Reenact/Update selected nodes", update)
    host.add_panel("__import__('reenact.panel').panel.Jobs", "Reenact jobs", "reenact.jobs")


try:
    _fill()
except Exception as error:  # Nuke starts whatever fails here
    text = "Reenact has no menu: {}: {}".format(type(error).__name__, error)
    print(" ".join(text.split()), file=sys.stderr)
