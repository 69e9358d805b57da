"""From a character to a style: a copy of its generator learns to draw in another manner.

Three methods. A pixel program gives the target of each of the character's pictures. A sentence
gives a direction in CLIP's space, along which the style's pictures must differ from the parent's
(StyleGAN-NADA, Gal et al. 2021). Example pictures give such a direction as well, or without CLIP
the statistics of their patches, while a perceptual metric keeps the parent's structure.

All start at the parent and draw the same codes, blends of the character's anchors, so parent and
style stay aligned: a code means the same in both.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from core.base.digest import digest
from core.base.errors import ReenactError
from core.base.files import work_folder
from core.base.progress import EndAfter, Progress, Report, never
from core.base.sampling import evenly_spaced
from core.face import perceptual
from core.face.alignment import ffhq_quads, warp
from core.face.landmarks import detect_keypoints
from core.face.tracking import track_face
from core.generator import Generator
from core.generator.storage import generator_digest
from core.media.clip import Clip, NetworkFrame
from core.media.contact_sheet import contact_sheet
from core.media.read import open_clip, read_network_frames
from core.media.write import to_bytes, write_png
from core.personalize import tuning
from core.personalize.character import Character
from core.personalize.detail import Detail
from core.personalize.pipeline import RATE
from core.personalize.tuning import Check, Pairs, reconstruct
from core.stylize.clip_model import ClipModel
from core.stylize.pixel_programs import run_program
from core.stylize.style import (
    Style,
    StyleInfo,
    load_style,
    save_style,
    style_info,
)
from core.stylize.style_detail import learn_style_detail
from core.synthetic.base import base_generator

HELD_OUT = 12  # codes that are not trained on
# Sentences around both prompts: what they share cancels in the difference of the embeddings.
TEMPLATES = (
    "{}",
    "an image of {}",
    "a picture that shows {}",
    "{}, seen from the front",
    "{} up close",
    "one view of {}",
    "a good rendition of {}",
    "a small reproduction of {}",
)

# Distance between unit vectors; CLIP's embeddings of two faces are several times as far apart.
_LEAST_SHIFT = 0.05
# The choice of layers (StyleGAN-NADA, section 4.2): pictures, and the step of their codes.
_CHOICE_BATCH, _CHOICE_RATE = 8, 0.01
# Patches: side in px, how many are taken from a row of a picture, directions that they are
# projected on, octaves, and the weight of a patch's position beside its colours.
_PATCH, _PATCHES_PER_ROW, _PROJECTIONS, _OCTAVES, _POSITION = 5, 32, 64, 4, 1.0
_STRUCTURE = 0.5  # weight of the metric's distance to the parent, where patches are learnt
# StyleGAN-NADA's optimiser: its rate is rosinality's .002, and rate and beta are both corrected for
# a lazy regulariser that it does not use (4 of 5 steps).
NADA_RATE = 0.002 * 4 / 5
NADA_BETAS = (0.0, 0.99 ** (4 / 5))
_EMBEDDED = 10.0  # factor of the rate for the embedded base, which was trained at a higher one


class StyleExistsError(ReenactError):
    """The output is another style."""


class NoExamplesError(ReenactError):
    """The example pictures show no face."""


@dataclass(frozen=True)
class Program:
    """Towards a program of `core.stylize.pixel_programs`."""

    name: str


@dataclass(frozen=True, eq=False)
class Prompt:
    """From what a source sentence says to what the text says, by CLIP."""

    text: str
    source: str
    clips: Sequence[ClipModel]
    layers: int | None = None  # trained at a time, those that matter most; None: all


@dataclass(frozen=True, eq=False)
class Examples:
    """Towards example pictures."""

    pictures: Tensor  # [K, 3, R, R] in [-1, 1], aligned, from `align_examples`
    clips: Sequence[ClipModel] = ()  # none: towards the statistics of their patches
    layers: int | None = None  # as in `Prompt`, with CLIP


Method = Program | Prompt | Examples


@dataclass(frozen=True)
class StylizeSettings:
    """How a style is trained. At 1024 px the samples take up to 3 GB of memory."""

    steps: int = 300
    batch: int = 4  # pictures per step; fewer need less memory
    samples: int = 240  # codes trained on, at most
    rate: float | None = None  # Adam's; None: by the base and the method
    metric: str | None = None  # perceptual metric; None: the best that is on this machine
    check_every: int = 50  # steps between evaluations
    seed: int = 0


def stylize(
    character: Character,
    method: Method,
    output: str | Path,
    report: Report,
    *,
    name: str | None = None,
    settings: StylizeSettings | None = None,
    device: str = "cpu",
    on_preview: Callable[[], None] = lambda: None,
    end_after: EndAfter = never,
) -> Style:
    """Makes a style of a character and writes it, with a sheet of parent and style.

    At every evaluation the style so far is written, so that it can be tried, and training can be
    stopped when it is good. Unfinished work is kept in `OUTPUT.work`: the same call goes on where
    it was stopped, to the same result bit for bit (on one machine, with as many threads).

    Args:
        character: read from its file.
        method: what the style is trained towards.
        output: `NAME.style`; `NAME_preview.png` is written beside it.
        report: receives progress.
        name: of the style; by default NAME.
        settings: defaults to `StylizeSettings()`.
        device: torch device; the models of `method` are on it.
        on_preview: called whenever both files were written.
        end_after: as in `core.personalize.tuning.fine_tune`: the style is then complete, but
            marked as stopped early, and the same call without this trains it further.

    Returns:
        The style, read from its file.

    Raises:
        StyleExistsError: `output` is another style.
        core.base.errors.ReenactError: a file can't be read or written.
        ValueError: the character was not read from its file.
    """
    output, settings = Path(output), settings or StylizeSettings()
    if not character.hash:
        raise ValueError("Save the character and load it: a style names its parent by its hash.")
    parent = character.generator.to(device)
    if character.detail is not None:
        character.detail.network.to(device)
    rate = settings.rate or _rate(character, method)
    metric = None if _by_clip(method) else perceptual.metric(settings.metric, device)
    settings = replace(settings, rate=rate, metric=None if metric is None else metric.name)
    info = StyleInfo(
        name=name or output.stem,
        parent=character.hash,
        parent_generator=generator_digest(character.generator),
        base_hash=character.info.base_hash,
        method=_facts(method),
        consent=character.info.consent,
        settings=asdict(settings),
        task=digest(character.hash, *_detail_facts(character), name, settings, *_decisive(method)),
    )
    if output.exists() and _is_complete(output, info):
        return load_style(output, character)
    with report.stage("drawing") as progress:
        samples = _draw_samples(character, parent, settings, progress)
    tuning_settings = tuning.TuningSettings(
        steps=settings.steps,
        rate=rate,
        batch=settings.batch,
        check_every=settings.check_every,
        seed=settings.seed,
    )
    if _by_clip(method):
        tuning_settings = replace(tuning_settings, betas=NADA_BETAS, warm_up=0)
    objective = _objective(method, tuning_settings, metric, parent, samples)

    def write(
        generator: Generator,
        losses: list[dict[str, float]],
        complete: bool = False,
        stopped: bool = False,
        detail: Detail | None = None,
    ) -> None:
        generated = reconstruct(generator, samples.held_out, settings.batch)
        rows = [("parent", samples.held_out_parent)]
        if objective.targets is not None:
            rows.append(("program", objective.targets))
        sheet = style_sheet([*rows, ("style", generated)])
        write_png(output.with_name(f"{output.stem}_preview.png"), sheet)
        current = replace(
            info,
            losses=losses,
            steps=int(losses[-1]["step"]),
            complete=complete,
            stopped_early=stopped,
            alignment=alignment(generated, samples.held_out_parent, device),
        )
        thumbnail = to_bytes(_thumbnail(generated))
        save_style(output, Style(generator, thumbnail, current, detail=detail))
        on_preview()

    work = work_folder(output)
    with report.stage("stylizing") as progress:
        tuned = tuning.fine_tune(
            parent,
            objective.loss,
            tuning_settings,
            check=objective.check,
            on_evaluation=write,
            end_after=end_after,
            folder=work / info.task[:16],
            task=info.task,
            progress=progress,
        )
    if tuned.plateau:
        report.note(f"it stopped gaining: ended after {tuned.steps} of {settings.steps} steps")
    if tuned.stopped:
        report.note(f"stopped early, as asked: {tuned.steps} of {settings.steps} steps")
    detail = None
    if character.detail is not None and isinstance(method, Program):
        detail = learn_style_detail(
            parent,
            character.detail,
            tuned.generator,
            method.name,
            samples.train,
            samples.held_out,
            steps=settings.steps,
            batch=settings.batch,
            folder=work / f"detail_{info.task[:16]}",
            report=report,
            end_after=end_after,
        )
    write(tuned.generator, tuned.losses, complete=True, stopped=tuned.stopped, detail=detail)
    if not tuned.stopped:
        shutil.rmtree(work, ignore_errors=True)
    return load_style(output, character)


@dataclass(frozen=True, eq=False)
class _Samples:
    """Codes, and the parent's pictures of them in float16."""

    train: Tensor  # [N, w_dim]
    train_parent: Tensor  # [N, 3, R, R] in [-1, 1]
    held_out: Tensor  # [HELD_OUT, w_dim]
    held_out_parent: Tensor  # [HELD_OUT, 3, R, R] in [-1, 1]


