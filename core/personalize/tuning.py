"""Pivotal tuning: a generator learns to draw one person's pictures from their anchors (eq. 1).

The paper takes 250,000 steps of one picture each; here it is batches, a rate that warms up and
decays, a moving average, and an end when frames that were held out get no better.
"""

from __future__ import annotations

import copy
import math
import pickle
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np
import torch
from scipy.ndimage import distance_transform_edt
from torch import Tensor

from core.base import cpu
from core.base.digest import digest
from core.base.errors import ReenactError
from core.base.files import atomic_write
from core.base.sampling import evenly_spaced
from core.face.keypoints import FACE_OVAL, LEFT_EYE, OUTER_LIPS, RIGHT_EYE
from core.face.landmarks import detect_landmarks
from core.face.network import ALIGNED_ROI, CROP
from core.face.perceptual import Metric
from core.generator import Generator
from core.media.contact_sheet import contact_sheet
from core.personalize.inversion import reconstruction_loss

CHECKPOINT = "tuning.checkpoint"
CHECKPOINT_SECONDS = 120.0
MAPS_BYTES = 2**29  # of a metric's maps, at most, that are kept instead of made at every step

_WEIGHT_SIDE = 256  # largest side of a weight map, px
# In fractions of the picture's side: how far beyond lids and lips their weight reaches, how soft
# its edge is, and how fast weights fall beyond the face's outline (hair and neck are the person).
_REACH, _SOFT, _FALL = 0.02, 0.01, 0.15
_GAIN = 0.02  # dB that the moving average must gain on held-out frames to go on
_FADE = 2  # looks, over which the rate falls to nothing after a plateau


class TuningMismatchError(ReenactError):
    """The folder holds the checkpoint of another tuning, or a damaged one."""


class DivergedError(ReenactError):
    """The loss is no number any more."""


class TuningNotSavedError(ReenactError):
    """A checkpoint could not be written; the one before is still there."""


class Progress(Protocol):
    """Is told how far the tuning is, and figures worth showing."""

    def __call__(self, done: float, total: float, **figures: float) -> None: ...


@dataclass(frozen=True)
class TuningSettings:
    """How a generator is tuned. Defaults: what worked best (design, section 4)."""

    steps: int = 700
    rate: float = 2e-3  # Adam's at its highest; 3e-4 and many more steps are MyStyle's
    warm_up: int = 20  # steps
    betas: tuple[float, float] = (0.9, 0.99)  # Adam's
    batch: int = 8  # pictures per step; fewer need less memory
    lambda_pixel: float = 10.0  # eq. 1
    features: float = 5.0  # what pixels of eyes and mouth count
    background: float = 0.2  # what pixels far from the face count
    average: float = 0.99  # decay of the moving average of the weights
    half: bool = False  # bfloat16 from 32 px up
    check_every: int = 50  # steps between looks at the held-out frames
    patience: int = 4  # looks without a gain before the rate fades, within two more, and it ends
    seed: int = 0


@dataclass(frozen=True, eq=False)
class Tuned:
    """A generator that has learnt a person."""

    generator: Generator  # moving average; evaluation mode, no gradients, on the device it had
    losses: list[dict[str, float]]  # step, loss (mean since the last), and the check's figure
    steps: int  # done
    plateau: bool  # whether the check ended it before its last step


@dataclass(frozen=True, eq=False)
class Pairs:
    """Codes and what is to be drawn of them."""

    w: Tensor  # [N, w_dim]
    pictures: Tensor  # [N, 3, R, R] in [-1, 1], any float type
    maps: list[Tensor] | None = None  # the metric's of the pictures, where they have been kept


@dataclass(frozen=True, eq=False)
class Check:
    """How good a generator is at what it is not trained on."""

    name: str  # of the figure
    figure: Callable[[Generator], float]  # more is better
    gain: float  # that the figure must grow by within `Settings.patience` looks to go on


