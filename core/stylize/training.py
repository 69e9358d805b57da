"""From a character to a style of it: a copy of its generator learns to draw in another way.

Three methods. A pixel program shows what each picture of the character should look like, and the
copy learns just that. A sentence gives a direction in CLIP's space, along which pictures of the
copy must lie from those of the parent (StyleGAN-NADA, Gal et al. 2021). Example pictures give such
a direction as well, or without CLIP the statistics that patches of its pictures must have, while a
perceptual metric keeps the parent's structure.

All start at the parent and draw the same codes, blends of the character's anchors, so parent and
style stay aligned: what a code does in the one it does in the other.
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
from core.base.progress import Report
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
from core.personalize.pipeline import RATE
from core.personalize.tuning import Check, Pairs, reconstruct
from core.stylize.clip_model import ClipModel
from core.stylize.pixel_programs import PROGRAMS
from core.stylize.style import (
    Style,
    StyleInfo,
    load_style,
    save_style,
    style_info,
)
from core.synthetic.base import base_generator

HELD_OUT = 12  # codes that are not trained on
# Of the sentences that CLIP is shown both prompts in: what they share falls out of the difference.
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

_LEAST_WAY = (
    0.05  # between unit vectors; CLIP's pictures of two faces lie several times as far apart
)
# Of the choice of layers (StyleGAN-NADA, section 4.2): pictures, and the step of their codes.
_CHOICE_BATCH, _CHOICE_RATE = 8, 0.01
# Of patches: side, how many in a row of a picture are looked at, directions that they are projected
# on, octaves, and what the place of a patch counts beside its colours.
_PATCH, _PLACES, _PROJECTIONS, _OCTAVES, _PLACE = 5, 32, 64, 4, 1.0
_STRUCTURE = 0.5  # of the metric to the parent, where patches are learnt


class StyleExistsError(ReenactError):
    """Another style lies where the result is to go."""


class NoExamplesError(ReenactError):
    """There is no face in the example pictures."""


@dataclass(frozen=True)
class Program:
    """Towards a program of `core.stylize.pixel_programs`."""

    name: str


@dataclass(frozen=True, eq=False)
class Prompt:
    """From what a sentence says to what another one says, by CLIP."""

    text: str
    source: str
    clips: Sequence[ClipModel]
    layers: int | None = None  # trained at a time, those that matter most; None: all


@dataclass(frozen=True, eq=False)
class Examples:
    """Towards pictures."""

    pictures: Tensor  # [K, 3, R, R] in [-1, 1], aligned, from `align_examples`
    clips: Sequence[ClipModel] = ()  # none: towards the statistics of their patches
    layers: int | None = None  # as above, with CLIP


Method = Program | Prompt | Examples

_Aim = tuple[Callable[[Generator, int], Tensor], Check]  # the loss of a step, and what ends it


@dataclass(frozen=True)
class StylizeSettings:
    """How a style is trained. At 1024 px the samples take up to 3 GB of memory."""

    steps: int = 300
    batch: int = 4
    samples: int = 240  # codes trained on
    rate: float | None = None  # Adam's; None: by the generator's kind and the method
    metric: str | None = None  # None: the best that is on this machine
    check_every: int = 50  # steps between looks
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
    looked: Callable[[], None] = lambda: None,
) -> Style:
    """Makes a style of a character and writes it, with a sheet of parent and style.

    At every look the style so far is written, so that it can be tried, and training can be stopped
    when it is good. What is needed to go on lies in `OUTPUT.work`: the same call goes on where it
    was stopped, to the same result bit for bit (on one machine, with the same number of threads).

    Args:
        character: read from its file.
        method: what it is to look like.
        output: `NAME.style`; `NAME_preview.png` comes beside it.
        report: told of progress.
        name: of the style; by default NAME.
        settings: defaults to `Settings()`.
        device: torch device; the models of `method` are on it.
        looked: called after each look, when both files are there.

    Returns:
        The style, read from its file.

    Raises:
        StyleExistsError: `output` holds another style.
        core.base.errors.ReenactError: trouble with files.
        ValueError: a character that was not read from its file.
    """
    output, settings = Path(output), settings or StylizeSettings()
    if not character.hash:
        raise ValueError("Save the character and load it: a style names its parent by its hash.")
    parent = character.generator.to(device)
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
        task=digest(character.hash, name, settings, *_described(method)),
    )
    if output.exists() and _is_made(output, info):
        return load_style(output, character)
    work = output.with_name(output.name + ".work")
    codes = sample_codes(character.anchors, settings.samples + HELD_OUT, settings.seed)
    train, held_out = codes[: settings.samples], codes[settings.samples :]
    how = tuning.TuningSettings(
        steps=settings.steps,
        rate=rate,
        batch=settings.batch,
        check_every=settings.check_every,
        seed=settings.seed,
    )
    with report.stage("drawing") as tick:
        pictures = _drawn(parent, codes, settings.batch, tick)
    before, seen = pictures[: settings.samples], pictures[settings.samples :]
    targets = None
    if isinstance(method, Program):
        assert metric is not None
        targets = run_program(method.name, pictures)
        loss, check = _towards_pairs(
            how,
            metric,
            Pairs(train, targets[: len(train)]),
            Pairs(held_out, targets[len(train) :]),
            before,
        )
    elif metric is None:
        how = replace(how, betas=NADA_BETAS, warm_up=0)
        loss, check = _towards_direction(method, how, parent, train, before, held_out, seen)
    else:
        assert isinstance(method, Examples)
        loss, check = _towards_patches(method, how, metric, train, before, held_out)

    def written(generator: Generator, losses: list[dict[str, float]], complete: bool) -> None:
        made = reconstruct(generator, held_out, settings.batch)
        rows = [
            ("parent", seen),
            *([] if targets is None else [("program", targets[len(train) :])]),
        ]
        sheet = style_sheet([*rows, ("style", made)])
        write_png(output.with_name(f"{output.stem}_preview.png"), sheet)
        now = replace(
            info,
            losses=losses,
            steps=int(losses[-1]["step"]),
            complete=complete,
            alignment=alignment(made, seen, device),
        )
        save_style(output, Style(generator, to_bytes(_first(made)), now))
        looked()

    with report.stage("stylizing") as tick:
        tuned = tuning.fine_tune(
            parent,
            loss,
            how,
            check=check,
            on_evaluation=lambda generator, losses: written(generator, losses, False),
            folder=work / info.task[:16],
            task=info.task,
            progress=tick,
        )
    if tuned.plateau:
        report.note(f"it stopped gaining: ended after {tuned.steps} of {settings.steps} steps")
    written(tuned.generator, tuned.losses, True)
    shutil.rmtree(work, ignore_errors=True)
    return load_style(output, character)


def _towards_pairs(
    settings: tuning.TuningSettings,
    metric: perceptual.Metric,
    pairs: Pairs,
    held_out: Pairs,
    before: Tensor,
) -> _Aim:
    """Eq. 1 of the character's codes and the program's pictures, and the PSNR of held-out ones."""
    # Where eyes and mouth are is what the parent's pictures say: a drawing may fool the mesh.
    weights = tuning.face_weights(before, settings.features, 1.0, metric.device)
    pairs = tuning.with_maps(pairs, metric, settings.batch)

    def loss(generator: Generator, step: int) -> Tensor:
        rows = tuning.batch_indices(settings, len(pairs.w), step)
        return tuning.pair_loss(generator, pairs, rows, metric, settings, weights)

    return loss, tuning.psnr_check(held_out, settings.batch)


# StyleGAN-NADA's: its rate is rosinality's .002, and both are corrected for a lazy regulariser
# that it does not use (4 of 5 steps).
NADA_RATE = 0.002 * 4 / 5
NADA_BETAS = (0.0, 0.99 ** (4 / 5))
_EMBEDDED = 10.0  # times the rate, for the embedded base: it was made at a higher one


def _rate(character: Character, method: Method) -> float:
    """Adam's rate for a style."""
    embedded = character.info.base_hash == generator_digest(base_generator())
    return (NADA_RATE if _by_clip(method) else RATE) * (_EMBEDDED if embedded else 1)