def _draw_samples(
    character: Character, parent: Generator, settings: StylizeSettings, progress: Progress
) -> _Samples:
    """Samples the codes of a training, and draws them by the parent."""
    count = min(settings.samples, settings.steps * settings.batch)  # others would not be seen
    codes = sample_codes(character.anchors, count + HELD_OUT, settings.seed)
    parts = []
    for part in codes.split(settings.batch):
        parts.append(reconstruct(parent, part, settings.batch).half())
        progress(sum(map(len, parts)), len(codes))
    pictures = torch.cat(parts)
    return _Samples(codes[:count], pictures[:count], codes[count:], pictures[count:])


@dataclass(frozen=True, eq=False)
class _Objective:
    """What a style is trained by."""

    loss: Callable[[Generator, int], Tensor]  # of the style, called with the steps done
    check: Check  # ends the training
    targets: Tensor | None = None  # of the held-out codes, for the sheet


def _objective(
    method: Method,
    settings: tuning.TuningSettings,
    metric: perceptual.Metric | None,
    parent: Generator,
    samples: _Samples,
) -> _Objective:
    """Returns the objective of a method; `metric` is None for those by CLIP."""
    if metric is None:
        assert not isinstance(method, Program)
        return _towards_direction(method, settings, parent, samples)
    if isinstance(method, Program):
        return _towards_program(method, settings, metric, samples)
    assert isinstance(method, Examples)
    return _towards_patches(method, settings, metric, samples)


