"""How true reenactment is, against the performer's ground truth.

    python benchmarks/fidelity.py FOLDER [--pairs 4] [--frames 24] [--ablations]

For each pair of identities: a self-scan of the target makes a character, the part of a held-out
performance by the driver in which most moves drives it, and the same by the target is the truth.
Everything is kept in FOLDER, so that the same line goes on where it stopped; a sheet of every pair
is there too.

Printed per row: PSNR of the aligned crops; landmark error in percent of the distance between the
outer eye corners; correlations of the result's measures with the truth's, over all frames (gaze:
over those in which no eye is shut, for under a lid nothing looks anywhere), each pair's own means
taken out (so that telling people apart counts for nothing); in how many frames the result is
nearer to the truth than to the driver by identity features (those that `reenact qc` has without a
recogniser), and how far from either, in cosine distances; and jitter: the mean second difference of
landmarks over the truth's own. Below it the same correlations with the
performer's parameters: those of the truth itself say what the measures are worth.

With `--ablations` also the paper's selection against evenly spaced frames: 24 of the scan's, in
which one eye alone is shut in two frames. The evenly spaced ones begin where they miss those, as
they do from three of five beginnings. The performance then has a wink of its own, and "winks" says
how much further the one eye's lids are apart than the other's there, as a share of the truth's.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))
from core.face.aligned_clip import align_clip
from core.face.identity import proxy_recogniser
from core.face.landmarks import detect_averaged
from core.face.measures import measure
from core.media.read import open_clip
from core.media.write import write_png
from core.personalize import selection
from core.personalize.character import load_character
from core.personalize.pipeline import PersonalizeSettings, personalize
from core.render import preview
from core.render.drawing import draw_pictures
from core.solve.driving import driving_from_clip
from core.solve.latent_track import LatentTrack
from core.solve.objective import Objective
from core.solve.settings import SolveSettings
from core.solve.shot import solve_shot
from core.synthetic import performer
from core.synthetic.parameters import HIGH, INDEX, LOW
from server.cli.demo import FIRST, FPS, film
from server.cli.reporting import Report

# Measures, and the performer's parameters that move them.
SHOWN = {
    "jaw": "jaw",
    "open_l": "blink_l",
    "open_r": "blink_r",
    "gaze_x": "gaze_x",
    "gaze_y": "gaze_y",
    "yaw": "yaw",
    "pitch": "pitch",
    "smile": "smile",
}
SHUT = 0.4  # of a blink: no iris is seen
SCAN, SIZE, TRAINED, STEPS = 120, 384, 64, 300
FEW = 24  # frames trained on where selection is compared with even spacing
LONG = 240  # frames of the performance that the driving clip is the liveliest part of
WINK = 4  # frames of the performance, up to so many before and after the middle one, in part

DEFAULT = SolveSettings()
ABLATIONS = {
    "absolute keypoints": dataclasses.replace(DEFAULT, objective=Objective(grouped=False)),
    "no pixel losses": dataclasses.replace(DEFAULT, objective=Objective(mouth=0, eyes=0)),
    "no outer lips": dataclasses.replace(DEFAULT, objective=Objective(lip_points=0)),
    "no warm start": dataclasses.replace(DEFAULT, start="centre", secants=0),
    "no secants": dataclasses.replace(DEFAULT, secants=0),
    "no neutral offset": dataclasses.replace(DEFAULT, neutral=None),
    "no smoothing": dataclasses.replace(DEFAULT, smoothing=0.0),
    "the paper's settings": SolveSettings.paper(),
}


@dataclass(frozen=True)
class Seen:
    """Aligned pictures and what the mesh network sees in them."""

    pictures: Tensor  # [F, 3, R, R]
    landmarks: np.ndarray  # [F, 478, 3], px of the 192 px crop

    @property
    def measures(self) -> dict[str, np.ndarray]:
        """[F] each."""
        return measure(self.landmarks)

    @cached_property
    def identity(self) -> np.ndarray:
        """[F, D] of length 1."""
        embedded = proxy_recogniser().embed(self.pictures, torch.from_numpy(self.landmarks))
        return embedded.numpy()


def seen(pictures: Tensor) -> Seen:
    """Closely: one look's own error would count as that of what is looked at."""
    landmarks = torch.cat([detect_averaged(p.float()).landmarks for p in pictures.split(8)])
    return Seen(pictures.float(), landmarks.numpy())


@dataclass(frozen=True)
class Pair:
    """Clips of two people, and the character of one."""

    scan: str
    plate: str
    truth: str
    motion: np.ndarray  # [F, P], the performer's parameters in plate and truth
    character: Path