def tune(
    generator: Generator,
    w: Tensor,
    pictures: Tensor,
    metric: Metric,
    settings: TuningSettings | None = None,
    *,
    held_out: Pairs | None = None,
    folder: str | Path | None = None,
    progress: Progress | None = None,
) -> Tuned:
    """Tunes all parameters of the synthesis network, so that w gives the pictures.

    With `folder`, the state is written there every two minutes, at Ctrl-C and when `progress`
    raises; the same call goes on from there. On a CPU, with the same number of threads, its
    result then is bit for bit that of a run without a break.

    Args:
        generator: the base, on any device; it stays as it is.
        w: `[N, w_dim]`, anchors of the pictures, from `core.personalize.inversion.invert`.
        pictures: `[N, 3, R, R]` in [-1, 1], aligned, of the generator's resolution, any float
            type; the generator's device gets one batch at a time.
        metric: perceptual metric on the generator's device.
        settings: defaults to `Settings()`.
        held_out: frames of the scan that are not learnt, with their codes (by inversion, as the
            anchors); when the generator stops gaining on them, the rate fades over two more looks
            and tuning ends.
        folder: for the checkpoint.
        progress: called after every step with steps done and to do, and `loss`, `seconds_left`
            and (once measured) `psnr` of the held-out frames, dB.

    Raises:
        TuningMismatchError: the folder holds a checkpoint of other inputs, or a damaged one.
        Diverged: the rate is too high.
        TuningNotSavedError: the checkpoint can't be written.
        ValueError: codes and pictures don't fit together, or don't fit the generator.
    """
    settings = settings or TuningSettings()
    if settings.steps < 1 or settings.batch < 1:
        raise ValueError("A tuning needs at least one step, of at least one picture.")
    pairs = Pairs(w, pictures)
    for given in (pairs, held_out):
        if given is not None:
            _check(generator, given)
    device = next(generator.parameters()).device
    weights = None
    if settings.features != 1 or settings.background != 1:
        weights = face_weights(pictures, settings.features, settings.background, device)
    pairs = with_maps(pairs, metric, settings.batch)

    def loss(generator: Generator, step: int) -> Tensor:
        rows = chosen(settings, len(pictures), step)
        return pair_loss(generator, pairs, rows, metric, settings, weights)

    return fine_tune(
        generator,
        loss,
        settings,
        check=None if held_out is None else psnr_check(held_out, settings.batch),
        folder=folder,
        task="" if folder is None else _task(generator, metric, settings, pairs, held_out),
        progress=progress,
    )


@torch.no_grad()
def with_maps(pairs: Pairs, metric: Metric, batch: int) -> Pairs:
    """Pairs with the metric's maps of their pictures, which so are made once and not at every
    step; as they are where the maps would take more than `MAPS_BYTES`."""

    def seen(pictures: Tensor) -> list[Tensor]:
        return metric.maps(pictures.to(metric.device, torch.float32))

    if len(pairs.pictures) * sum(m.nbytes for m in seen(pairs.pictures[:1])) > MAPS_BYTES:
        return pairs
    parts = [seen(part) for part in pairs.pictures.split(batch)]
    return replace(pairs, maps=[torch.cat(maps) for maps in zip(*parts, strict=True)])


def pair_loss(
    generator: Generator,
    pairs: Pairs,
    rows: Tensor,
    metric: Metric,
    settings: TuningSettings,
    weights: Tensor | None = None,
) -> Tensor:
    """Eq. 1's loss, meant over some of the pairs; `weights` are `[N, 1, M, M]`, of the pixels."""
    device = next(generator.parameters()).device
    made = generator.synthesis(
        pairs.w[rows].to(device, torch.float32), half=torch.bfloat16 if settings.half else None
    )
    target = pairs.pictures[rows].to(device, torch.float32)
    weight = None if weights is None else weights[rows].to(device)
    maps = None if pairs.maps is None else [m[rows.to(m.device)] for m in pairs.maps]
    return reconstruction_loss(made, target, metric, settings.lambda_pixel, weight, maps).mean()


def psnr_check(held_out: Pairs, batch: int) -> Check:
    """The PSNR of pairs that are not learnt, dB."""

    def figure(generator: Generator) -> float:
        return float(psnr(reconstruct(generator, held_out.w, batch), held_out.pictures).mean())

    return Check("psnr", figure, _GAIN)


