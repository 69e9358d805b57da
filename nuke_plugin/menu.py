"""Run by Nuke when it has windows: the entries of its node menu."""

from reenact import host

for node, label in (
    ("ReenactPersonalize", "Personalize"), ("Reenact", "Reenact"), ("ReenactEdit", "Edit"),
    ("ReenactStyle", "Style"), ("ReenactRepair", "Repair"),
):  # fmt: skip
    host.add_command(f"Reenact/{label}", f"nuke.createNode({node!r})", f"{node}.png")
host.add_panel("__import__('reenact.panel').panel.Jobs", "Reenact jobs", "reenact.jobs")
