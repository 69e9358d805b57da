"""How sharp a character is, on frames that its scan does not have.

    python benchmarks/detail.py FOLDER [CLIP ...] [--people 4] [--frames 200] [--size 1024]

For each synthetic person and each clip: the first 70 % of the frames are the scan, of which a
character is made at its generator's resolution, and then its detail at 256, 512 and 1024 px, as far
as the faces have the pixels. (A synthetic person's clip ends with a performance instead: the other
30 % show nothing of the scan's programme.) Every stage is a process of its own and is kept in
FOLDER: the same line goes on where it stopped; other options need another folder. So are pictures:
truth, ours and the generator's up-sampled, at 1:1.

The pictures that are compared are drawn of codes that fit the held-out frames as well as the
generator can: its encoder's, refined in W as a scan's are, then each layer's by itself (w+), all by
the generator's own picture at its resolution. So no row shows what a solver can't find.

Printed per row, the generator's picture up-sampled (bicubic) / ours:
    face, all   mean PSNR, of the face (the weights of tuning) and of the whole picture, dB
    octaves     energy of the finest octave and of the ones below it, as far as they are beyond the
                generator's, over the truth's: root mean squares of what halving the resolution
                takes away, face
    flicker     mean absolute change, from frame to frame, of what is beyond the generator's
                resolution, over the truth's; face
    train       seconds of learning the detail, the same steps for each size
    draw        seconds to draw a frame from its code, with the mesh that detail is attached to
    memory      peak of the process that learns it, MiB

Above the rows: by how much the mesh trembles that detail is attached to, while codes go slowly
from one anchor to another (root mean square of second differences, px of 512). And for synthetic
people how far dots on the skin drift from their mean skin coordinates while the head turns by up to
30 degrees (median / 95 %, px of 512 in the picture): by points that stick to the skin, which is the
surface map's own error, by the network's mesh, which glides over it, and by that put right.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))
from performer_faces import acted, aligned
from skin_dots import dotted, drift

from core.face import perceptual
from core.face.aligned_clip import align_clip, cut_out
from core.face.skin import lay_out, stick
from core.face.surface import SURFACE_POINTS, fit_atlas
from core.generator import Generator
from core.media.read import open_clip
from core.media.write import to_bytes, write_png
from core.personalize.character import load_character
from core.personalize.detail import RESOLUTIONS, find_meshes
from core.personalize.detail_training import face_psnr
from core.personalize.inversion import fit_whitening, invert, reconstruction_loss
from core.personalize.pipeline import PersonalizeSettings, add_detail, personalize
from core.personalize.tuning import face_weights
from core.render.drawing import draw_frames, draw_pictures
from core.synthetic import performer
from core.synthetic.base import base_encoder, base_generator
from server.cli.demo import FPS, film
from server.cli.reporting import Report

SCAN = 0.7  # of a clip's frames; the rest is held out
HELD_OUT = 60  # frames at most that are drawn, in a row: flicker is of neighbours
RATE = 0.03  # Adam's peak when codes are fitted in w+, in standard deviations of W
SLOW = 60  # frames from one anchor to the other where trembling is measured
# Of the head, in which drift is measured: yaw and pitch, degrees.
TURNS = (
    *((0.0, 0.0), (15.0, 10.0), (30.0, 5.0), (25.0, -10.0)),
    *((10.0, -15.0), (-15.0, 15.0), (-30.0, 0.0), (-20.0, -12.0)),
)
Stage = dict[str, Any]


@dataclass
class Clock:
    """A report that says how long each stage took."""

    seconds: dict[str, float] = field(default_factory=dict)

    def note(self, text: str) -> None:
        print(f"    {text}", flush=True)

    @contextmanager
    def stage(self, title: str) -> Iterator[Callable[..., None]]:
        start = time.monotonic()
        yield lambda done, total, **figures: None
        self.seconds[title] = self.seconds.get(title, 0.0) + time.monotonic() - start


def kept(path: Path, work: Callable[..., Stage], *args: Any) -> Stage:
    """What a stage found: read from its file, or worked out in a process of its own."""
    if not path.exists():
        print(f"  {path.parent.name}: {path.stem}", flush=True)
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            found = pool.submit(work, *args).result()
        path.write_text(json.dumps(found))
    return json.loads(path.read_text())


def peak() -> float:
    """Of this process's memory, MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