def _towards_program(
    method: Program,
    settings: tuning.TuningSettings,
    metric: perceptual.Metric,
    samples: _Samples,
) -> _Objective:
    """Aims at the program's pictures by eq. 1; checked by the PSNR of held-out codes."""
    targets = run_program(method.name, samples.train_parent)
    held_out = run_program(method.name, samples.held_out_parent)
    # Eyes and mouth are located in the parent's pictures: a drawing may mislead the detector.
    weights = tuning.face_weights(samples.train_parent, settings.features, 1.0, metric.device)
    pairs = tuning.with_maps(Pairs(samples.train, targets), metric, settings.batch)

    def loss(generator: Generator, step: int) -> Tensor:
        indices = tuning.batch_indices(settings, len(pairs.w), step)
        return tuning.pair_loss(generator, pairs, indices, metric, settings, weights)

    check = tuning.psnr_check(Pairs(samples.held_out, held_out), settings.batch)
    return _Objective(loss, check, held_out)


def _rate(character: Character, method: Method) -> float:
    """Adam's rate for a style."""
    embedded = character.info.base_hash == generator_digest(base_generator())
    return (NADA_RATE if _by_clip(method) else RATE) * (_EMBEDDED if embedded else 1)


def _by_clip(method: Method) -> bool:
    return isinstance(method, Prompt) or (isinstance(method, Examples) and bool(method.clips))


