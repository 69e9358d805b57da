"""Nuke runs this when it starts with a GUI: adds the node menu and the jobs panel, and has the
nodes follow their jobs. Nuke starts whatever fails here.
"""


def _reenact_menu() -> None:
    import sys

    try:
        from reenact import host, nodes

        nodes.register()
        for node, label in (
            ("ReenactPersonalize", "Personalize"),
            ("Reenact", "Reenact"),
            ("ReenactRepair", "Repair"),
            ("ReenactEdit", "Edit"),
            ("ReenactStyle", "Style"),
            ("ReenactComp", "Comp"),
        ):
            host.add_command(f"Reenact/{label}", f"nuke.createNode({node!r})", f"{node}.png")
        update = "import reenact.nodes as n; n.update_selected()"
        host.add_command("Reenact/Update selected nodes", update)
        host.add_panel("__import__('reenact.panel').panel.Jobs", "Reenact jobs", "reenact.jobs")
    except Exception as error:  # Nuke starts whatever fails here
        text = "Reenact has no menu: {}: {}".format(type(error).__name__, error)
        print(" ".join(text.split()), file=sys.stderr)


_reenact_menu()
del _reenact_menu  # the menu.py of all plugins share their names, as those of init.py
