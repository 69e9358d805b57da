"""Text of native nodes that give the layers of older frames the names of today's.

Frames of earlier versions have layers without `reenact_` in their names (`docs/layers.md`). Shows
have layers of such names too, and a script has room for 1,023 channels: so our nodes do not declare
them. Where older frames are shown, these nodes follow the Read, and declare them there alone.
"""

# Older layers, and their channels, which are called the same today.
LAYERS = {
    "matte": ("face", "head", "confidence"),
    "parts": ("mouth", "inner", "eyes", "iris"),
    "stmap": ("u", "v"),
    "grain": ("red", "green", "blue"),
    "render": ("red", "green", "blue"),
}
PREFIX = "reenact_"
PER_COPY = 4  # channels that a Copy takes

# 1 for a frame of ours whose header does not say that its layers have today's names.
OLD = (
    r'{{"\[string length \[metadata exr/reenact:syntheticMedia]]>0'
    r'&&\[string length \[metadata exr/reenact:layers]]==0"}}'
)

NAMES = """NoOp {{
 inputs 0
 name {above}Names
 label "old: names without reenact_"
 addUserKnob {{20 names l Names}}
 addUserKnob {{3 old l old}}
 old {old}
 xpos {x}
 ypos {y}
}}
set Names [stack 0]
"""

COPY = """push $Names
push {below}
Copy {{
 inputs 2
{channels} name {above}Older{number}
 disable {{{{1-{above}Names.old}}}}
 xpos {x}
 ypos {y}
}}
set Older{number} [stack 0]
"""


def first_name(above: str) -> str:
    """Returns the name of the first of the nodes."""
    return f"{above}Names"


def last_name(above: str) -> str:
    """Returns the name of the last of the nodes."""
    return f"{above}Older{_copies()}"


def text(above: str, x: int, y: int) -> str:
    """Returns the nodes; the first one has no input yet.

    Args:
        above: name of the node that they are to follow.
        x: where that is in the node graph.
        y: likewise, downwards.
    """
    script = ""
    for layer, channels in LAYERS.items():
        for name in (layer, PREFIX + layer):
            script += f"add_layer {{{' '.join([name, *(f'{name}.{c}' for c in channels)])}}}\n"
    script += NAMES.format(above=above, old=OLD, x=x + 110, y=y)
    every = [f"{layer}.{channel}" for layer, channels in LAYERS.items() for channel in channels]
    below = "$Names"
    for number in range(1, _copies() + 1):
        some = every[(number - 1) * PER_COPY : number * PER_COPY]
        knobs = "".join(f" from{i} {name}\n to{i} {PREFIX}{name}\n" for i, name in enumerate(some))
        place = {"x": x + 110, "y": y + 30 * number}
        script += COPY.format(above=above, below=below, channels=knobs, number=number, **place)
        below = f"$Older{number}"
    return script


def _copies() -> int:
    return -(-sum(map(len, LAYERS.values())) // PER_COPY)
