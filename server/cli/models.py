"""`reenact models`: generators in from other tools' checkpoints, and out again."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import typer
from rich.markup import escape
from rich.progress import track
from rich.table import Table

from core.base.text import printable
from core.media.outputs import check_outputs
from server.cli.inspect import inspect as inspect_own
from server.cli.reporting import Terminal

if TYPE_CHECKING:  # torch loads in the commands that need it
    from core.generator import Generator
    from core.generator.checkpoints import Checkpoint

app = typer.Typer(
    help="Generators: import, inspect, export and sample checkpoints.", no_args_is_help=True
)
console = Terminal(highlight=False)

File = Annotated[Path, typer.Argument(help="A generator's checkpoint, in any of the formats")]
Parent = Annotated[
    Path | None,
    typer.Option(help="The generator that it was fine-tuned from, for files without a mapping"),
]


@app.command("import")
def import_(
    file: File,
    output: Annotated[
        Path | None, typer.Option(help="Where to write; default: FILE's name as .safetensors here")
    ] = None,
    parent: Parent = None,
) -> None:
    """Converts a checkpoint into Reenact's own format; runs nothing that is in it."""
    from core.generator import checkpoints, storage

    output = output or Path(f"{file.stem}.safetensors")
    check_outputs({"output": output}, {"checkpoint": file, "parent": parent})
    checkpoint = checkpoints.read_checkpoint(file)
    _show(checkpoint)
    generator, header = checkpoints.build(checkpoint, _parent(parent))
    header["source_sha256"] = _sha256(file)
    storage.save_generator(output, generator, header)
    console.print(f"written: {escape(str(output))}")


@app.command()
def inspect(file: File) -> None:
    """Says what a checkpoint, a character or a style holds, without converting it."""
    if file.suffix in (".character", ".style"):
        inspect_own(file)
        return
    from core.generator import checkpoints

    _show(checkpoints.read_checkpoint(file))


@app.command()
def export(
    file: File,
    output: Annotated[Path, typer.Argument(help="The .pt file to write")],
    parent: Parent = None,
) -> None:
    """Writes a generator as rosinality's stylegan2-pytorch and its many relatives read it."""
    from core.generator import checkpoints

    check_outputs({"output": output}, {"checkpoint": file, "parent": parent})
    generator, _ = checkpoints.load_any(file, _parent(parent))
    for note in checkpoints.save_rosinality(output, generator):
        console.print(f"[yellow]{escape(note)}[/yellow]")
    console.print(f"written: {escape(str(output))}")


@app.command()
def sample(
    file: File,
    seed: Annotated[int, typer.Option(help="Another seed, other pictures")] = 0,
    count: Annotated[int, typer.Option(min=1, max=1000, help="Pictures")] = 24,
    truncation: Annotated[
        float, typer.Option(min=0, max=2, help="1 shows the whole of W, 0 its mean only")
    ] = 0.7,
    output: Annotated[Path, typer.Option(help="PNG to write")] = Path("sheet.png"),
    parent: Parent = None,
) -> None:
    """Draws a sheet of random pictures from a generator."""
    import torch
    import torch.nn.functional as F

    from core.generator import checkpoints
    from core.media.contact_sheet import contact_sheet
    from core.media.write import write_png

    check_outputs({"output": output}, {"checkpoint": file, "parent": parent})
    generator, _ = checkpoints.load_any(file, _parent(parent))
    a = generator.architecture
    z = torch.randn(count, a.z_dim, generator=torch.Generator().manual_seed(seed))
    tile = min(a.resolution, 256)
    pictures: list[np.ndarray] = []
    with torch.no_grad():
        for part in track(z.split(4), "drawing", console=console, transient=True):
            drawn = F.interpolate(generator(part, truncation), (tile, tile), mode="area")
            drawn = (drawn.clamp(-1, 1) + 1) * 127.5 + 0.5
            pictures.extend(drawn.byte().permute(0, 2, 3, 1).numpy())
    labels = [f"{seed}: {i}" for i in range(count)]
    write_png(output, contact_sheet(pictures, labels))
    console.print(f"written: {escape(str(output))}")


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _parent(path: Path | None) -> Generator | None:
    from core.generator import checkpoints

    return None if path is None else checkpoints.load_any(path)[0]


def _show(checkpoint: Checkpoint) -> None:
    a = checkpoint.architecture
    mapping = f"{a.mapping_layers} layers, z of {a.z_dim}" if checkpoint.has_mapping else "none"
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    for name, value in (
        ("format", checkpoint.format),
        ("resolution", f"{a.resolution} px"),
        ("channels", ", ".join(f"{r}: {c}" for r, c in a.channels.items())),
        ("mapping", mapping),
        ("w", f"{a.w_dim} numbers, {a.num_ws} rows in w+"),
        ("weights", str(checkpoint.dtype).removeprefix("torch.")),
        ("activations", "not clamped" if a.conv_clamp is None else f"to +-{a.conv_clamp:g}"),
        ("encoder", checkpoint.encoder or "none"),
        (
            "shape",
            "of an FFHQ face generator"
            if checkpoint.face_shaped
            else "not that of an FFHQ face generator (512 numbers in z and w, 256 px or more)",
        ),
    ):
        table.add_row(f"[bold]{name}[/bold]", value)
    console.print(f"[bold]{escape(printable(str(checkpoint.path)))}[/bold]")
    console.print(table)
    for note in checkpoint.notes:
        console.print(f"[yellow]{escape(printable(note))}[/yellow]")
