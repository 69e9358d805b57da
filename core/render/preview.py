"""Pictures for people: driving frames beside what was made of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
from torch import Tensor

from core.base.sampling import evenly_spaced
from core.face.aligned_clip import align_clip, cut_out
from core.generator import Generator
from core.media import colour
from core.media.clip import Clip, Window
from core.media.contact_sheet import contact_sheet
from core.media.read import open_clip, read_frame, read_frames
from core.media.write import to_bytes, write_movie
from core.render import frames
from core.solve.latent_track import LatentTrack
from core.stylize.style import Mix

MOVIE_HEIGHT = 720  # larger plates are shrunk to it


def sheet(
    generator: Generator,
    track: LatentTrack,
    plate: Clip,
    truth: Clip | None = None,
    count: int = 16,
    tile: int = 160,
    mix: Mix | None = None,
) -> np.ndarray:
    """Driving crops, below them the reenacted ones, then those in a style and the ground truth.

    Args:
        generator: the character's.
        track: solved on the plate.
        plate: the driving clip.
        truth: what the result should be, with the same frame numbers, framed by itself.
        count: frames at most, spread evenly over those that all clips have, with a face.
        tile: side of a picture, px.
        mix: how much of a style each of the track's frames gets; None: the row is left out.

    Returns:
        `[H, W, 3]` uint8.
    """
    size = generator.architecture.resolution
    shared = np.isfinite(track.quads).all((1, 2)) & np.isin(track.numbers, plate.numbers)
    if truth is not None:
        aligned = align_clip(truth, size)
        shared &= np.isin(track.numbers, aligned.face.numbers)
    faces = np.flatnonzero(shared)
    rows = faces[evenly_spaced(len(faces), count)]
    numbers = [int(n) for n in track.numbers[rows]]

    def small(picture: np.ndarray) -> np.ndarray:
        return to_bytes(cv2.resize(picture, (tile, tile), interpolation=cv2.INTER_AREA))

    def shown(crops: Iterable[Tensor]) -> list[np.ndarray]:
        return [small(c.permute(1, 2, 0).float().cpu().numpy() / 2 + 0.5) for c in crops]

    lines = [
        shown(cut_out(plate, numbers, track.quads[rows], size)),
        shown(frames.pictures(generator, track.smooth[rows])),
    ]
    names = ["driving", "reenacted"]
    if mix is not None:
        lines.append(shown(frames.styled(generator, track.smooth[rows], mix.frames(rows))))
        names.append("styled")
    if truth is not None:
        lines.append(shown(aligned.pictures[np.searchsorted(aligned.face.numbers, numbers)]))
        names.append("ground truth")
    columns = 8
    tiles, labels = [], []
    for i in range(0, len(rows), columns):
        for line, name in zip(lines, names, strict=True):
            part = line[i : i + columns]
            blank = [np.zeros_like(line[0])] * (columns - len(part))
            tiles += [*part, *blank]
            labels += [f"{n} {name}" for n in numbers[i : i + columns]] + [""] * len(blank)
    return contact_sheet(tiles, labels, columns)


def movie(
    pattern: str,
    plate: Clip,
    numbers: Sequence[int],
    path: Path,
    tick: Callable[[float, float], None] = lambda done, total: None,
) -> None:
    """Writes a preview: the driving plate on the left, the patches merged over it on the right.

    Args:
        pattern: patches, as `rendering.write_frames` wrote them on this plate.
        plate: the driving clip.
        numbers: the frames to show.
        path: the .mp4.
        tick: called with frames done and to do.
    """
    patches = open_clip(pattern, min(numbers), max(numbers), config=plate.config)
    height = min(plate.height, MOVIE_HEIGHT) // 2 * 2
    width = round(plate.width * plate.pixel_aspect * height / plate.height) // 2 * 2

    def pairs() -> Iterator[np.ndarray]:
        for i, frame in enumerate(read_frames(plate, numbers)):
            patch = read_frame(patches, frame.number)
            assert patch.alpha is not None
            rgba = np.dstack([patch.pixels, patch.alpha])
            place = Window(0, 0, plate.width, plate.height)
            behind = frames.plate_pixels(frame.pixels, plate, patches.colour_space)
            merged = frames.over(frames.Patch(rgba, place), behind)
            both = []
            for pixels in (behind, merged):
                srgb = colour.to_network(pixels, patches.colour_space, plate.config)[0] / 2 + 0.5
                both.append(cv2.resize(srgb, (width, height), interpolation=cv2.INTER_AREA))
            tick(i + 1, len(numbers))
            yield to_bytes(np.concatenate(both, 1))

    write_movie(path, pairs(), plate.fps or 24.0)