def _by_clip(method: Method) -> bool:
    return isinstance(method, Prompt) or (isinstance(method, Examples) and bool(method.clips))


def _is_made(path: Path, wanted: StyleInfo) -> bool:
    """Whether a file holds the style already; False where it is only half done.

    Raises:
        StyleExistsError: it holds another one.
    """
    there = style_info(path)
    same = [(i.parent, i.name, i.method) for i in (there, wanted)]
    # What is not complete may go on with another batch, where memory turned out to be short.
    if (there.task != wanted.task and there.complete) or same[0] != same[1]:
        raise StyleExistsError(
            f"{path} is another style ({there.name}), or was made with other settings. Delete it, "
            "or choose another name."
        )
    return there.complete


def sample_codes(anchors: Tensor, count: int, seed: int = 0) -> Tensor:
    """Codes that draw the person: blends of a few anchors, and anchors themselves.

    Args:
        anchors: `[N, w_dim]`.
        count: how many.
        seed: another one, other codes.

    Returns:
        `[count, w_dim]` within the convex hull of the anchors, in no order.
    """
    rng = np.random.default_rng(seed)
    few = min(4, len(anchors))
    weights = np.zeros((count, len(anchors)), np.float32)
    for row in weights:
        # Small numbers are mostly near one anchor or another, as codes of a track are.
        row[rng.choice(len(anchors), few, replace=False)] = rng.dirichlet([0.3] * few)
    return torch.from_numpy(weights) @ anchors.detach().cpu()


