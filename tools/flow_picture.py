"""Draws docs/flow.svg: how data flows from clips to frames, and through which processes."""

from html import escape
from pathlib import Path

WIDTH, HEIGHT = 150, 46  # px of a box
COLUMN, ROW = 210, 86  # px from one box to the next
LEFT, TOP = 20, 40  # px before the first one
FILE, STEP, PROCESS = "#f3efe4", "#dbe7f5", "#e3f0df"  # fill of files, rooms of core, processes

# name: column, row, fill, title, second line
BOXES = {
    "scan": (0, 0, FILE, "self-scan", "movie or sequence"),
    "personalize": (1, 0, STEP, "personalize", "select, invert, tune"),
    "character": (2, 0, FILE, "NAME.character", "generator, anchors"),
    "stylize": (3, 0, STEP, "stylize", "fine-tune a copy"),
    "style": (4, 0, FILE, "NAME.style", "synthesis network"),
    "plate": (0, 1, FILE, "plate", "the driving clip"),
    "solve": (1, 1, STEP, "solve", "codes by frame"),
    "track": (2, 1, FILE, "NAME.latents", "one code per frame"),
    "render": (3, 1, STEP, "render", "patches, mattes, layers"),
    "frames": (4, 1, FILE, "EXR frames", "patch and layers"),
    "edit": (1, 2, STEP, "edit", "directions, repairs"),
    "repairs": (2, 2, FILE, "repairs.json", "suggested repairs"),
    "quality": (3, 2, STEP, "quality", "measures by frame"),
    "report": (4, 2, FILE, "report.html", "page, CSV, JSON"),
    "clients": (0, 3.4, PROCESS, "clients", "Nuke, command, script"),
    "frontend": (1, 3.4, PROCESS, "server/frontend", "sockets, jobs, lanes"),
    "worker": (2, 3.4, PROCESS, "server/worker.py", "one job at a time"),
    "jobs": (3, 3.4, PROCESS, "server/jobs", "one file per kind"),
    "core": (4, 3.4, STEP, "core", "the rooms above"),
    "store": (1.5, 4.4, FILE, "store", "files by hash, jobs"),
}

# from, to, label
ARROWS = (
    ("scan", "personalize", ""),
    ("personalize", "character", ""),
    ("character", "stylize", ""),
    ("stylize", "style", ""),
    ("plate", "solve", ""),
    ("character", "solve", ""),
    ("solve", "track", ""),
    ("track", "render", ""),
    ("style", "render", ""),
    ("character", "render", ""),
    ("render", "frames", ""),
    ("track", "quality", ""),
    ("quality", "repairs", ""),
    ("quality", "report", ""),
    ("repairs", "edit", ""),
    ("track", "edit", ""),
    ("edit", "track", ""),
    ("clients", "frontend", "ZeroMQ"),
    ("frontend", "worker", "pipes"),
    ("worker", "jobs", ""),
    ("jobs", "core", ""),
    ("frontend", "store", ""),
    ("worker", "store", ""),
)
HEADINGS = (("What becomes of what", 0), ("Which process does it", 3.4))


def corner(name: str) -> tuple[float, float]:
    """The top left corner of a box, px."""
    column, row = BOXES[name][:2]
    return LEFT + column * COLUMN, TOP + row * ROW


def arrow(source: str, target: str, label: str) -> str:
    """An arrow between the facing sides of two boxes; arrows back lie beside those there."""
    (x0, y0), (x1, y1) = corner(source), corner(target)
    if y0 == y1:
        ahead = x1 > x0
        a = (x0 + (WIDTH if ahead else 0), y0 + HEIGHT / 2)
        b = (x1 + (0 if ahead else WIDTH), y1 + HEIGHT / 2)
    else:
        below, aside = y1 > y0, (x1 - x0) / 6
        shift = 14 if (target, source, "") in ARROWS and below else 0
        a = (x0 + WIDTH / 2 + aside - shift, y0 + (HEIGHT if below else 0))
        b = (x1 + WIDTH / 2 - aside - shift, y1 + (0 if below else HEIGHT))
    line = f'<path d="M{a[0]:g} {a[1]:g} L{b[0]:g} {b[1]:g}" marker-end="url(#head)"/>'
    if not label:
        return line
    middle = ((a[0] + b[0]) / 2, a[1] - 5)
    return f'{line}<text class="small" x="{middle[0]:g}" y="{middle[1]:g}">{escape(label)}</text>'


def box(name: str) -> str:
    """A box with its two lines of text; files have round corners."""
    (x, y), (_, _, fill, title, second) = corner(name), BOXES[name]
    radius = 14 if fill == FILE else 2
    return (
        f'<rect x="{x:g}" y="{y:g}" width="{WIDTH}" height="{HEIGHT}" rx="{radius}" fill="{fill}"/>'
        f'<text x="{x + WIDTH / 2:g}" y="{y + 20:g}">{escape(title)}</text>'
        f'<text class="small" x="{x + WIDTH / 2:g}" y="{y + 36:g}">{escape(second)}</text>'
    )


def picture() -> str:
    """The whole picture as SVG."""
    width = LEFT * 2 + COLUMN * 4 + WIDTH
    height = TOP + ROW * 4.4 + HEIGHT + 20
    headings = "".join(
        f'<text class="head" x="{LEFT}" y="{TOP + row * ROW - 16:g}">{text}</text>'
        for text, row in HEADINGS
    )
    parts = [arrow(*one) for one in ARROWS] + [box(name) for name in BOXES]
    body = "\n".join([headings, *parts])
    return f"""<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height:g}">
<style>
text {{ font-family: sans-serif; font-size: 14px; text-anchor: middle; fill: #222; }}
.small {{ font-size: 11px; fill: #555; }}
.head {{ text-anchor: start; font-weight: bold; }}
rect, path {{ stroke: #667; stroke-width: 1.2; }}
path {{ fill: none; }}
</style>
<defs><marker id="head" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="8" markerHeight="8" \
orient="auto"><path d="M0 1 L9 5 L0 9" stroke="#667"/></marker></defs>
<rect x="0" y="0" width="{width}" height="{height:g}" fill="#ffffff" style="stroke:none"/>
{body}
</svg>
"""


if __name__ == "__main__":
    (Path(__file__).parents[1] / "docs" / "flow.svg").write_text(picture(), encoding="utf-8")
