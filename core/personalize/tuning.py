"""Pivotal tuning: a generator learns to draw one person's pictures from their anchors (eq. 1).

The paper takes 250,000 steps of one picture each. Here a step is a batch, the rate warms up and
decays, the result is a moving average, and tuning ends when held-out frames stop gaining.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import torch
from scipy.ndimage import distance_transform_edt
from torch import Tensor

from core.base import cpu
from core.base.adam import ParameterAdam
from core.base.digest import digest
from core.base.progress import EndAfter, TrainingProgress, never
from core.base.sampling import evenly_spaced
from core.base.training import Run, cosine, fade_on_plateau, train
from core.face.identity import Recogniser
from core.face.keypoints import FACE_OVAL, LEFT_EYE, OUTER_LIPS, RIGHT_EYE
from core.face.landmarks import detect_landmarks
from core.face.network import ALIGNED_ROI, CROP
from core.face.perceptual import Metric
from core.generator import Generator
from core.media.contact_sheet import contact_sheet
from core.personalize.inversion import reconstruction_loss

CHECKPOINT = "tuning.checkpoint"
MAPS_BYTES = 2**29  # of feature maps of the targets, at most, that are kept over all steps

_WEIGHT_SIDE = 256  # largest side of a weight map, px
# In fractions of the picture's side: how far the weight of eyes and mouth reaches beyond lids and
# lips, the softness of its edge, and the fall-off beyond the face's outline.
_REACH, _SOFT, _FALL = 0.02, 0.01, 0.15
_GAIN = 0.02  # dB that the moving average must gain on held-out frames to go on
_FADE = 2  # evaluations over which the rate falls to zero after a plateau

# Called after an evaluation with the moving average so far and the history.
OnEvaluation = Callable[[Generator, list[dict[str, float]]], None]


@dataclass(frozen=True)
class TuningSettings:
    """How a generator is tuned."""

    steps: int = 700
    rate: float = 2e-3  # Adam's peak; MyStyle takes 3e-4 and many more steps
    warm_up: int = 20  # steps
    betas: tuple[float, float] = (0.9, 0.99)  # Adam's
    batch: int = 8  # pictures per step; fewer need less memory
    lambda_pixel: float = 10.0  # eq. 1
    features: float = 5.0  # weight of pixels of eyes and mouth
    background: float = 0.2  # weight of pixels far from the face
    average: float = 0.99  # decay of the moving average of the weights
    half: bool = False  # bfloat16 from 32 px up
    check_every: int = 50  # steps between evaluations on the held-out frames
    patience: int = 4  # evaluations without a gain before the rate fades, over two more
    seed: int = 0


@dataclass(frozen=True, eq=False)
class Tuned:
    """A tuned generator."""

    generator: Generator  # moving average; evaluation mode, no gradients, on the base's device
    losses: list[dict[str, float]]  # per evaluation: step, mean loss, and the check's figure
    steps: int  # done
    plateau: bool  # whether the check ended it before its last step
    stopped: bool = False  # whether it was ended early, as somebody asked


@dataclass(frozen=True, eq=False)
class Pairs:
    """Codes and their target pictures."""

    w: Tensor  # [N, w_dim]
    pictures: Tensor  # [N, 3, R, R] in [-1, 1], any float type
    maps: list[Tensor] | None = None  # the metric's feature maps of the pictures, if kept


@dataclass(frozen=True, eq=False)
class Check:
    """A measure of a generator on what it is not trained on."""

    name: str  # of the figure that decides; higher is better
    measure: Callable[[Generator], dict[str, float]]  # this figure and others, by name
    gain: float  # its least growth within `TuningSettings.patience` evaluations to go on


def tune(
    generator: Generator,
    w: Tensor,
    pictures: Tensor,
    metric: Metric,
    settings: TuningSettings | None = None,
    *,
    held_out: Pairs | None = None,
    recogniser: Recogniser | None = None,
    on_evaluation: OnEvaluation | None = None,
    end_after: EndAfter = never,
    folder: str | Path | None = None,
    progress: TrainingProgress | None = None,
) -> Tuned:
    """Tunes all parameters of the synthesis network, so that w gives the pictures.

    With `folder`, the state is saved there every two minutes, at Ctrl-C and when `progress`
    raises; the same call goes on from there. On a CPU, with the same number of threads, its
    result is then bit for bit that of a run without a break.

    Args:
        generator: the base, on any device; it stays as it is.
        w: `[N, w_dim]`, anchors of the pictures, from `core.personalize.inversion.invert`.
        pictures: `[N, 3, R, R]` in [-1, 1], aligned, of the generator's resolution, any float
            type; the generator's device gets one batch at a time.
        metric: perceptual metric on the generator's device.
        settings: defaults to `TuningSettings()`.
        held_out: frames of the scan that are not learnt, with their codes (by inversion, as the
            anchors); when the generator stops gaining on them, the rate fades over two more
            evaluations and tuning ends.
        recogniser: measures the identity of held-out frames, too; on the generator's device.
        on_evaluation: as in `fine_tune`.
        end_after: as in `fine_tune`.
        folder: for the checkpoint.
        progress: called after every step with steps done and to do, and `loss`, `seconds_left`
            and (once measured) `psnr` of the held-out frames, dB, and their `identity`, at most 1.

    Raises:
        core.base.training.DivergedError: the rate is too high.
        core.base.checkpoints.CheckpointMismatchError: the folder holds a checkpoint of other
            inputs, or a damaged one.
        core.base.checkpoints.CheckpointNotSavedError: the checkpoint can't be written.
        ValueError: codes and pictures don't fit together, or don't fit the generator.
    """
    settings = settings or TuningSettings()
    if settings.steps < 1 or settings.batch < 1:
        raise ValueError("Tuning needs at least one step, of at least one picture.")
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
        indices = batch_indices(settings, len(pictures), step)
        return pair_loss(generator, pairs, indices, metric, settings, weights)

    return fine_tune(
        generator,
        loss,
        settings,
        check=None
        if held_out is None
        else psnr_check(held_out, settings.batch, recogniser, device),
        on_evaluation=on_evaluation,
        end_after=end_after,
        folder=folder,
        task="" if folder is None else _task(generator, metric, settings, pairs, held_out),
        progress=progress,
    )


@torch.no_grad()
def with_maps(pairs: Pairs, metric: Metric, batch: int) -> Pairs:
    """Adds the metric's feature maps of the pictures, so that no step computes them again.

    Returns:
        The pairs with maps; unchanged if the maps would take more than `MAPS_BYTES`.
    """

    def maps_of(pictures: Tensor) -> list[Tensor]:
        return metric.maps(pictures.to(metric.device, torch.float32))

    if len(pairs.pictures) * sum(m.nbytes for m in maps_of(pairs.pictures[:1])) > MAPS_BYTES:
        return pairs
    parts = [maps_of(part) for part in pairs.pictures.split(batch)]
    return replace(pairs, maps=[torch.cat(maps) for maps in zip(*parts, strict=True)])


def pair_loss(
    generator: Generator,
    pairs: Pairs,
    indices: Tensor,
    metric: Metric,
    settings: TuningSettings,
    weights: Tensor | None = None,
) -> Tensor:
    """Eq. 1's loss, averaged over some of the pairs.

    Args:
        generator: draws the codes.
        pairs: N codes and target pictures.
        indices: `[B]`, of the pairs that count.
        metric: perceptual metric on the generator's device.
        settings: for `lambda_pixel` and `half`.
        weights: `[N, 1, M, M]`, of the pixels.
    """
    device = next(generator.parameters()).device
    generated = generator.synthesis(
        pairs.w[indices].to(device, torch.float32),
        half=torch.bfloat16 if settings.half else None,
    )
    target = pairs.pictures[indices].to(device, torch.float32)
    weight = None if weights is None else weights[indices].to(device)
    maps = None if pairs.maps is None else [m[indices.to(m.device)] for m in pairs.maps]
    losses = reconstruction_loss(generated, target, metric, settings.lambda_pixel, weight, maps)
    return losses.mean()


def psnr_check(
    held_out: Pairs,
    batch: int,
    recogniser: Recogniser | None = None,
    device: torch.device | str = "cpu",
) -> Check:
    """Measures a generator by the mean PSNR of pairs that are not learnt, dB.

    With a recogniser, on a device, there is `identity` beside it: the mean cosine between what it
    sees in a picture and in its reconstruction.
    """

    @torch.no_grad()
    def embed(recogniser: Recogniser, pictures: Tensor) -> Tensor:
        parts = [part.to(device, torch.float32) for part in pictures.split(batch)]
        vectors = [recogniser.embed(part, detect_landmarks(part).landmarks) for part in parts]
        return torch.cat(vectors).cpu()

    real = None if recogniser is None else embed(recogniser, held_out.pictures)

    def measure(generator: Generator) -> dict[str, float]:
        generated = reconstruct(generator, held_out.w, batch)
        figures = {"psnr": float(psnr(generated, held_out.pictures).mean())}
        if recogniser is not None and real is not None:
            figures["identity"] = float((embed(recogniser, generated) * real).sum(1).mean())
        return figures

    return Check("psnr", measure, _GAIN)


@cpu.training()
def fine_tune(
    generator: Generator,
    loss: Callable[[Generator, int], Tensor],
    settings: TuningSettings,
    *,
    check: Check | None = None,
    on_evaluation: OnEvaluation | None = None,
    end_after: EndAfter = never,
    folder: str | Path | None = None,
    task: str = "",
    progress: TrainingProgress | None = None,
) -> Tuned:
    """Trains the synthesis network of a copy of a generator down the gradient of a loss.

    See `tune` for interruptions and what remains of them.

    Args:
        generator: on any device; it stays as it is.
        loss: of the copy, called with the number of steps done. It must depend on nothing else
            that changes, and may switch gradients of parameters off for the step.
        settings: of the optimiser, the evaluations and the steps.
        check: measures the moving average at each evaluation; when its figure stops gaining, the
            rate fades over two more evaluations and training ends.
        on_evaluation: called after each evaluation with the moving average so far and the history.
        end_after: training ends as soon as that many steps are done, at least one. The result is
            then the moving average, the newest: while the rate is high it is far better than the
            last weights, and held-out frames gain until a plateau ends the training anyway. The
            checkpoint stays, and the same call without this goes on as if nothing had happened.
        folder: for the checkpoint.
        task: digest of all that decides the result.
        progress: called after every step with steps done and to do, `loss`, `seconds_left` and
            (once measured) the check's figures.

    Raises:
        core.base.training.DivergedError: the rate is too high.
        core.base.checkpoints.CheckpointMismatchError: the folder holds a checkpoint of another
            task, or a damaged one.
        core.base.checkpoints.CheckpointNotSavedError: the checkpoint can't be written.
    """
    tuned = copy.deepcopy(generator).requires_grad_(False)
    average = copy.deepcopy(tuned)
    tuned.synthesis.requires_grad_(True)
    run = Run(
        tuned.synthesis,
        ParameterAdam([[*tuned.synthesis.parameters()]], settings.betas),
        settings.steps,
        average.synthesis,
        settings.average,
    )

    def evaluate(run: Run) -> None:
        if run.step % settings.check_every == 0 or run.step == run.steps:
            _evaluate(run, average, check, settings)

    def ended(run: Run) -> bool:
        steps = end_after()
        return steps is not None and run.step >= max(steps, 1)

    def measured() -> dict[str, float]:
        last = run.history[-1] if run.history else {}
        return {k: v for k, v in last.items() if k not in ("step", "loss")}

    def report(value: float, seconds_left: float) -> None:
        if on_evaluation is not None and run.history and run.history[-1]["step"] == run.step:
            on_evaluation(average, run.history)
        if progress is not None:
            progress(run.step, run.steps, loss=value, seconds_left=seconds_left, **measured())

    train(
        run,
        lambda step: loss(tuned, step),
        lambda run: [_rate(run, settings)],
        evaluate=evaluate,
        ended=ended,
        report=report,
        path=None if folder is None else Path(folder) / CHECKPOINT,
        task=task,
    )
    stopped = run.step < run.steps
    if stopped and run.pending:  # the checkpoint stays as it is without this evaluation
        run.history.append(_measure(run, average, check))
        if on_evaluation is not None:
            on_evaluation(average, run.history)
        if progress is not None:
            progress(run.step, run.steps, **measured())
    plateau = not stopped and run.steps < settings.steps
    return Tuned(average.eval().requires_grad_(False), run.history, run.step, plateau, stopped)


def evaluation_interval(steps: int) -> int:
    """Returns the steps between evaluations: fewer in a short training, which is watched, too."""
    return min(TuningSettings.check_every, -(-steps // 4))


def _rate(run: Run, settings: TuningSettings) -> float:
    """Adam's rate: it rises at the start, falls along a cosine, and fades after a plateau."""
    rate = settings.rate * min(1.0, (run.step + 1) / max(settings.warm_up, 1))
    rate *= cosine(run.step, settings.steps, 0.01)
    if run.fading:  # fine detail comes while the rate falls
        rate *= (run.steps - run.step) / (_FADE * settings.check_every)
    return rate


