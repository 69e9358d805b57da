"""Writes the ToolSet of the whole chain, from the self-scan to the comp, from the gizmos' text.

    python tools/tool_set.py

The nodes are connected by pipes and never by name, so that the set can be inserted repeatedly.
"""

from pathlib import Path

FOLDER = Path(__file__).parents[1] / "gizmos"
PATH = FOLDER / "ToolSets" / "Reenact" / "ScanToShot.nk"
SPACING = 100  # between two nodes, in the node graph's units

READ = """Read {{
 inputs 0
 name {name}
 label "{label}"
 xpos {x}
 ypos 0
}}
"""

# The gizmos below each other: class, inputs from the last to the first, column, row.
CHAIN = (
    ("ReenactPersonalize", ("Scan",), 0, 1),
    ("Reenact", ("ReenactPersonalize", "Plate"), 2, 2),
    ("ReenactRepair", ("Plate", "Reenact"), 2, 3),
    ("ReenactEdit", ("Plate", "ReenactRepair"), 2, 4),
    ("ReenactStyle", ("Plate", "ReenactEdit"), 2, 5),
    ("ReenactComp", ("ReenactStyle", "Plate"), 2, 6),
)


def tool_set() -> str:
    """Returns the text of the ToolSet."""
    text = ""
    for name, label, column in (("Scan", "the self-scan", 0), ("Plate", "the driving plate", 2)):
        text += READ.format(name=name, label=label, x=column * SPACING) + f"set N{name} [stack 0]\n"
    for kind, inputs, column, row in CHAIN:
        text += "".join(f"push $N{source}\n" for source in inputs)
        gizmo = (FOLDER / f"{kind}.gizmo").read_text()
        place = f" xpos {column * SPACING}\n ypos {row * SPACING}\n"
        count = f" inputs {len(inputs)}\n" if len(inputs) > 1 else ""
        head, _, rest = gizmo.partition(f" name {kind}\n")
        text += f"{head}{count} name {kind}1\n{place}{rest}set N{kind} [stack 0]\n"
    return text


if __name__ == "__main__":
    PATH.write_text(tool_set())
    print(PATH)