@cpu.training()
def fine_tune(
    generator: Generator,
    loss: Callable[[Generator, int], Tensor],
    settings: TuningSettings,
    *,
    check: Check | None = None,
    look: Callable[[Generator, list[dict[str, float]]], None] | None = None,
    folder: str | Path | None = None,
    task: str = "",
    progress: Progress | None = None,
) -> Tuned:
    """Goes down the gradient of a loss with the synthesis network of a copy of a generator.

    See `tune` for breaks, and what comes of them.

    Args:
        generator: on any device; it stays as it is.
        loss: of the copy, before a step (from 0). It must depend on nothing else that changes, and
            may switch gradients of parameters off for the step.
        settings: of the optimiser, of the looks and the steps.
        check: what ends it: when its figure stops gaining, the rate fades over two more looks.
        look: called at each look with the moving average so far, and the losses.
        folder: for the checkpoint.
        task: hash of all that decides the result.
        progress: called after every step with steps done and to do, `loss`, `seconds_left` and
            (once measured) the check's figure.

    Raises:
        TuningMismatchError: the folder holds a checkpoint of another task, or a damaged one.
        Diverged: the rate is too high.
        TuningNotSavedError: the checkpoint can't be written.
    """
    run = _Run(generator, settings)
    path = Path(folder) / CHECKPOINT if folder is not None else None
    if path is not None:
        run.restore(path, task)
    started, first, saved = time.monotonic(), run.step, time.monotonic()
    with _deferred_interrupt() as interrupted:
        while run.step < run.end:
            value = run.advance(loss(run.generator, run.step))
            looked = run.step % settings.check_every == 0 or run.step == run.end
            if looked:
                run.look(check)
            now = time.monotonic()
            if path is not None and now - saved > CHECKPOINT_SECONDS:
                run.save(path, task)
                saved = time.monotonic()
            try:
                if looked and look is not None:
                    look(run.average, run.losses)
                if progress is not None:
                    left = (run.end - run.step) * (now - started) / (run.step - first)
                    progress(run.step, run.end, loss=value, seconds_left=left, **run.figures(check))
                if interrupted():
                    raise KeyboardInterrupt
            except BaseException:
                if path is not None:
                    run.save(path, task)
                raise
    if path is not None:
        run.save(path, task)
    return Tuned(
        run.average.eval().requires_grad_(False), run.losses, run.step, run.end < settings.steps
    )


@dataclass(eq=False)
class _Run:
    """Everything that changes while a generator is tuned."""

    base: Generator
    settings: TuningSettings
    step: int = 0
    plateau: bool = False
    losses: list[dict[str, float]] = field(default_factory=list)
    pending: list[float] = field(default_factory=list)  # losses since the last look

    def __post_init__(self) -> None:
        self.end = self.settings.steps  # sooner after a plateau
        self.generator = copy.deepcopy(self.base).requires_grad_(False)
        self.average = copy.deepcopy(self.generator)
        self.generator.synthesis.requires_grad_(True)
        self.optimiser = torch.optim.Adam(
            self.generator.synthesis.parameters(), betas=self.settings.betas
        )

    def figures(self, check: Check | None) -> dict[str, float]:
        """The check's figure, once it is known."""
        if check is None or not self.losses:
            return {}
        return {check.name: self.losses[-1][check.name]}

    def advance(self, loss: Tensor) -> float:
        """One step down the gradient of a loss; returns its value."""
        value = float(loss.detach())
        if not math.isfinite(value):
            raise DivergedError(
                f"Tuning diverged at step {self.step + 1}. Lower its rate "
                f"({self.settings.rate:g}) and start again."
            )
        self.optimiser.zero_grad()
        loss.backward()
        s = self.settings
        rate = s.rate * min(1.0, (self.step + 1) / max(s.warm_up, 1))
        for group in self.optimiser.param_groups:
            group["lr"] = rate * (
                0.01 + 0.99 * (0.5 + 0.5 * math.cos(math.pi * self.step / s.steps))
            )
            if self.plateau:  # fine detail comes while the rate falls
                group["lr"] *= (self.end - self.step) / (_FADE * s.check_every)
        self.optimiser.step()
        keep = min((1 + self.step) / (10 + self.step), s.average)  # early weights are forgotten
        average: list[Tensor] = [*self.average.synthesis.parameters()]
        current: list[Tensor] = [*self.generator.synthesis.parameters()]
        with torch.no_grad():
            torch._foreach_lerp_(average, current, 1 - keep)
        self.step += 1
        self.pending.append(value)
        return value

    def look(self, check: Check | None) -> None:
        """Notes how far it is, and whether it still gains."""
        entry = {"step": float(self.step), "loss": math.fsum(self.pending) / len(self.pending)}
        self.pending = []
        if check is not None:
            entry[check.name] = check.figure(self.average)
            seen = [e[check.name] for e in self.losses] + [entry[check.name]]
            patience = self.settings.patience
            if len(seen) > patience and not self.plateau:
                self.plateau = max(seen[-patience:]) < max(seen[:-patience]) + check.gain
                if self.plateau:
                    self.end = min(self.end, self.step + _FADE * self.settings.check_every)
        self.losses.append(entry)

    def save(self, path: Path, task: str) -> None:
        state = {
            "task": task,
            "step": self.step,
            "plateau": self.plateau,
            "end": self.end,
            "losses": self.losses,
            "pending": self.pending,
            "generator": self.generator.synthesis.state_dict(),
            "average": self.average.synthesis.state_dict(),
            "optimiser": self.optimiser.state_dict(),
        }
        try:
            with atomic_write(path) as temporary:
                torch.save(state, temporary)
        except (OSError, RuntimeError) as error:  # torch's own for a full disk
            raise TuningNotSavedError(
                f"{path} could not be written: {error}. Free some space in that folder and start "
                "again: it goes on from the last checkpoint."
            ) from error

    def restore(self, path: Path, task: str) -> None:
        """Takes up the state of a checkpoint, if there is one."""
        if not path.exists():
            return
        device = next(self.generator.parameters()).device
        try:
            state: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
            if state["task"] == task:
                self.generator.synthesis.load_state_dict(state["generator"])
                self.average.synthesis.load_state_dict(state["average"])
                self.optimiser.load_state_dict(state["optimiser"])
                self.step, self.plateau = state["step"], state["plateau"]
                self.end = state["end"]
                self.losses, self.pending = state["losses"], state["pending"]
                return
        except (
            OSError,
            EOFError,
            KeyError,
            TypeError,
            ValueError,
            RuntimeError,
            pickle.UnpicklingError,
        ) as error:
            raise TuningMismatchError(
                f"{path} is damaged. Delete it to start from the base."
            ) from error
        raise TuningMismatchError(
            f"{path} belongs to a tuning of other pictures or settings. Delete it, or use another "
            "folder."
        )