def filmed(
    folder: Path, index: int, count: int, wink: bool, report: Report
) -> tuple[str, str, str, np.ndarray]:
    """Scan of a pair's target, driving clip, truth, and their motion; with `wink`, the driver winks
    once."""
    target, driver = (performer.random_identity(100 + 2 * index + i) for i in range(2))
    folder = folder / f"pair{index}"
    motion = liveliest(performer.performance(driver, LONG, fps=FPS, seed=index), count)
    told = performer.self_scan(target, SCAN, seed=index)
    suffix = ""
    if wink:
        suffix, eye = "_wink", winking(told)
        shut = np.clip(1.5 - np.abs(np.arange(count) - count // 2) / WINK * 1.5, 0, 1)
        motion[:, eye] = np.maximum(motion[:, eye], shut)
    truth = performer.transfer(motion, target)
    return (
        film("scan", told, folder, SIZE, report),
        film(f"driving{suffix}", motion, folder, SIZE, report),
        film(f"truth{suffix}", truth, folder, SIZE, report),
        motion,
    )


def liveliest(motion: np.ndarray, count: int) -> np.ndarray:
    """The `count` frames on end in which most moves: in others there is no gaze to follow."""
    unit = (motion - LOW) / (HIGH - LOW)
    columns = unit[:, [INDEX[n] for n in ("jaw", "blink_l", "gaze_x", "gaze_y", "yaw", "pitch")]]
    columns = columns / columns.std(0)
    starts = range(len(motion) - count + 1)
    # The least of them counts: one blink makes no lively shot.
    first = max(starts, key=lambda i: columns[i : i + count].std(0).min())
    return motion[first : first + count]


def winking(motion: np.ndarray) -> int:
    """The parameter of the eye that a scan shuts alone."""
    left, right = INDEX["blink_l"], INDEX["blink_r"]
    apart = motion[:, left] - motion[:, right]
    return left if apart.max() > -apart.min() else right


def personalized(scan: str, path: Path, count: int, report: Report) -> Path:
    """The character of a scan, made where it is not there yet."""
    if not path.exists():
        personalize(
            open_clip(scan),
            path,
            report,
            consent={"who": "nobody: a synthetic person"},
            settings=PersonalizeSettings(count=count, steps=STEPS, refine=20, resolution=128),
        )
    return path


def evenly(distances: np.ndarray, count: int) -> np.ndarray:
    """What the paper compares Algorithm 1 with, in its place."""
    return (np.arange(count) * (len(distances) / count)).astype(np.int64)


def winks(index: int, character: Path, result: Seen, truth: Seen) -> None:
    """Prints whether a character saw its scan's wink, and how well it winks itself."""
    told = performer.self_scan(performer.random_identity(100 + 2 * index), SCAN, seed=index)
    apart = told[:, INDEX["blink_l"]] - told[:, INDEX["blink_r"]]
    rare = {FIRST + int(i) for i in np.flatnonzero(np.abs(apart) > 0.5)}
    learnt = rare & {*load_character(character).info.selected}
    a, b = ((m["open_l"] - m["open_r"]) for m in (result.measures, truth.measures))
    there = np.abs(b - np.median(b)) > 0.5 * np.abs(b - np.median(b)).max()
    share = np.mean(a[there] - np.median(a)) / np.mean(b[there] - np.median(b))
    print(
        f"  pair {index}: {len(learnt)} of the scan's {len(rare)} frames of a wink trained on; "
        f"winks {share:.2f} in {there.sum()} frames"
    )


def parameters_of(motion: np.ndarray) -> dict[str, np.ndarray]:
    """What the parameters say that the measures should, but for their units, [F] each."""
    signs = {"open_l": -1.0, "open_r": -1.0}  # a lid that shuts opens less
    return {name: signs.get(name, 1.0) * motion[:, INDEX[p]] for name, p in SHOWN.items()}


def correlations(
    a: list[dict[str, np.ndarray]], b: list[dict[str, np.ndarray]], motions: list[np.ndarray]
) -> str:
    """Of measures of all pairs' frames, without each pair's means."""
    shut = [m[:, [INDEX["blink_l"], INDEX["blink_r"]]].max(1) > SHUT for m in motions]
    found = []
    for name in SHOWN:
        kept = [~s if name.startswith("gaze") else np.full(len(s), True) for s in shut]
        x, y = (
            np.concatenate(
                [m[name][k] - m[name][k].mean() for m, k in zip(side, kept, strict=True)]
            )
            for side in (a, b)
        )
        found.append(f"{np.corrcoef(x, y)[0, 1]:7.3f}")
    return " ".join(found)


def row(
    name: str,
    results: list[Seen],
    truths: list[Seen],
    drivers: list[Seen],
    motions: list[np.ndarray],
) -> None:
    psnr, error, jitter, apart = [], [], [], []
    for result, truth, driver in zip(results, truths, drivers, strict=True):
        squares = ((result.pictures - truth.pictures) / 2).square().mean((1, 2, 3))
        psnr += (-10 * squares.log10()).tolist()
        span = np.linalg.norm(truth.landmarks[:, 263] - truth.landmarks[:, 33], axis=1)
        off = np.linalg.norm((result.landmarks - truth.landmarks)[..., :2], axis=2).mean(1)
        error += (off / span).tolist()
        second = [np.abs(np.diff(s.landmarks[..., :2], 2, axis=0)).mean() for s in (result, truth)]
        jitter.append(second[0] / second[1])
        apart.append([1 - (result.identity * s.identity).sum(1) for s in (truth, driver)])
    target, other = np.concatenate(apart, 1)
    measured = [r.measures for r in results]
    print(
        f"{name:24s} {np.mean(psnr):6.2f} {100 * np.mean(error):6.2f} "
        f"{correlations(measured, [t.measures for t in truths], motions)} "
        f"{(target < other).sum():4d}/{len(target)} {target.mean():.4f} {other.mean():.4f} "
        f"{np.mean(jitter):6.2f}"
    )
    parameters = correlations(measured, [parameters_of(m) for m in motions], motions)
    print(f"{'  with the parameters':24s} {'':6s} {'':6s} {parameters}", flush=True)


class Case:
    """Pairs with their driving clips and truths, read once."""

    def __init__(self, title: str, pairs: list[Pair]) -> None:
        self.pairs = pairs
        self.characters = [load_character(p.character) for p in pairs]
        size = self.characters[0].generator.architecture.resolution
        self.driving = [driving_from_clip(open_clip(p.plate), size=size) for p in pairs]
        truths = [align_clip(open_clip(p.truth), size).pictures for p in pairs]
        self.truths = [seen(t) for t in truths]
        self.drivers = [seen(d.pictures) for d in self.driving]
        self.motions = [p.motion for p in pairs]
        count = sum(len(d.numbers) for d in self.driving)
        print(
            f"\n{title}: {len(pairs)} pairs, {count} frames, {size} px, "
            f"{self.characters[0].info.metric}"
        )
        names = " ".join(f"{m:>7s}" for m in SHOWN)
        print(f"{'':24s}   PSNR  lm %  {names}   target  to it driver jitter")
        self.row("the truth itself", self.truths)
        self.row("the driver itself", self.drivers)

    def row(self, name: str, results: list[Seen]) -> None:
        row(name, results, self.truths, self.drivers, self.motions)

    def solve(
        self, name: str, settings: SolveSettings = DEFAULT
    ) -> tuple[list[LatentTrack], list[Seen]]:
        """Solves all pairs and prints the row; tracks and what is seen in their pictures."""
        tracks = [
            solve_shot(
                who,
                drive,
                settings,
                path=p.character.with_name(
                    f"{p.character.stem}_{re.sub('[^a-z0-9]+', '_', name)}.latents"
                ),
            )
            for p, who, drive in zip(self.pairs, self.characters, self.driving, strict=True)
        ]
        results = [
            seen(torch.stack(list(draw_pictures(c.generator, t.smooth))))
            for c, t in zip(self.characters, tracks, strict=True)
        ]
        self.row(name, results)
        return tracks, results


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--pairs", type=int, default=4)
    parser.add_argument("--frames", type=int, default=24)
    parser.add_argument("--ablations", action="store_true")
    options = parser.parse_args()
    report = Report()

    def pairs(name: str, count: int, wink: bool) -> list[Pair]:
        made = []
        # Two are enough for what selection is compared by, each with two more characters.
        for i in range(min(options.pairs, 2) if wink else options.pairs):
            films = filmed(options.folder, i, options.frames, wink, report)
            path = options.folder / f"pair{i}" / f"{name}.character"
            made.append(Pair(*films, personalized(films[0], path, count, report)))
        return made

    case = Case("reenactment", pairs("target", TRAINED, wink=False))
    tracks, _ = case.solve("default")
    for p, who, track in zip(case.pairs, case.characters, tracks, strict=True):
        sheet = preview.sheet(who.generator, track, open_clip(p.plate), open_clip(p.truth))
        write_png(p.character.with_name("sheet.png"), sheet)
    if not options.ablations:
        return
    for name, settings in ABLATIONS.items():
        case.solve(name, settings)
    chosen = pairs("selected", FEW, wink=True)
    with patch.object(selection, "farthest_first", evenly):
        spaced = pairs("even", FEW, wink=True)
    for name, made in (("selected frames", chosen), ("evenly spaced frames", spaced)):
        case = Case(f"{FEW} {name}, a rare wink", made)
        _, results = case.solve(name)
        for i, (p, result) in enumerate(zip(made, results, strict=True)):
            winks(i, p.character, result, case.truths[i])


if __name__ == "__main__":
    main()