def run_program(name: str, pictures: Tensor) -> Tensor:
    """A pixel program on pictures `[B, 3, R, R]` in [-1, 1]; float16.

    Raises:
        KeyError: no program has this name.
    """
    program = PROGRAMS[name]
    result = torch.empty_like(pictures, dtype=torch.float16)
    for i, picture in enumerate(pictures):
        rgb = picture.float().permute(1, 2, 0).numpy() / 2 + 0.5
        result[i] = torch.from_numpy(program(np.ascontiguousarray(rgb))).permute(2, 0, 1) * 2 - 1
    return result


def align_examples(clip: Clip, size: int, device: str = "cpu") -> tuple[Tensor, int]:
    """Example pictures as the generator frames them.

    Args:
        clip: stills, whose sizes may differ, or a movie; every frame is an example.
        size: side of the aligned pictures, px.
        device: that runs the landmark network.

    Returns:
        `[K, 3, size, size]` float32 in [-1, 1] of those with a face, and the number of those
        without.

    Raises:
        NoExamplesError: no picture has a face.
        core.media.errors.ClipError: one that can't be read.
    """
    found, without = [], 0
    for frame in _each(clip):
        mesh = track_face(
            [(frame.number, frame.srgb)], pixel_aspect=clip.pixel_aspect, device=device
        )
        if not mesh.found.any():
            without += 1
            continue
        quad = torch.from_numpy(ffhq_quads(mesh.landmarks, clip.pixel_aspect)).float()
        plate = torch.from_numpy(frame.srgb).permute(2, 0, 1)[None]
        found.append(warp(plate, quad, size).clamp(0, 1) * 2 - 1)
    if not found:
        raise NoExamplesError(
            f"There is no face in the pictures of {clip.shown}. Give some in which eyes, nose and "
            "mouth can be told apart, about upright."
        )
    return torch.cat(found), without


def _each(clip: Clip) -> Iterator[NetworkFrame]:
    if clip.kind != "sequence":
        yield from read_network_frames(clip)
        return
    for number in clip.numbers:  # opened alone, each may have a size of its own
        one = open_clip(clip.path, number, number, clip.colour_space, clip.config)
        yield from read_network_frames(one)


@torch.no_grad()
def alignment(a: Tensor, b: Tensor, device: str = "cpu") -> float:
    """Mean distance of the keypoints seen in two sets of pictures, px of the 192 px crop, x and y.

    Not relative to their parts, as `objective.keypoint_error` is: a face that moves shows, too.
    """
    seen = [
        torch.cat([detect_keypoints(part.to(device, torch.float32)).cpu() for part in p.split(8)])
        for p in (a, b)
    ]
    return float((seen[0] - seen[1])[..., :2].norm(dim=-1).mean())


def style_sheet(rows: Sequence[tuple[str, Tensor]], count: int = 8, tile: int = 160) -> np.ndarray:
    """Rows of pictures `[N, 3, R, R]` in [-1, 1], each with its label, one code in a column."""
    shown = evenly_spaced(len(rows[0][1]), count)
    tiles = [
        to_bytes(cv2.resize(_rgb(picture), (tile, tile), interpolation=cv2.INTER_AREA))
        for _, pictures in rows
        for picture in pictures[shown]
    ]
    return contact_sheet(tiles, [name for name, _ in rows for _ in shown], len(shown))