def _detail_facts(character: Character) -> tuple[str, ...]:
    """What a style's digest has of the character's detail: nothing where there is none."""
    return () if character.detail is None else (character.detail.digest(),)


def _is_complete(path: Path, info: StyleInfo) -> bool:
    """Whether a file is the finished style of this record; False for one that can be trained on.

    Raises:
        StyleExistsError: it is another style.
    """
    existing = style_info(path)
    same = [(i.parent, i.name, i.method) for i in (existing, info)]
    # An unfinished one may go on with another batch, if memory turned out to be short.
    if (existing.task != info.task and existing.complete) or same[0] != same[1]:
        raise StyleExistsError(
            f"{path} is another style ({existing.name}), or was made with other settings. Delete "
            "it, or choose another name."
        )
    return existing.complete and not existing.stopped_early


def sample_codes(anchors: Tensor, count: int, seed: int = 0) -> Tensor:
    """Samples codes that draw the person: blends of a few anchors.

    Args:
        anchors: `[N, w_dim]`.
        count: of codes.
        seed: of the random blends.

    Returns:
        `[count, w_dim]` within the convex hull of the anchors, in no order.
    """
    rng = np.random.default_rng(seed)
    few = min(4, len(anchors))
    weights = np.zeros((count, len(anchors)), np.float32)
    for row in weights:
        # A small concentration gives codes that are mostly near one anchor, as those of a track.
        row[rng.choice(len(anchors), few, replace=False)] = rng.dirichlet([0.3] * few)
    return torch.from_numpy(weights) @ anchors.detach().cpu()


def align_examples(clip: Clip, size: int, device: str = "cpu") -> tuple[Tensor, int]:
    """Aligns example pictures as the generator's pictures are.

    Args:
        clip: stills, whose sizes may differ, or a movie; every frame is an example.
        size: side of the aligned pictures, px.
        device: runs the landmark network.

    Returns:
        `[K, 3, size, size]` float32 in [-1, 1] of those with a face, and the number of those
        without.

    Raises:
        NoExamplesError: no picture has a face.
        core.media.errors.ClipError: a picture can't be read.
    """
    aligned, without = [], 0
    for frame in _examples(clip):
        mesh = track_face(
            [(frame.number, frame.srgb)], pixel_aspect=clip.pixel_aspect, device=device
        )
        if not mesh.found.any():
            without += 1
            continue
        quad = torch.from_numpy(ffhq_quads(mesh.landmarks, clip.pixel_aspect)).float()
        plate = torch.from_numpy(frame.srgb).permute(2, 0, 1)[None]
        aligned.append(warp(plate, quad, size).clamp(0, 1) * 2 - 1)
    if not aligned:
        raise NoExamplesError(
            f"There is no face in the pictures of {clip.shown}. Give some in which eyes, nose and "
            "mouth can be told apart, about upright."
        )
    return torch.cat(aligned), without


def _examples(clip: Clip) -> Iterator[NetworkFrame]:
    if clip.kind != "sequence":
        yield from read_network_frames(clip)
        return
    for number in clip.numbers:  # opened alone, each may have a size of its own
        one = open_clip(clip.path, number, number, clip.colour_space, clip.config)
        yield from read_network_frames(one)


