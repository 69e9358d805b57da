"""A character small enough for tests: a 64 px generator that knows eight faces by heart."""

from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from performer_faces import acted, aligned
from shared import made_once
from torch import Tensor

from core.face.landmarks import detect_keypoints
from core.generator import Architecture, Generator
from core.personalize.character import Character, CharacterInfo

SIZE = 64
CHANNELS = {4: 64, 8: 64, 16: 64, 32: 48, 64: 24}
ARCHITECTURE = Architecture(SIZE, CHANNELS, mapping_layers=1, mapping_rate=1.0)
MOVES: tuple[dict[str, float], ...] = (
    {},
    {"jaw": 0.9},
    {"smile": 0.9, "teeth": 0.8},
    {"yaw": 16.0},
    {"yaw": -16.0},
    {"blink_l": 1.0, "blink_r": 1.0},
    {"gaze_x": 0.9, "pitch": 9.0},
    {"gaze_x": -0.9, "pitch": -9.0},
)


def _learn(pictures: Tensor, coarse: int = 80, fine: int = 110) -> tuple[Generator, Tensor]:
    """A generator, and the code `[512]` of each picture that it draws."""
    generator = Generator(ARCHITECTURE)
    codes = torch.randn(512) + 0.3 * torch.randn(len(pictures), 512)
    slow, fast = [], []  # one code has 512 numbers: together they move a style far
    for name, parameter in generator.synthesis.named_parameters():
        (slow if "affine" in name else fast).append(parameter)
        if "torgb.weight" in name:
            parameter.data *= 0.2
    groups = [{"params": slow, "lr": 1e-3}, {"params": fast, "lr": 3e-2}]
    optimiser = torch.optim.Adam(groups, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, coarse + fine)
    near = torch.exp(-(((torch.arange(SIZE) - 34) / 16) ** 2))
    weight = (0.3 + 2 * near * near[:, None])[None, None]
    for step in range(coarse + fine):
        factor = 2 if step < coarse else 1
        wanted, count = (F.avg_pool2d(t, factor) for t in (pictures, weight))
        error = generator.synthesis(codes, stop_at=SIZE // factor) - wanted
        loss = (count * (error.abs() + 2 * error.square())).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    optimiser.zero_grad()
    return generator.eval().requires_grad_(False), codes


def _make(folder: Path) -> None:
    """Writes what is learnt: `[state of the generator, anchors]`."""
    torch.manual_seed(0)
    generator, anchors = _learn(aligned(acted(5, *MOVES), SIZE))
    torch.save([generator.state_dict(), anchors], folder / "learnt.pt")


@lru_cache(maxsize=1)
def small_character() -> Character:
    """Made once per run, in about half a minute. Its scan's frames are 0, 10, 20, ..."""
    with torch.random.fork_rng():
        state, anchors = torch.load(made_once("small character", _make) / "learnt.pt")
        generator = Generator(ARCHITECTURE)
    generator.load_state_dict(state)
    generator.eval().requires_grad_(False)
    with torch.no_grad():
        keypoints = detect_keypoints(generator.synthesis(anchors))
    info = CharacterInfo(
        name="Small",
        consent={"who": "nobody: synthetic", "when": "2030-01-01", "scope": "tests"},
        selected=[10 * i for i in range(len(MOVES))],
        created="2030-01-01T00:00:00+00:00",  # its file is the same in every process
    )
    return Character(generator, anchors, keypoints, np.zeros((8, 8, 3), np.uint8), info, "5" * 64)