def _rgb(picture: Tensor) -> np.ndarray:
    return picture.permute(1, 2, 0).float().numpy() / 2 + 0.5


def _first(pictures: Tensor) -> np.ndarray:
    return cv2.resize(_rgb(pictures[0]), (128, 128), interpolation=cv2.INTER_AREA)


def _drawn(
    parent: Generator, codes: Tensor, batch: int, tick: Callable[[float, float], None]
) -> Tensor:
    """The parent's pictures, float16."""
    parts = []
    for part in codes.split(batch):
        parts.append(reconstruct(parent, part, batch).half())
        tick(sum(map(len, parts)), len(codes))
    return torch.cat(parts)


# -- CLIP ----------------------------------------------------------------------------------------


def text_direction(clip: ClipModel, source: str, target: str) -> Tensor:
    """The direction from one sentence to another, meant over `TEMPLATES`, `[D]` of length 1."""
    a, b = (clip.text([t.format(words) for t in TEMPLATES]) for words in (source, target))
    return F.normalize((b - a).mean(0), dim=0)


def directional_loss(made: Tensor, before: Tensor, direction: Tensor) -> Tensor:
    """1 - cos of the way that embeddings `[B, D]` went (StyleGAN-NADA's eq. 2), `[B]`.

    A way that is short against `_LEAST_WAY` counts less: where a style starts, at its parent, the
    cosine has no value and its slope no bound, and Adam would remember that slope to the end.
    """
    way = made - before
    return 1 - way @ direction / (way.square().sum(1) + _LEAST_WAY**2).sqrt()