def _evaluate(run: Run, average: Generator, check: Check | None, settings: TuningSettings) -> None:
    """Adds the mean loss and the check's figures to the history; fades where nothing was gained."""
    entry = _measure(run, average, check)
    run.pending = []
    if check is not None:
        figures = [e[check.name] for e in (*run.history, entry)]
        fade_on_plateau(run, figures, check.gain, settings.patience, _FADE * settings.check_every)
    run.history.append(entry)


def _measure(run: Run, average: Generator, check: Check | None) -> dict[str, float]:
    """Returns an entry of the history: step, mean loss since the last one, the check's figures."""
    entry = {"step": float(run.step), "loss": math.fsum(run.pending) / len(run.pending)}
    return entry | (check.measure(average) if check is not None else {})


def _check(generator: Generator, pairs: Pairs) -> None:
    a = generator.architecture
    if pairs.w.ndim != 2 or not len(pairs.w) or pairs.w.shape[1] != a.w_dim:
        raise ValueError(f"Codes must be [N, {a.w_dim}], not {[*pairs.w.shape]}.")
    expected = (len(pairs.w), 3, a.resolution, a.resolution)
    if pairs.pictures.shape != expected:
        raise ValueError(f"Pictures must be {[*expected]}, not {[*pairs.pictures.shape]}.")