def _check(generator: Generator, pairs: Pairs) -> None:
    a = generator.architecture
    if pairs.w.ndim != 2 or not len(pairs.w) or pairs.w.shape[1] != a.w_dim:
        raise ValueError(f"Codes must be [N, {a.w_dim}], not {[*pairs.w.shape]}.")
    wanted = (len(pairs.w), 3, a.resolution, a.resolution)
    if pairs.pictures.shape != wanted:
        raise ValueError(f"Pictures must be {[*wanted]}, not {[*pairs.pictures.shape]}.")


def chosen(settings: TuningSettings, count: int, step: int) -> Tensor:
    """Indices of a step's pictures: all are seen once before one is seen again."""
    size = min(settings.batch, count)
    places = range(step * size, (step + 1) * size)
    orders = {}
    for pass_ in {place // count for place in places}:
        rng = torch.Generator().manual_seed(settings.seed * 1_000_003 + pass_)
        orders[pass_] = torch.randperm(count, generator=rng)
    return torch.stack([orders[place // count][place % count] for place in places])


def _task(
    generator: Generator,
    metric: Metric,
    settings: TuningSettings,
    pairs: Pairs,
    held_out: Pairs | None,
) -> str:
    """Hash of all that decides the result."""
    data = [t for some in (pairs, held_out) if some is not None for t in (some.w, some.pictures)]
    return digest(metric.name, settings, *generator.state_dict().values(), *data)


@contextmanager
def _deferred_interrupt() -> Iterator[Any]:
    """Holds Ctrl-C back until a step is whole; yields what says whether it came. Twice is now."""
    came = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield came.is_set  # only the main thread is ever interrupted
        return

    def handle(number: int, frame: object) -> None:
        if came.is_set():
            raise KeyboardInterrupt
        came.set()

    before = signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, handle)
    try:
        yield came.is_set
    finally:
        signal.signal(signal.SIGINT, before or signal.SIG_DFL)  # None: not set by Python


# -- what pixels count -------------------------------------------------------------------------


@torch.no_grad()
def face_weights(
    pictures: Tensor,
    features: float = 5.0,
    background: float = 0.2,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Weights of pixels: most in eyes and mouth, least far from the face.

    Args:
        pictures: `[N, 3, R, R]` in [-1, 1], aligned, any float type.
        features: weight within lids and lips.
        background: weight that pixels far from the face's outline fall off to; hair, ears and
            neck lie in between.
        device: that runs the landmark network.

    Returns:
        `[N, 1, M, M]` float32 on the CPU, M at most 256.
    """
    size = min(pictures.shape[-1], _WEIGHT_SIDE)
    x, y, width, height, _ = ALIGNED_ROI
    maps = []
    for part in pictures.split(8):
        points = detect_landmarks(part.to(device, torch.float32)).landmarks[..., :2].cpu().numpy()
        for xy in (points / CROP - 0.5) * [width, height] + [x, y]:
            near = _near_face(xy[[*FACE_OVAL]], size)
            parts = _filled([xy[[*ring]] for ring in (RIGHT_EYE, LEFT_EYE, OUTER_LIPS)], size)
            reach = 2 * round(_REACH * size) + 1
            kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (reach, reach))
            parts = cv2.GaussianBlur(cv2.dilate(parts, kernel), (0, 0), _SOFT * size)
            maps.append((background + (1 - background) * near) * (1 + (features - 1) * parts))
    return torch.from_numpy(np.stack(maps)[:, None].astype(np.float32))


def _filled(rings: list[np.ndarray], size: int) -> np.ndarray:
    """Rings of points `[K, 2]` in fractions of a picture, filled with 1: `[size, size]`."""
    solid = np.zeros((size, size), np.float32)
    for ring in rings:
        corners = np.round((ring * size) * 16).astype(np.int32)
        cv2.fillPoly(solid, [corners], (1.0,), shift=4)
    return solid


def _near_face(outline: np.ndarray, size: int) -> np.ndarray:
    """1 within an outline, falling to 0 with the distance from it: `[size, size]`."""
    # OpenCV's differs in its last bits from call to call, and resumed work must not.
    distance = distance_transform_edt(_filled([outline], size) == 0) / size
    return np.exp(-((distance / _FALL) ** 2))


# -- looking at it -----------------------------------------------------------------------------


@torch.no_grad()
def reconstruct(generator: Generator, w: Tensor, batch: int = 8) -> Tensor:
    """What a generator draws of codes `[N, w_dim]`: `[N, 3, R, R]` in [-1, 1], on the CPU."""
    device = next(generator.parameters()).device
    parts = [part.to(device, torch.float32) for part in w.split(batch)]
    return torch.cat([generator.synthesis(part).clamp(-1, 1).cpu() for part in parts])


def psnr(made: Tensor, target: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of pictures in [-1, 1], dB, `[B]`."""
    error = ((made.float() - target.to(made.device, torch.float32)) / 2).square().mean((1, 2, 3))
    return -10 * error.clamp(min=1e-10).log10()


def reconstruction_sheet(
    generator: Generator,
    w: Tensor,
    pictures: Tensor,
    numbers: list[int] | None = None,
    count: int = 20,
    columns: int = 10,
) -> np.ndarray:
    """Pictures above what the generator draws of their codes, labelled with the PSNR.

    Args:
        generator: base or tuned.
        w: `[N, w_dim]`.
        pictures: `[N, 3, R, R]` in [-1, 1].
        numbers: N frame numbers; by default 0, 1, ...
        count: how many to show, evenly spread.
        columns: pictures in a row.

    Returns:
        `[H, W, 3]` uint8.
    """
    shown = evenly_spaced(len(w), count)
    targets, made = pictures[shown].float().cpu(), reconstruct(generator, w[shown])
    decibels = psnr(made, targets)
    above, below = (
        ((p.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
        for p in (targets, made)
    )
    columns = min(columns, len(shown))
    blank = np.full_like(above[0], 24)
    tiles: list[np.ndarray] = []
    labels: list[str] = []
    for i in range(0, len(shown), columns):
        row = shown[i : i + columns]
        rest = columns - len(row)
        tiles += [
            *above[i : i + columns],
            *[blank] * rest,
            *below[i : i + columns],
            *[blank] * rest,
        ]
        labels += [str(numbers[k] if numbers else k) for k in row] + [""] * rest
        labels += [f"{float(d):.1f} dB" for d in decibels[i : i + columns]] + [""] * rest
    return contact_sheet(tiles, labels, columns)