@torch.no_grad()
def alignment(a: Tensor, b: Tensor, device: str = "cpu") -> float:
    """Mean distance of the keypoints detected in two sets of pictures.

    Absolute, unlike `core.face.landmarks.keypoint_error`: a face that moves as a whole counts, too.

    Args:
        a: `[B, 3, R, R]` in [-1, 1].
        b: the same shape.
        device: runs the landmark network.

    Returns:
        px of the 192 px crop, in x and y.
    """
    first, second = (
        torch.cat([detect_keypoints(part.to(device, torch.float32)).cpu() for part in p.split(8)])
        for p in (a, b)
    )
    return float((first - second)[..., :2].norm(dim=-1).mean())


def style_sheet(rows: Sequence[tuple[str, Tensor]], count: int = 8, tile: int = 160) -> np.ndarray:
    """Makes a contact sheet with one code per column.

    Args:
        rows: label and pictures `[N, 3, R, R]` in [-1, 1] of each row.
        count: columns at most, evenly spaced among the N codes.
        tile: side of a picture in the sheet, px.

    Returns:
        `[H, W, 3]` uint8.
    """
    columns = evenly_spaced(len(rows[0][1]), count)
    tiles = [
        to_bytes(cv2.resize(_rgb(picture), (tile, tile), interpolation=cv2.INTER_AREA))
        for _, pictures in rows
        for picture in pictures[columns]
    ]
    return contact_sheet(tiles, [name for name, _ in rows for _ in columns], len(columns))


def _rgb(picture: Tensor) -> np.ndarray:
    return picture.permute(1, 2, 0).float().numpy() / 2 + 0.5


def _thumbnail(pictures: Tensor) -> np.ndarray:
    return cv2.resize(_rgb(pictures[0]), (128, 128), interpolation=cv2.INTER_AREA)


# -- CLIP ----------------------------------------------------------------------------------------


def text_direction(clip: ClipModel, source: str, target: str) -> Tensor:
    """CLIP's direction from one sentence to another, averaged over `TEMPLATES`, `[D]`, length 1."""
    a, b = (clip.text([t.format(words) for t in TEMPLATES]) for words in (source, target))
    return F.normalize((b - a).mean(0), dim=0)


def directional_loss(generated: Tensor, parent: Tensor, direction: Tensor) -> Tensor:
    """1 - cos of the angle between a shift of embeddings and a direction (StyleGAN-NADA, eq. 2).

    A shift that is short against `_LEAST_SHIFT` counts less: where a style starts, at its parent,
    the cosine is undefined and its slope has no bound, and Adam would remember that slope to the
    end.

    Args:
        generated: embeddings of the style's pictures, `[B, D]`.
        parent: those of the parent's, `[B, D]`.
        direction: `[D]`, of length 1.

    Returns:
        `[B]`.
    """
    shift = generated - parent
    return 1 - shift @ direction / (shift.square().sum(1) + _LEAST_SHIFT**2).sqrt()


def convolutions(generator: Generator) -> list[torch.nn.Module]:
    """Returns the modulated 3x3 convolutions: the i-th takes layer i of w+."""
    blocks = [
        generator.synthesis.get_submodule(f"b{r}") for r in generator.architecture.resolutions
    ]
    return [
        block.get_submodule(name)
        for block in blocks
        for name in ("conv0", "conv1")
        if hasattr(block, name)
    ]


def choose_layers(
    generator: Generator,
    codes: Tensor,
    clips: Sequence[ClipModel],
    targets: Sequence[Tensor],
    count: int,
) -> list[int]:
    """Chooses the layers of w+ that move furthest when codes alone are to look like the target.

    One step down the gradient of 1 - cos(picture, target), and the mean of |dw| by layer: published
    as StyleGAN-NADA's adaptive layer freezing, there with the same step.

    Args:
        generator: the style so far.
        codes: `[B, w_dim]`.
        clips: models.
        targets: one embedding `[D]` for each model.
        count: layers to choose.

    Returns:
        Layers that belong to a convolution, increasing.
    """
    w = codes[:, None].repeat(1, generator.architecture.num_ws, 1).requires_grad_(True)
    generated = generator.synthesis(w)
    loss = torch.stack(
        [
            1 - F.cosine_similarity(c.image(generated), t[None]).mean()
            for c, t in zip(clips, targets, strict=True)
        ]
    ).sum()
    (slope,) = torch.autograd.grad(loss, w)
    moved = (_CHOICE_RATE * slope).abs().mean((0, 2))[: len(convolutions(generator))]
    return sorted(moved.topk(min(count, len(moved))).indices.tolist())


