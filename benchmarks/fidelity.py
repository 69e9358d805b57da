"""How true reenactment is, against the performer's ground truth.

    python benchmarks/fidelity.py FOLDER [--pairs 4] [--frames 24] [--ablations] [--sheet]

For each pair of identities: a self-scan of the target makes a character, a held-out performance by
the driver drives it, and the same performance by the target is the truth. Everything is kept in
FOLDER, so that the same line goes on where it stopped.

Printed per row: PSNR of the aligned crops; landmark error in percent of the distance between the
outer eye corners; correlations over all frames of the result's measures with the truth's; in how
many frames the result is nearer to the truth than to the driver by the character's perceptual
metric; and jitter: the mean second difference of landmarks over the truth's own.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))
from core import frames, perceptual, personalization, preview, reenactment, rendering
from core.aligned_clip import align_clip
from core.character import Character, character_hash, load_character
from core.facemesh.measures import measure
from core.latent_track import LatentTrack
from core.objective import Objective, look
from core.reenactment import Settings
from core.synthetic import performer
from server.demo import FPS, film
from server.reporting import Report

SHOWN = ("jaw", "open_l", "open_r", "gaze_x", "gaze_y", "yaw", "pitch", "smile")
SCAN, SIZE = 120, 384

DEFAULT = Settings()
ABLATIONS = {
    "absolute keypoints": dataclasses.replace(DEFAULT, objective=Objective(grouped=False)),
    "no pixel losses": dataclasses.replace(DEFAULT, objective=Objective(mouth=0, eyes=0)),
    "start at the centre": dataclasses.replace(DEFAULT, start="centre"),
    "warm start only": dataclasses.replace(DEFAULT, start="previous"),
    "no smoothing": dataclasses.replace(DEFAULT, smoothing=0.0),
    "smoothing .067 s": dataclasses.replace(DEFAULT, smoothing=0.067),
    "the paper's settings": Settings.paper(),
}


@dataclass(frozen=True)
class Seen:
    """Aligned pictures and what the mesh network sees in them."""

    pictures: Tensor  # [F, 3, R, R]
    landmarks: np.ndarray  # [F, 478, 3], px of the 192 px crop


def seen(pictures: Tensor) -> Seen:
    with torch.no_grad():
        landmarks = torch.cat([look(p.float()).landmarks for p in pictures.split(8)])
    return Seen(pictures.float(), landmarks.numpy())


def pair(folder: Path, index: int, count: int, report: Report) -> tuple[str, str, str, Path]:
    """Films and personalizes one pair; returns driving clip, truth, scan and character."""
    target, driver = (performer.random_identity(100 + 2 * index + i) for i in range(2))
    folder = folder / f"pair{index}"
    motion = performer.performance(driver, count, fps=FPS, seed=index)
    scan = film("scan", performer.self_scan(target, SCAN, seed=index), folder, SIZE, report)
    plate = film("driving", motion, folder, SIZE, report)
    truth = film("truth", performer.transfer(motion, target), folder, SIZE, report)
    path = folder / "target.character"
    if not path.exists():
        personalization.personalize(
            frames.open_clip(scan), path, report, consent={"who": "nobody: a synthetic person"},
            settings=personalization.Settings(count=64, steps=500, refine=20),
        )  # fmt: skip
    return plate, truth, scan, path


def row(name: str, results: list[Seen], truths: list[Seen], drivers: list[Seen], metric) -> None:
    psnr, error, jitter, nearer, total = [], [], [], 0, 0
    for result, truth, driver in zip(results, truths, drivers, strict=True):
        squares = ((result.pictures - truth.pictures) / 2).square().mean((1, 2, 3))
        psnr += (-10 * squares.log10()).tolist()
        span = np.linalg.norm(truth.landmarks[:, 263] - truth.landmarks[:, 33], axis=1)
        off = np.linalg.norm((result.landmarks - truth.landmarks)[..., :2], axis=2).mean(1)
        error += (off / span).tolist()
        second = [np.abs(np.diff(s.landmarks[..., :2], 2, axis=0)).mean() for s in (result, truth)]
        jitter.append(second[0] / second[1])
        for r, t, d in zip(result.pictures, truth.pictures, driver.pictures, strict=True):
            nearer += bool(metric.distance(r[None], t[None]) < metric.distance(r[None], d[None]))
            total += 1
    a = measure(np.concatenate([r.landmarks for r in results]))
    b = measure(np.concatenate([t.landmarks for t in truths]))
    correlations = " ".join(f"{np.corrcoef(a[m], b[m])[0, 1]:7.3f}" for m in SHOWN)
    print(
        f"{name:22s} {np.mean(psnr):6.2f} {100 * np.mean(error):6.2f} {correlations} "
        f"{nearer:4d}/{total} {np.mean(jitter):6.2f}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--pairs", type=int, default=4)
    parser.add_argument("--frames", type=int, default=24)
    parser.add_argument("--ablations", action="store_true")
    options = parser.parse_args()
    report = Report()
    made = [pair(options.folder, i, options.frames, report) for i in range(options.pairs)]
    characters = [load_character(path) for *_, path in made]
    size = characters[0].generator.architecture.resolution
    metric = perceptual.metric(characters[0].info.metric)
    driving = [
        reenactment.driving_from_clip(frames.open_clip(plate), size=size) for plate, *_ in made
    ]
    truths = [seen(align_clip(frames.open_clip(t), size).pictures) for _, t, *_ in made]
    drivers = [seen(d.pictures) for d in driving]

    def solved(name: str, settings: Settings) -> list[LatentTrack]:
        tracks = []
        for (*_, path), who, drive in zip(made, characters, driving, strict=True):
            tracks.append(
                reenactment.solve(
                    who,
                    drive,
                    settings,
                    character_hash=character_hash(path),
                    path=path.with_name(f"{name.replace(' ', '_')}.latents"),
                )
            )
        return tracks

    def drawn(tracks: list[LatentTrack], who: list[Character]) -> list[Seen]:
        return [
            seen(torch.stack(list(rendering.pictures(c.generator, t.smooth))))
            for c, t in zip(who, tracks, strict=True)
        ]

    print(f"{options.pairs} pairs, {options.frames} frames each, {size} px, metric {metric.name}")
    print(f"{'':22s}   PSNR  lm %  {' '.join(f'{m:>7s}' for m in SHOWN)}   target jitter")
    row("the driver itself", drivers, truths, drivers, metric)
    start = time.perf_counter()
    tracks = solved("default", DEFAULT)
    seconds = time.perf_counter() - start
    row("default", drawn(tracks, characters), truths, drivers, metric)
    print(f"{seconds / (options.frames * options.pairs):.2f} s a frame")
    for (plate, truth, _, path), who, track in zip(made, characters, tracks, strict=True):
        sheet = preview.sheet(
            who.generator, track, frames.open_clip(plate), frames.open_clip(truth)
        )
        frames.write_png(path.with_name("sheet.png"), sheet)
    if options.ablations:
        for name, settings in ABLATIONS.items():
            row(name, drawn(solved(name, settings), characters), truths, drivers, metric)


if __name__ == "__main__":
    main()
