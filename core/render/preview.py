"""Contact sheet and movie of a rendered track beside its driving clip."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
from torch import Tensor

from core.base.progress import Progress
from core.base.sampling import evenly_spaced
from core.face.aligned_clip import align_clip, cut_out
from core.generator import Generator
from core.media import colour
from core.media.clip import Clip, Window
from core.media.contact_sheet import contact_sheet
from core.media.read import open_clip, read_frame, read_frames
from core.media.write import to_bytes, write_movie
from core.personalize.detail import Detail
from core.render.drawing import draw_frames
from core.render.patch import Patch, over, plate_pixels
from core.solve.latent_track import LatentTrack
from core.stylize.style import Mix

SHEET_WIDTH = 1536  # px
MOVIE_HEIGHT = 720  # px; larger plates are shrunk to it


def sheet(
    generator: Generator,
    track: LatentTrack,
    plate: Clip,
    truth: Clip | None = None,
    count: int | None = None,
    detail: Detail | None = None,
    mix: Mix | None = None,
) -> np.ndarray:
    """Lays out driving crops above the reenacted ones, those in a style, and the ground truth.

    Args:
        generator: the character's.
        track: solved on the plate.
        plate: the driving clip.
        truth: the ideal result, with the same frame numbers; it is aligned by its own faces.
        count: frames at most, evenly spaced over those that all clips have, with a face; by default
            two rows of them.
        detail: the character's, on the generator's device.
        mix: the amount of a style in each of the track's frames; None leaves the styled row out.

    Returns:
        `[H, W, 3]` uint8.
    """
    size = generator.architecture.resolution if detail is None else detail.resolution
    shared = np.isfinite(track.quads).all((1, 2)) & np.isin(track.numbers, plate.numbers)
    if truth is not None:
        aligned = align_clip(truth, size)
        shared &= np.isin(track.numbers, aligned.face.numbers)
    faces = np.flatnonzero(shared)
    tile = min(max(size, 160), 384)  # so large that freckles count
    columns = min(SHEET_WIDTH // tile, 8)
    chosen = faces[evenly_spaced(len(faces), count or 2 * columns)]
    numbers = [int(n) for n in track.numbers[chosen]]

    def small(picture: np.ndarray) -> np.ndarray:
        return to_bytes(cv2.resize(picture, (tile, tile), interpolation=cv2.INTER_AREA))

    def tiles_of(crops: Iterable[Tensor]) -> list[np.ndarray]:
        return [small(c.permute(1, 2, 0).float().cpu().numpy() / 2 + 0.5) for c in crops]

    lines = [
        tiles_of(cut_out(plate, numbers, track.quads[chosen], size)),
        tiles_of(draw_frames(generator, track.smooth[chosen], detail=detail)),
    ]
    names = ["driving", "reenacted"]
    if mix is not None:
        some = mix.frames(chosen)
        lines.append(
            tiles_of(draw_frames(generator, track.smooth[chosen], detail=detail, mix=some))
        )
        names.append("styled")
    if truth is not None:
        lines.append(tiles_of(aligned.pictures[np.searchsorted(aligned.face.numbers, numbers)]))
        names.append("ground truth")
    columns = min(len(chosen), columns)
    tiles, labels = [], []
    for i in range(0, len(chosen), columns):
        for line, name in zip(lines, names, strict=True):
            part = line[i : i + columns]
            blank = [np.zeros_like(line[0])] * (columns - len(part))
            tiles += [*part, *blank]
            labels += [f"{n} {name}" for n in numbers[i : i + columns]] + [""] * len(blank)
    # A single frame's pictures stand side by side.
    return contact_sheet(tiles, labels, columns if columns > 1 else len(lines))


def movie(
    pattern: str,
    plate: Clip,
    numbers: Sequence[int],
    path: Path,
    progress: Progress = lambda done, total: None,
) -> None:
    """Writes a preview: the plate on the left, the patches merged over it on the right.

    Args:
        pattern: the patches, written on this plate by `core.render.frames.write_frames`.
        plate: the driving clip.
        numbers: the frames to show.
        path: the .mp4.
        progress: called with frames done and to do.

    Raises:
        core.media.errors.ClipError: a frame that can't be read, or a movie that can't be written.
    """
    patches = open_clip(pattern, min(numbers), max(numbers), config=plate.config)
    height = min(plate.height, MOVIE_HEIGHT) // 2 * 2
    width = round(plate.width * plate.pixel_aspect * height / plate.height) // 2 * 2

    def pairs() -> Iterator[np.ndarray]:
        for i, frame in enumerate(read_frames(plate, numbers)):
            patch = read_frame(patches, frame.number)
            assert patch.alpha is not None
            rgba = np.dstack([patch.pixels, patch.alpha])
            window = Window(0, 0, plate.width, plate.height)
            behind = plate_pixels(frame.pixels, plate, patches.colour_space)
            merged = over(Patch(rgba, window), behind)
            both = []
            for pixels in (behind, merged):
                srgb = colour.to_network(pixels, patches.colour_space, plate.config)[0] / 2 + 0.5
                both.append(cv2.resize(srgb, (width, height), interpolation=cv2.INTER_AREA))
            progress(i + 1, len(numbers))
            yield to_bytes(np.concatenate(both, 1))

    write_movie(path, pairs(), plate.fps or 24.0)