def _towards_direction(
    method: Prompt | Examples,
    settings: tuning.TuningSettings,
    parent: Generator,
    samples: _Samples,
) -> _Objective:
    """Aims along a direction of CLIP's; checked by how well held-out codes follow it."""
    device = next(parent.parameters()).device
    train = samples.train.to(device)

    @torch.no_grad()
    def embed(clip: ClipModel, pictures: Tensor) -> Tensor:
        parts = pictures.split(settings.batch)
        return torch.cat([clip.image(part.to(device, torch.float32)) for part in parts])

    # The frozen parent's embeddings, computed once.
    train_parent = [embed(clip, samples.train_parent) for clip in method.clips]
    held_out_parent = [embed(clip, samples.held_out_parent) for clip in method.clips]
    if isinstance(method, Prompt):
        directions = [text_direction(c, method.source, method.text) for c in method.clips]
        targets = [c.text([method.text])[0] for c in method.clips]
    else:
        targets = [embed(c, method.pictures).mean(0) for c in method.clips]
        directions = [
            F.normalize(t - p.mean(0), dim=0) for t, p in zip(targets, train_parent, strict=True)
        ]

    def loss(generator: Generator, step: int) -> Tensor:
        layers = None
        if method.layers is not None:
            few = replace(settings, batch=_CHOICE_BATCH)
            some = train[tuning.batch_indices(few, len(train), step)]
            layers = choose_layers(generator, some, method.clips, targets, method.layers)
        _unfreeze(generator, layers)
        indices = tuning.batch_indices(settings, len(train), step)
        generated = generator.synthesis(train[indices])
        return torch.stack(
            [
                directional_loss(clip.image(generated), start[indices.to(device)], direction).mean()
                for clip, start, direction in zip(
                    method.clips, train_parent, directions, strict=True
                )
            ]
        ).sum()

    def measure(generator: Generator) -> dict[str, float]:
        generated = reconstruct(generator, samples.held_out, settings.batch)
        along = [
            1 - directional_loss(embed(clip, generated), start, direction).mean()
            for clip, start, direction in zip(
                method.clips, held_out_parent, directions, strict=True
            )
        ]
        return {"direction": float(torch.stack(along).mean())}

    return _Objective(loss, Check("direction", measure, 0.005))


def _unfreeze(generator: Generator, layers: Sequence[int] | None) -> None:
    """Lets some of the convolutions learn, or all, and nothing else: toRGB never does."""
    modules = convolutions(generator)
    generator.synthesis.requires_grad_(False)
    for layer in range(len(modules)) if layers is None else layers:
        modules[layer].requires_grad_(True)
    if layers is None or 0 in layers:
        generator.synthesis.get_parameter("b4.const").requires_grad_(True)


# -- patches -------------------------------------------------------------------------------------