# -- stages ------------------------------------------------------------------------------------


def make_film(folder: Path, seed: int, frames: int, size: int) -> Stage:
    who = performer.random_identity(seed)
    scan = round(frames * SCAN)
    motion = np.concatenate(
        [
            performer.self_scan(who, scan, fps=FPS, seed=seed),
            performer.performance(who, frames - scan, fps=FPS, seed=seed),
        ]
    )
    return {"clip": film("clip", motion, folder, size, Report())}


def make_character(folder: Path, scan: str, settings: PersonalizeSettings) -> Stage:
    """At the generator's resolution."""
    clock, path = Clock(), folder / "plain.character"
    personalize(open_clip(scan), path, clock, consent={"who": "nobody"}, settings=settings)
    return {"path": str(path), "seconds": clock.seconds}


def fit_held_out(folder: Path, held_out: str, character: str, steps: int) -> Stage:
    """Codes of held-out frames, and where their faces are."""
    generator = load_character(character).generator
    clip = open_clip(held_out)
    size = generator.architecture.resolution
    given = align_clip(clip, size)
    found = np.flatnonzero(given.face.found)[:HELD_OUT]
    pictures = given.pictures[torch.from_numpy(found)].float()
    start = invert(generator, pictures, base_encoder(), metric=perceptual.metric()).w
    codes = fit_layers(generator, pictures, start, steps)
    drawn = torch.stack([*draw_pictures(generator, codes.numpy())])
    weights = face_weights(pictures)
    quads = given.quads[found]
    np.savez(
        folder / "held_out.npz",
        codes=codes.numpy(),
        numbers=given.face.numbers[found],
        quads=quads,
    )
    return {
        "side": float(np.median(np.linalg.norm(quads[:, 3] - quads[:, 0], axis=1))),
        "psnr": float(face_psnr(drawn, pictures, weights).mean()),  # at the generator's resolution
    }


def fit_layers(
    generator: Generator, pictures: Tensor, w: Tensor, steps: int, batch: int = 8
) -> Tensor:
    """Fits codes `[F, L, w_dim]` to pictures `[F, 3, R, R]`, each layer by itself, from `w`."""
    metric, whitening = perceptual.metric(), fit_whitening(generator)
    layers = generator.architecture.num_ws
    codes = []
    for target, start in zip(pictures.split(batch), w.split(batch), strict=True):
        v = whitening.whiten(start)[:, None].repeat(1, layers, 1).requires_grad_()
        optimiser = torch.optim.Adam([v], betas=(0.9, 0.99))
        for step in range(steps):
            optimiser.param_groups[0]["lr"] = RATE * (1 + np.cos(np.pi * step / steps)) / 2
            drawn = generator.synthesis(whitening.colour(v))
            loss = reconstruction_loss(drawn, target, metric).sum()
            (v.grad,) = torch.autograd.grad(loss, [v])  # the generator's weights need none
            optimiser.step()
        codes.append(whitening.colour(v.detach()))
    return torch.cat(codes)