def convolutions(generator: Generator) -> list[torch.nn.Module]:
    """The modulated 3x3 convolutions: the i-th takes row i of w+."""
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
    """The rows of w+ that move furthest when codes alone are to look like the target.

    One step down the gradient of 1 - cos(picture, target), and the mean of |dw| by row: published
    as StyleGAN-NADA's adaptive layer freezing, there with the same step.

    Args:
        generator: the style so far.
        codes: `[B, w_dim]`.
        clips: models.
        targets: one embedding `[D]` for each.
        count: rows to choose.

    Returns:
        Rows that belong to a convolution, increasing.
    """
    rows = generator.architecture.num_ws
    w = codes[:, None].repeat(1, rows, 1).requires_grad_(True)
    made = generator.synthesis(w)
    loss = torch.stack(
        [
            1 - F.cosine_similarity(c.image(made), t[None]).mean()
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
    train: Tensor,
    before: Tensor,
    held_out: Tensor,
    seen: Tensor,
) -> _Aim:
    """The directional loss, and how well held-out codes follow the direction."""
    device = next(parent.parameters()).device
    train, held_out = train.to(device), held_out.to(device)

    @torch.no_grad()
    def embedded(clip: ClipModel, pictures: Tensor) -> Tensor:
        parts = pictures.split(settings.batch)
        return torch.cat([clip.image(part.to(device, torch.float32)) for part in parts])

    known = [embedded(clip, before) for clip in method.clips]  # the frozen generator's, once
    if isinstance(method, Prompt):
        directions = [text_direction(c, method.source, method.text) for c in method.clips]
        targets = [c.text([method.text])[0] for c in method.clips]
    else:
        targets = [embedded(c, method.pictures).mean(0) for c in method.clips]
        directions = [
            F.normalize(t - k.mean(0), dim=0) for t, k in zip(targets, known, strict=True)
        ]
    follow = [embedded(clip, seen) for clip in method.clips]

    def loss(generator: Generator, step: int) -> Tensor:
        layers = convolutions(generator)
        trained = [*range(len(layers))]
        if method.layers is not None:
            some = train[
                tuning.batch_indices(replace(settings, batch=_CHOICE_BATCH), len(train), step)
            ]
            trained = choose_layers(generator, some, method.clips, targets, method.layers)
        generator.synthesis.requires_grad_(False)  # toRGB never learns
        for row in trained:
            layers[row].requires_grad_(True)
        if 0 in trained:
            generator.synthesis.get_parameter("b4.const").requires_grad_(True)
        rows = tuning.batch_indices(settings, len(train), step)
        made = generator.synthesis(train[rows])
        return torch.stack(
            [
                directional_loss(clip.image(made), start[rows.to(device)], direction).mean()
                for clip, start, direction in zip(method.clips, known, directions, strict=True)
            ]
        ).sum()

    def figure(generator: Generator) -> float:
        made = reconstruct(generator, held_out, settings.batch)
        along = [
            1 - directional_loss(embedded(clip, made), start, direction).mean()
            for clip, start, direction in zip(method.clips, follow, directions, strict=True)
        ]
        return float(torch.stack(along).mean())

    return loss, Check("direction", figure, 0.005)


# -- patches -------------------------------------------------------------------------------------


def patch_distance(made: Tensor, examples: Tensor, seed: int) -> Tensor:
    """How differently the patches of two sets of pictures are distributed.

    The sliced Wasserstein distance (Rabin et al. 2011) of patches at several octaves: along random
    directions, the mean square of the differences of their sorted projections. A patch knows where
    in the picture it lies, so lips become what lips are in the examples.

    Args:
        made: `[B, 3, R, R]` in [-1, 1], R at least 64.
        examples: `[K, 3, R, R]`.
        seed: of the directions, and of the places that are looked at.

    Returns:
        A number; 0 where both sets are the same.
    """
    rng = torch.Generator().manual_seed(seed)
    total = made.new_zeros(())
    for _ in range(_OCTAVES):
        stride = max((made.shape[-1] - _PATCH) // _PLACES, 1)
        x, y = torch.randint(stride, (2,), generator=rng).tolist()
        directions = torch.randn(3 * _PATCH**2 + 2, _PROJECTIONS, generator=rng)
        directions = F.normalize(directions, dim=0).to(made)
        a, b = (_patches(p[..., y:, x:], stride) @ directions for p in (made, examples))
        a, b = (_quantiles(p.sort(0).values) for p in (a, b))
        total = total + (a - b).square().mean()
        made, examples = F.avg_pool2d(made, 2), F.avg_pool2d(examples, 2)
    return total / _OCTAVES


def _patches(pictures: Tensor, stride: int) -> Tensor:
    """Patches of pictures `[B, 3, R, R]` on a grid, and their places: `[P, 3 * side ** 2 + 2]`."""
    values = F.unfold(pictures, _PATCH, stride=stride).transpose(1, 2)  # [B, places, values]
    rows, columns = ((n - _PATCH) // stride + 1 for n in pictures.shape[2:])
    lines = [torch.linspace(-1, 1, n, device=pictures.device) for n in (rows, columns)]
    place = torch.stack(torch.meshgrid(*lines, indexing="ij"), -1).flatten(0, 1)
    # The values of a patch are much alike: its place counts as if it were as many.
    place = (place * _PLACE * _PATCH).expand(len(values), -1, -1)
    return torch.cat([values, place], 2).flatten(0, 1)


def _quantiles(values: Tensor) -> Tensor:
    """Of sorted values `[P, D]` so many, evenly spread: sets of two sizes become comparable."""
    places = torch.linspace(0, len(values) - 1, 4 * _PLACES**2, device=values.device)
    return values[places.round().long()]


def _towards_patches(
    method: Examples,
    settings: tuning.TuningSettings,
    metric: perceptual.Metric,
    train: Tensor,
    before: Tensor,
    held_out: Tensor,
) -> _Aim:
    """The distance of patches, and how near held-out codes come, dB."""
    examples = method.pictures.to(metric.device, torch.float32)
    train = train.to(metric.device)

    def loss(generator: Generator, step: int) -> Tensor:
        rows = tuning.batch_indices(settings, len(train), step)
        made = generator.synthesis(train[rows])
        parent = before[rows].to(metric.device, torch.float32)
        some = tuning.batch_indices(settings, len(examples), step)
        style = patch_distance(made, examples[some], settings.seed + step)
        return style + _STRUCTURE * metric.distance(made, parent).mean()

    @torch.no_grad()
    def figure(generator: Generator) -> float:
        made = reconstruct(generator, held_out, settings.batch).to(metric.device)
        few = examples[evenly_spaced(len(examples), HELD_OUT)]
        return -10 * math.log10(max(float(patch_distance(made, few, 0)), 1e-10))

    return loss, Check("closeness", figure, 0.05)


# -- what a style says of itself -----------------------------------------------------------------


def _facts(method: Method) -> dict[str, Any]:
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


def _described(method: Method) -> list[object]:
    return [_facts(method), *([method.pictures] if isinstance(method, Examples) else [])]
