"""A shot whose faults are known: the small character drives itself, but for two frames."""

import json
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from small_character import MOVES, SIZE, small_character

from core.face.landmarks import detect_landmarks
from core.face.network import aligned_roi, to_picture
from core.media.write import write_png
from core.personalize.character import load_character, save_character
from core.solve.latent_track import FrameState, LatentTrack, save_track
from core.solve.settings import SolveSettings

FIRST, FRAMES = 1001, 14
WRONG, LOST = 1006, 1011  # the result opens its mouth and the driver does not; no face was found
CORNER = (18, 26)  # of the face in the plate, px
PLATE = (112, 104)


@lru_cache(maxsize=1)
def small_shot(folder: Path) -> tuple[Path, Path, str]:
    """Files of a character and a track, and a clip's pattern; made once.

    The plate shows what the generator draws of the track's codes, in its frames' places; only in
    `WRONG` the code is another.
    """
    character, track = folder / "small.character", folder / "shot.latents"
    save_character(character, small_character())
    who = load_character(character)
    rng = np.random.default_rng(0)
    layers = who.generator.architecture.num_ws
    # From the face at rest some way towards others, and slowly back.
    share = 0.25 + 0.2 * np.sin(np.arange(FRAMES) / 3)[:, None] * rng.uniform(0.5, 1, len(MOVES))
    share[:, 1] = 0  # never with an open jaw
    share[:, 0] += 3
    alpha = (share / share.sum(1, keepdims=True)).astype(np.float32)
    codes = np.repeat((alpha @ who.anchors.numpy())[:, None], layers, 1)
    with torch.no_grad():
        drawn = who.generator.synthesis(torch.from_numpy(codes)).clamp(-1, 1)
    for i, picture in enumerate(drawn):
        plate = np.full((PLATE[1], PLATE[0], 3), 0.3, np.float32)
        x, y = CORNER
        plate[y : y + SIZE, x : x + SIZE] = picture.permute(1, 2, 0).numpy() / 2 + 0.5
        write_png(folder / f"plate.{FIRST + i}.png", plate)
    smooth = codes.copy()
    smooth[WRONG - FIRST] = who.anchors[1].numpy()
    state = np.full(FRAMES, FrameState.SOLVED, np.uint8)
    with torch.no_grad():
        found = to_picture(detect_landmarks(drawn).landmarks, aligned_roi(SIZE, FRAMES))
    landmarks = found.numpy() + np.float32([*CORNER, 0])
    quad = np.array(CORNER) + SIZE * np.array([[0, 0], [0, 1], [1, 1], [1, 0]])
    quads = np.repeat(quad[None].astype(np.float64), FRAMES, 0)
    state[LOST - FIRST] = FrameState.INTERPOLATED
    landmarks[LOST - FIRST] = np.nan
    save_track(
        track,
        LatentTrack(
            character=who.hash,
            numbers=np.arange(FIRST, FIRST + FRAMES),
            state=state,
            cut=np.arange(FRAMES) == 0,
            alpha=alpha,
            delta=np.zeros((FRAMES, layers, len(MOVES)), np.float32),
            codes=codes,
            smooth=smooth,
            neutral_offset=np.zeros((86, 3), np.float32),
            landmarks=landmarks,
            quads=quads,
            amount=np.ones(FRAMES, np.float32),
            losses={},
            quality={"keypoint_error": np.ones(FRAMES, np.float32)},
            settings=json.loads(json.dumps(asdict(SolveSettings(steps=8, neutral=None)))),
            source=str(folder / "plate.####.png"),
            plate=PLATE,
        ),
    )
    return character, track, str(folder / "plate.####.png")