def batch_indices(settings: TuningSettings, count: int, step: int) -> Tensor:
    """Draws the pictures of a step: each is seen once before one is seen again.

    Args:
        settings: for `batch` and `seed`.
        count: of all pictures.
        step: steps done; the same step always gets the same pictures.

    Returns:
        `[min(batch, count)]` int64, indices below `count`.
    """
    size = min(settings.batch, count)
    positions = range(step * size, (step + 1) * size)
    orders = {}
    for epoch in {position // count for position in positions}:
        rng = torch.Generator().manual_seed(settings.seed * 1_000_003 + epoch)
        orders[epoch] = torch.randperm(count, generator=rng)
    return torch.stack([orders[position // count][position % count] for position in positions])


def _task(
    generator: Generator,
    metric: Metric,
    settings: TuningSettings,
    pairs: Pairs,
    held_out: Pairs | None,
) -> str:
    """Digest of all that decides the result."""
    data = [t for some in (pairs, held_out) if some is not None for t in (some.w, some.pictures)]
    return digest(metric.name, settings, *generator.state_dict().values(), *data)


# -- weights of pixels -------------------------------------------------------------------------


@torch.no_grad()
def face_weights(
    pictures: Tensor,
    features: float = 5.0,
    background: float = 0.2,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Weights pixels: highest in eyes and mouth, lowest far from the face.

    Args:
        pictures: `[N, 3, R, R]` in [-1, 1], aligned, any float type.
        features: weight within lids and lips.
        background: weight far from the face's outline; hair, ears and neck lie in between.
        device: runs the landmark network.

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
    """Fills rings of points `[K, 2]`, in fractions of a picture, with 1: `[size, size]`."""
    solid = np.zeros((size, size), np.float32)
    for ring in rings:
        corners = np.round((ring * size) * 16).astype(np.int32)
        cv2.fillPoly(solid, [corners], (1.0,), shift=4)
    return solid


def _near_face(outline: np.ndarray, size: int) -> np.ndarray:
    """Returns 1 within an outline, falling to 0 with the distance from it: `[size, size]`."""
    # OpenCV's transform differs in its last bits from call to call; resumed work must not.
    distance = distance_transform_edt(_filled([outline], size) == 0) / size
    return np.exp(-((distance / _FALL) ** 2))


# -- reconstructions ---------------------------------------------------------------------------


@torch.no_grad()
def reconstruct(generator: Generator, w: Tensor, batch: int = 8) -> Tensor:
    """Draws codes `[N, w_dim]`: pictures `[N, 3, R, R]` in [-1, 1], on the CPU."""
    device = next(generator.parameters()).device
    parts = [part.to(device, torch.float32) for part in w.split(batch)]
    return torch.cat([generator.synthesis(part).clamp(-1, 1).cpu() for part in parts])


def psnr(generated: Tensor, target: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of pictures `[B, 3, R, R]` in [-1, 1], dB, `[B]`."""
    error = (generated.float() - target.to(generated.device, torch.float32)) / 2
    return -10 * error.square().mean((1, 2, 3)).clamp(min=1e-10).log10()


def reconstruction_sheet(
    generator: Generator,
    w: Tensor,
    pictures: Tensor,
    numbers: list[int] | None = None,
    count: int = 20,
    columns: int = 10,
    batch: int = 8,
) -> np.ndarray:
    """Shows pictures above the generator's reconstructions, labelled with the PSNR.

    Args:
        generator: base or tuned.
        w: `[N, w_dim]`, codes of the pictures.
        pictures: `[N, 3, R, R]` in [-1, 1].
        numbers: N frame numbers; by default 0, 1, ...
        count: shows at most this many, evenly spaced.
        columns: pictures in a row.
        batch: pictures drawn at once; fewer need less memory.

    Returns:
        `[H, W, 3]` uint8.
    """
    selected = evenly_spaced(len(w), count)
    targets = pictures[selected].float().cpu()
    generated = reconstruct(generator, w[selected], batch)
    decibels = psnr(generated, targets)
    above, below = (
        ((p.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
        for p in (targets, generated)
    )
    columns = min(columns, len(selected))
    blank = np.full_like(above[0], 24)
    tiles: list[np.ndarray] = []
    labels: list[str] = []
    for i in range(0, len(selected), columns):
        row = slice(i, i + columns)
        missing = columns - len(selected[row])
        tiles += [*above[row], *[blank] * missing, *below[row], *[blank] * missing]
        labels += [str(numbers[k] if numbers else k) for k in selected[row]] + [""] * missing
        labels += [f"{float(d):.1f} dB" for d in decibels[row]] + [""] * missing
    return contact_sheet(tiles, labels, columns)