def patch_distance(generated: Tensor, examples: Tensor, seed: int) -> Tensor:
    """Measures how differently the patches of two sets of pictures are distributed.

    The sliced Wasserstein distance (Rabin et al. 2011) of patches at several octaves: along random
    directions, the mean square of the differences of their sorted projections. A patch includes its
    position in the picture, so lips become what lips are in the examples.

    Args:
        generated: `[B, 3, R, R]` in [-1, 1], R at least 64.
        examples: `[K, 3, R, R]`.
        seed: of the directions, and of the patches' positions.

    Returns:
        A scalar; 0 where both sets are the same.
    """
    rng = torch.Generator().manual_seed(seed)
    total = generated.new_zeros(())
    for _ in range(_OCTAVES):
        stride = max((generated.shape[-1] - _PATCH) // _PATCHES_PER_ROW, 1)
        x, y = torch.randint(stride, (2,), generator=rng).tolist()
        directions = torch.randn(3 * _PATCH**2 + 2, _PROJECTIONS, generator=rng)
        directions = F.normalize(directions, dim=0).to(generated)
        a, b = (_patches(p[..., y:, x:], stride) @ directions for p in (generated, examples))
        a, b = (_quantiles(p.sort(0).values) for p in (a, b))
        total = total + (a - b).square().mean()
        generated, examples = F.avg_pool2d(generated, 2), F.avg_pool2d(examples, 2)
    return total / _OCTAVES


def _patches(pictures: Tensor, stride: int) -> Tensor:
    """Patches of pictures `[B, 3, R, R]` on a grid, with positions: `[P, 3 * side ** 2 + 2]`."""
    values = F.unfold(pictures, _PATCH, stride=stride).transpose(1, 2)  # [B, positions, values]
    rows, columns = ((n - _PATCH) // stride + 1 for n in pictures.shape[2:])
    lines = [torch.linspace(-1, 1, n, device=pictures.device) for n in (rows, columns)]
    position = torch.stack(torch.meshgrid(*lines, indexing="ij"), -1).flatten(0, 1)
    # The values of a patch are correlated: its position counts as if it were as many.
    position = (position * _POSITION * _PATCH).expand(len(values), -1, -1)
    return torch.cat([values, position], 2).flatten(0, 1)


def _quantiles(values: Tensor) -> Tensor:
    """Samples sorted values `[P, D]` evenly, so that sets of two sizes become comparable."""
    count = 4 * _PATCHES_PER_ROW**2
    indices = torch.linspace(0, len(values) - 1, count, device=values.device)
    return values[indices.round().long()]


def _towards_patches(
    method: Examples,
    settings: tuning.TuningSettings,
    metric: perceptual.Metric,
    samples: _Samples,
) -> _Objective:
    """Aims at the examples' patches; checked by how near held-out codes come, dB."""
    examples = method.pictures.to(metric.device, torch.float32)
    train = samples.train.to(metric.device)

    def loss(generator: Generator, step: int) -> Tensor:
        indices = tuning.batch_indices(settings, len(train), step)
        generated = generator.synthesis(train[indices])
        parent = samples.train_parent[indices].to(metric.device, torch.float32)
        some = tuning.batch_indices(settings, len(examples), step)
        style = patch_distance(generated, examples[some], settings.seed + step)
        return style + _STRUCTURE * metric.distance(generated, parent).mean()

    @torch.no_grad()
    def measure(generator: Generator) -> dict[str, float]:
        generated = reconstruct(generator, samples.held_out, settings.batch).to(metric.device)
        few = examples[evenly_spaced(len(examples), HELD_OUT)]
        distance = float(patch_distance(generated, few, 0))
        return {"closeness": -10 * math.log10(max(distance, 1e-10))}

    return _Objective(loss, Check("closeness", measure, 0.05))


# -- the record of a style -----------------------------------------------------------------------


def _facts(method: Method) -> dict[str, Any]:
    """Describes a method as JSON, for `StyleInfo`."""
    match method:
        case Program():
            return {"kind": "program", "program": method.name}
        case Prompt():
            kind: dict[str, Any] = {
                "kind": "prompt",
                "prompt": method.text,
                "source": method.source,
            }
        case Examples():
            kind = {"kind": "pictures", "pictures": len(method.pictures)}
    return kind | {"clip": [clip.name for clip in method.clips], "layers": method.layers}


def _decisive(method: Method) -> list[object]:
    """All of a method that decides the style, for a digest."""
    return [_facts(method), *([method.pictures] if isinstance(method, Examples) else [])]