def find_trembling(character: str) -> Stage:
    """Of meshes, on the way from the first anchor to the one chosen next, the most different."""
    loaded = load_character(character)
    shares = torch.arange(SLOW // 4)[:, None] / SLOW
    codes = torch.lerp(loaded.anchors[:1], loaded.anchors[1:2], shares)[:, None]
    anchors = loaded.anchors[:, None]
    layers = loaded.generator.architecture.num_ws
    drawn, faces = (
        torch.stack([*draw_pictures(loaded.generator, w.repeat(1, layers, 1).numpy())])
        for w in (codes, anchors)
    )
    atlas = lay_out(find_meshes(faces), faces.numpy())
    meshes = find_meshes(drawn, atlas)
    second = np.diff(meshes[:, :SURFACE_POINTS, :2] * 512, 2, axis=0)
    return {"trembling": float(np.sqrt(np.square(second).sum(-1).mean()))}


def find_drift(seed: int) -> Stage:
    """Of dots on the skin of a synthetic person, by region."""
    moves = [{"yaw": yaw, "pitch": pitch} for yaw, pitch in TURNS]
    pictures = aligned(acted(seed, *moves), 256)
    found = find_meshes(pictures)
    dots = dotted(seed, found[0], *moves)
    stuck = stick(lay_out(found, pictures.numpy()), found, pictures.numpy())
    return {
        name: {
            region: [float(np.quantile(errors, share)) for share in (0.5, 0.95)]
            for region, errors in drift(fit_atlas(meshes), meshes, dots).items()
        }
        for name, meshes in (
            ("surface map", dots.meshes),
            ("by the network", found),
            ("sticking to the skin", stuck),
        )
    }


def make_detail(folder: Path, scan: str, character: str, resolution: int, steps: int) -> Stage:
    clock, path = Clock(), folder / f"detail_{resolution}.character"
    settings = PersonalizeSettings(resolution=resolution, detail_steps=steps)
    detail = add_detail(open_clip(scan), character, path, clock, settings=settings).detail
    assert detail is not None
    return {
        "path": str(path),
        "steps": detail.info.steps,
        "seconds": clock.seconds["detail"],
        "memory": peak(),
    }


def compare(folder: Path, held_out: str, character: str, resolution: int) -> Stage:
    """The figures of a row; writes pictures of three frames."""
    loaded = load_character(character)
    given = np.load(folder / "held_out.npz")
    numbers, base = given["numbers"].tolist(), loaded.generator.architecture.resolution
    cut = cut_out(open_clip(held_out), numbers, given["quads"], resolution)
    drawn = draw_frames(loaded.generator, given["codes"], detail=loaded.detail, batch=1)
    ours = [next(drawn)]  # compiles what it needs
    start = time.monotonic()
    ours += list(drawn)
    seconds = (time.monotonic() - start) / max(len(ours) - 1, 1)
    small = torch.stack([*draw_pictures(loaded.generator, given["codes"])])
    shown = {len(numbers) * i // 4 for i in (1, 2, 3)}
    sizes = [size for size in (1024, 512, 256, 128) if base < size <= resolution]
    figures: dict[str, list[list[float]]] = {}
    flicker, before, rows = np.zeros(3), None, []
    for i, truth in enumerate(cut):
        weight = face_weights(truth[None])
        mask = F.interpolate(weight, (resolution, resolution), mode="bilinear").clamp(max=1)
        plain = F.interpolate(small[i : i + 1], (resolution, resolution), mode="bicubic")
        pictures = torch.cat([truth[None].float(), plain.clamp(-1, 1), ours[i][None]])
        squares = ((pictures[1:] - pictures[:1]) / 2).square().mean((1, 2, 3))
        found = {
            "face": face_psnr(pictures[1:], pictures[:1], weight),
            "all": -10 * squares.log10(),
        }
        for size in sizes:
            octave = shrunk(pictures, size) - shrunk(pictures, size // 2)
            found[f"octave {size}"] = (octave.square() * mask).mean((1, 2, 3))
        for name, values in found.items():
            figures.setdefault(name, []).append(values.tolist())
        fine = pictures - shrunk(pictures, base)
        if before is not None:
            flicker += ((fine - before).abs() * mask).mean((1, 2, 3)).numpy()
        before = fine
        if i in shown:
            rows.append(torch.cat([*pictures[[0, 2, 1]]], -1))
    sheet = torch.cat(rows, -2).permute(1, 2, 0).numpy()
    write_png(folder / f"held_out_{resolution}.png", to_bytes(sheet / 2 + 0.5))
    means = {name: np.mean(values, 0) for name, values in figures.items()}
    energies = [means[f"octave {size}"] for size in sizes]
    octaves = [np.sqrt(energy[1:] / energy[0]).tolist() for energy in energies]
    return {
        "frames": len(numbers),
        "face": means["face"].tolist(),
        "all": means["all"].tolist(),
        "octaves": octaves,
        "flicker": (flicker[1:] / flicker[0]).tolist(),
        "draw": seconds,
    }


def shrunk(pictures: Tensor, size: int) -> Tensor:
    """What pictures `[B, 3, R, R]` show at a size, px, at their own."""
    if pictures.shape[-1] == size:
        return pictures
    small = F.interpolate(pictures, (size, size), mode="bicubic", antialias=True)
    return F.interpolate(small, pictures.shape[-2:], mode="bicubic")


# -- rows --------------------------------------------------------------------------------------


def row(name: str, resolution: int, found: Stage, made: Stage) -> None:
    def pair(values: list[float], form: str) -> str:
        return " / ".join(format(v, form) for v in values)

    octaves = "  ".join(pair(values, ".2f") for values in found["octaves"])
    print(
        f"{name:16s} {resolution:5d} {found['frames']:4d}  {pair(found['face'], '5.2f')}"
        f" {found['face'][1] - found['face'][0]:+5.2f}  {pair(found['all'], '5.2f')}  "
        f"{pair(found['flicker'], '4.2f')}  {made['seconds']:6.0f} ({made['steps']})"
        f" {found['draw']:6.2f} {made['memory']:6.0f}  {octaves}",
        flush=True,
    )


def measure(name: str, folder: Path, clip: str, options: argparse.Namespace) -> None:
    """Prints the rows of one clip."""
    numbers = open_clip(clip).numbers
    last = len(numbers) * SCAN
    scan = f"{clip} {numbers[0]}-{numbers[round(last) - 1]}"
    held_out = f"{clip} {numbers[round(last)]}-{numbers[-1]}"
    settings = PersonalizeSettings(
        count=options.count, steps=options.steps, refine=20, resolution=options.base
    )
    plain = kept(folder / "character.json", make_character, folder, scan, settings)["path"]
    fitted = kept(
        folder / "held_out.json", fit_held_out, folder, held_out, plain, options.fit_steps
    )
    print(f"  {name}: held-out faces {fitted['psnr']:.2f} dB at {options.base} px", flush=True)
    trembling = kept(folder / "trembling.json", find_trembling, plain)["trembling"]
    print(f"  {name}: meshes of a slow shot tremble by {trembling:.3f} px of 512", flush=True)
    for resolution in options.resolutions:
        # Faces of less than this hold nothing that the picture of half the size does not.
        if resolution > fitted["side"] * np.sqrt(2):
            continue
        made = kept(
            folder / f"detail_{resolution}.json",
            make_detail,
            folder,
            scan,
            plain,
            resolution,
            options.detail_steps,
        )
        found = kept(
            folder / f"compared_{resolution}.json",
            compare,
            folder,
            held_out,
            made["path"],
            resolution,
        )
        row(name, resolution, found, made)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("clips", nargs="*")
    parser.add_argument("--people", type=int, default=4)
    parser.add_argument("--frames", type=int, default=200, help="of a synthetic person's clip")
    parser.add_argument("--size", type=int, default=1024, help="of a synthetic person's film, px")
    parser.add_argument("--count", type=int, default=120, help="frames trained on, at most")
    parser.add_argument("--steps", type=int, default=300, help="of tuning")
    parser.add_argument("--detail-steps", type=int, default=800)
    parser.add_argument("--fit-steps", type=int, default=100, help="of fitting codes in w+")
    parser.add_argument("--resolutions", type=int, nargs="+", default=RESOLUTIONS)
    options = parser.parse_args()
    options.base = base_generator().architecture.resolution
    print(
        f"{'':16s}    px    n  face dB               all dB         flicker"
        "      train s   draw s    MiB  octaves, finest first"
    )
    for i in range(options.people):
        folder = options.folder / f"person{i}"
        folder.mkdir(parents=True, exist_ok=True)
        made = kept(folder / "film.json", make_film, folder, 100 + i, options.frames, options.size)
        for errors, regions in kept(folder / "drift.json", find_drift, 100 + i).items():
            text = ", ".join(f"{r} {a:.2f} / {b:.2f}" for r, (a, b) in regions.items())
            print(f"  person {i}: dots drift by px of 512, {errors}: {text}", flush=True)
        measure(f"person {i}", folder, made["clip"], options)
    for clip in options.clips:
        folder = options.folder / Path(clip).stem
        folder.mkdir(parents=True, exist_ok=True)
        measure(Path(clip).stem, folder, clip, options)


if __name__ == "__main__":
    main()
