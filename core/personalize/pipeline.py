"""From a self-scan to a character (paper, section 3.2): align, select, invert, tune, add detail."""

from __future__ import annotations

import math
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.base.checkpoints import load_checkpoint, save_checkpoint
from core.base.digest import digest
from core.base.errors import ReenactError
from core.base.files import work_folder
from core.base.progress import EndAfter, Report, never
from core.base.sampling import evenly_spaced
from core.face import perceptual
from core.face.aligned_clip import AlignedClip, align_clip, cut_out
from core.face.alignment import AXES_SIGMA, CENTRE_SIGMA
from core.face.identity import proxy_recogniser
from core.face.landmarks import detect_keypoints
from core.face.perceptual import Metric
from core.face.surface import Atlas
from core.generator import Generator, half_precision
from core.generator.storage import generator_digest
from core.media.clip import Clip
from core.media.numbering import format_numbers
from core.media.write import to_bytes, write_png
from core.personalize import inversion, selection, tuning
from core.personalize.character import (
    Character,
    CharacterInfo,
    NoConsentError,
    load_character,
    save_character,
    write_with_detail,
)
from core.personalize.detail import RESOLUTIONS, Detail
from core.personalize.detail_training import (
    DetailSettings,
    Examples,
    attached,
    detail_sheet,
    draw_examples,
    keep_pictures,
    train_detail,
)
from core.synthetic.base import base_encoder, base_generator

SELECTION_SIZE = 256  # px at most, of the pictures that are compared for diversity
HELD_OUT = 12  # frames at most that are not trained on, for measuring the character
SHARP_HELD_OUT = 6  # of them at most that detail is measured on: each is drawn at full resolution
# Adam's peak rate. The embedded generator was trained at 5e-2, and learns a person more than twice
# as fast at 4e-2 as at 2e-3, the rate at which generators of real faces were trained.
EMBEDDED_RATE, RATE = 4e-2, 2e-3
SAME_FRAMES = 0.5  # share of the anchors whose pictures are most like their own frames of a scan
HASTY_DETAIL = 100  # steps in which detail is learnt where tuning was ended early: it is waited for
SCOPE = "facial reenactment of this person by the owner of this file"


class ResolutionError(ReenactError):
    """A character can't have the resolution that was asked for."""


class WrongScanError(ReenactError):
    """The clip is not the scan that the character was made of."""


class EncoderWithoutBaseError(ReenactError):
    """An encoder was given without the generator that it belongs to."""


@dataclass(frozen=True)
class PersonalizeSettings:
    """How a character is made."""

    count: int = 250  # frames trained on, at most (the paper's N)
    steps: int = 2000  # of tuning, at most
    refine: int | None = None  # inversion's steps; None: 60 after an encoder, 150 without one
    metric: str | None = None  # perceptual metric; None: the best that is on this machine
    batch: int = 8  # pictures at once; fewer need less memory
    mask: bool = True  # tuning weights eyes and mouth more, and what is far from the face less
    # Of the delivered pictures, px; None: the power of two that the scan's faces support.
    resolution: int | None = None
    detail_steps: int = DetailSettings.steps  # at most


def personalize(
    clip: Clip,
    output: str | Path,
    report: Report,
    *,
    consent: dict[str, str],
    settings: PersonalizeSettings | None = None,
    base: Generator | None = None,
    encoder: nn.Module | None = None,
    name: str | None = None,
    at: tuple[float, float] | None = None,
    device: str = "cpu",
    on_preview: Callable[[], None] = lambda: None,
    on_detail_preview: Callable[[], None] = lambda: None,
    end_after: EndAfter = never,
) -> Character:
    """Makes a character from a self-scan and writes it, with sheets that show its quality.

    Unfinished work is kept in `OUTPUT.work` under the digest of its inputs: the same call goes on
    where it was stopped, and a call with other settings takes nothing from it. `NAME_selection.png`
    and `NAME_reconstruction.png` are written beside the character, the latter before tuning and at
    each of its evaluations, and `NAME_detail.png` at each evaluation of the detail.

    Args:
        clip: the self-scan.
        output: `NAME.character`.
        report: receives progress.
        consent: `who` is scanned, and to what `scope` they agreed; the time is added.
        settings: defaults to `PersonalizeSettings()`.
        base: generator to start from; by default the embedded one, with its encoder.
        encoder: pictures -> w of `base`; without one, anchors are found by projection.
        name: of the character; by default NAME.
        at: a point in plate px that picks the person, where several are in the picture.
        device: torch device.
        on_preview: called whenever `NAME_reconstruction.png` was written.
        on_detail_preview: called whenever `NAME_detail.png` was written.
        end_after: ends tuning early, as in `core.personalize.tuning.fine_tune`, and then the
            learning of detail after a few steps; or only that, after as many as it says. The
            character is marked with the steps that it has, and the unfinished work stays: the same
            call without this goes on from there.

    Returns:
        The character, read from its file.

    Raises:
        NoConsentError: no name of who agreed.
        EncoderWithoutBaseError: an encoder, but no base.
        ResolutionError: a resolution that is no power of two, or below the base's.
        core.face.aligned_clip.NoFaceError: the scan shows no face.
        core.personalize.selection.UnusableScanError: too few usable frames, or they are all alike.
        core.base.errors.ReenactError: a file can't be read or written.
    """
    output = Path(output)
    settings = settings or PersonalizeSettings()
    if not consent.get("who", "").strip():
        raise NoConsentError(
            "Say who is scanned and agreed to it: a character needs a name on record."
        )
    base, encoder, rate = _base(base, encoder)
    generator = base.to(device)
    encoder = None if encoder is None else encoder.to(device)
    resolution = generator.architecture.resolution
    metric = perceptual.metric(settings.metric, device)
    report.note(f"perceptual metric: {metric.name}")

    with report.stage("tracking") as progress:
        scan = align_clip(
            clip, min(resolution, SELECTION_SIZE), at=at, device=device, progress=progress
        )
    selected, held_out = _select(scan, metric, settings, output, report)
    frames = np.concatenate([selected, held_out])
    size = detail_resolution(settings.resolution, scan.quads[selected], resolution, report)
    pictures = _at_resolution(scan, frames, resolution)
    work = work_folder(output)
    work.mkdir(parents=True, exist_ok=True)
    w = _pivots(generator, pictures, encoder, metric, settings, work, report)
    train, check = slice(len(selected)), slice(len(selected), None)
    numbers = [int(n) for n in scan.face.numbers[frames]]
    shown = check if len(held_out) else train

    def show(generator: Generator) -> None:
        sheet = tuning.reconstruction_sheet(
            generator, w[shown], pictures[shown], numbers[shown], batch=settings.batch
        )
        write_png(output.with_name(f"{output.stem}_reconstruction.png"), sheet)
        on_preview()

    show(generator)
    tuned = _tune(
        generator,
        tuning.Pairs(w[train], pictures[train]),
        tuning.Pairs(w[check], pictures[check]) if len(held_out) else None,
        metric,
        settings,
        rate,
        work,
        report,
        lambda generator, losses: show(generator),
        end_after,
    )
    show(tuned.generator)  # a finished checkpoint is not evaluated again
    keypoints, thumbnail = _draw_anchors(tuned.generator, w[train], settings.batch)
    detail = None
    if size > resolution:
        detail = _learn_detail(
            tuned.generator,
            scan,
            frames,
            w,
            len(selected),
            size,
            DetailSettings(steps=settings.detail_steps),
            settings.batch,
            work,
            report,
            output.with_name(f"{output.stem}_detail.png"),
            on_detail_preview,
            (lambda: HASTY_DETAIL) if tuned.stopped else end_after,
        )
    stopped = tuned.stopped or (detail is not None and end_after() is not None)
    sigmas = {"centre_sigma_frames": CENTRE_SIGMA, "axes_sigma_frames": AXES_SIGMA}
    character = Character(
        generator=tuned.generator.cpu(),
        anchors=w[train],
        keypoints=keypoints,
        thumbnail=thumbnail,
        info=CharacterInfo(
            name=name or output.stem,
            consent={"when": _now(), "scope": SCOPE} | consent,
            base_hash=generator_digest(base),
            metric=metric.name,
            alignment={"framing": "ffhq", **sigmas},
            source=clip.shown,
            selected=numbers[: len(selected)],
            losses=tuned.losses,
            steps=tuned.steps,
            asked_steps=settings.steps,
            stopped_early=stopped,
        ),
        detail=detail,
    )
    save_character(output, character)
    if not stopped:
        shutil.rmtree(work, ignore_errors=True)
    return load_character(output)


def add_detail(
    clip: Clip,
    source: str | Path,
    output: str | Path,
    report: Report,
    *,
    settings: PersonalizeSettings | None = None,
    at: tuple[float, float] | None = None,
    device: str = "cpu",
    on_preview: Callable[[], None] = lambda: None,
    end_after: EndAfter = never,
) -> Character:
    """Gives detail to a character that has none, without tuning it again; its hash stays.

    Args:
        clip: the scan that it was made of.
        source: `.character` file; detail that it has is replaced.
        output: `.character` file to write.
        report: receives progress.
        settings: of these `resolution`, `detail_steps`, `refine` and `batch` count.
        at: a point in plate px that picks the person, where several are in the picture.
        device: torch device.
        on_preview: called whenever `NAME_detail.png` was written.
        end_after: as in `personalize`.

    Returns:
        The character, read from its file.

    Raises:
        WrongScanError: the clip shows other pictures than those that the character was made of.
        ResolutionError: as in `personalize`, or no more than the generator's.
        core.face.aligned_clip.NoFaceError: the scan shows no face.
        core.base.errors.ReenactError: a file can't be read or written.
    """
    output, settings = Path(output), settings or PersonalizeSettings()
    character = load_character(source).to(device)
    generator, info = character.generator, character.info
    base = generator.architecture.resolution
    with report.stage("tracking") as progress:
        scan = align_clip(clip, min(base, SELECTION_SIZE), at=at, device=device, progress=progress)
    places = {int(n): i for i, n in enumerate(scan.face.numbers) if scan.face.found[i]}
    wrong = f"{clip.shown} is not the scan that {info.name} was made of ({info.source})"
    if missing := [n for n in info.selected if n not in places]:
        raise WrongScanError(
            f"{wrong}: there is no face in its frames {format_numbers(missing)}. Give that scan, "
            "with the same frame numbers."
        )
    selected = np.array([places[n] for n in info.selected])
    pictures = _at_resolution(scan, selected, base)
    generated = tuning.reconstruct(generator, character.anchors, settings.batch)
    if _recognised(generated, pictures) < SAME_FRAMES:
        raise WrongScanError(
            f"{wrong}: its frames differ from the character's pictures of them. Give that scan."
        )
    size = detail_resolution(settings.resolution, scan.quads[selected], base, report)
    if size <= base:
        raise ResolutionError(
            f"{info.name} is drawn at {base} px already: there is no detail of {size} px to add. "
            "Ask for more (--resolution)."
        )
    others = np.setdiff1d([*places.values()], selected)
    held_out = others[evenly_spaced(len(others), HELD_OUT)]
    embedded = info.base_hash == generator_digest(base_generator())
    with report.stage("inverting") as progress:
        codes = inversion.invert(
            generator,
            _at_resolution(scan, held_out, base),
            base_encoder().to(device) if embedded else None,
            metric=perceptual.metric(None, device),
            steps=settings.refine,
            batch=settings.batch,
            progress=progress,
        )
    work = work_folder(output)
    detail = _learn_detail(
        generator,
        scan,
        np.concatenate([selected, held_out]),
        torch.cat([character.anchors.cpu(), codes.w]),
        len(selected),
        size,
        DetailSettings(steps=settings.detail_steps),
        settings.batch,
        work,
        report,
        output.with_name(f"{output.stem}_detail.png"),
        on_preview,
        end_after,
    )
    write_with_detail(source, output, detail)
    if end_after() is None:
        shutil.rmtree(work, ignore_errors=True)
    return load_character(output)


def _recognised(generated: Tensor, pictures: Tensor) -> float:
    """Returns the share of generated pictures that are more like their own frame than any other.

    Args:
        generated: `[N, 3, R, R]`.
        pictures: the frames, `[N, 3, R, R]`.
    """
    a, b = (F.adaptive_avg_pool2d(p.float(), 32).flatten(1) for p in (generated, pictures))
    nearest = torch.cdist(a, b).argmin(1)
    return float((nearest == torch.arange(len(a))).float().mean())


def detail_resolution(asked: int | None, quads: np.ndarray, base: int, report: Report) -> int:
    """Returns the resolution of a character's pictures, and says why it is that.

    Args:
        asked: px; None for what the scan supports.
        quads: `[N, 4, 2]`, the aligned squares of the scan's faces, plate px.
        base: the generator's resolution, px.
        report: receives the reason.

    Raises:
        ResolutionError: no power of two, below the base's, or above 1024.
    """
    side = float(np.median(np.linalg.norm(quads[:, 3] - quads[:, 0], axis=1)))
    supported = 2 ** round(math.log2(side))
    if asked is None:
        size = max(base, min(max(supported, RESOLUTIONS[0]), RESOLUTIONS[-1]))
    elif asked not in (base, *(r for r in RESOLUTIONS if r > base)):
        choices = ", ".join(str(r) for r in sorted({base, *RESOLUTIONS}) if r >= base)
        raise ResolutionError(
            f"A character on a generator of {base} px can't have {asked} px. Choose auto, "
            f"{choices}."
        )
    else:
        size = asked
    text = f"resolution: {size} px; the scan's faces have {side:.0f} px (the aligned square's side)"
    if size > 2 * side:
        text += ". They show less than half of that: it will look soft"
    report.note(text)
    return size


def _learn_detail(
    generator: Generator,
    scan: AlignedClip,
    frames: np.ndarray,
    w: Tensor,
    count: int,
    size: int,
    settings: DetailSettings,
    batch: int,
    work: Path,
    report: Report,
    sheet: Path,
    on_sheet: Callable[[], None],
    end_after: EndAfter,
) -> Detail:
    """Learns the detail of a scan; what it needs and its checkpoint are kept in the work folder.

    Args:
        generator: tuned, on the device of the training.
        scan: the clip and its quads.
        frames: `[N]` indices of the scan's frames.
        w: `[N, w_dim]`, their codes.
        count: of those that are learnt, the first ones; the others are held out.
        size: px.
        settings: of the training.
        batch: pictures drawn at once.
        work: folder.
        report: receives progress.
        sheet: where a picture is put that shows what is learnt, at each evaluation.
        on_sheet: called whenever it was written.
        end_after: as in `train_detail`.
    """
    others = [count + i for i in evenly_spaced(len(frames) - count, SHARP_HELD_OUT)]
    chosen = [*range(count), *others]
    frames, w = frames[chosen], w[chosen]
    architecture = generator.architecture
    channels = architecture.channels[architecture.resolution]
    needed = len(frames) * (3 * size**2 + channels * architecture.resolution**2) * 2
    report.note(f"detail: {needed / 1e6:.0f} MB are kept in {work} until it is learnt")
    folder = work / f"detail_{digest(w, settings, size, *generator.state_dict().values())[:16]}"
    order = np.argsort(frames)  # clips are read forwards
    numbers = [int(n) for n in scan.face.numbers[frames[order]]]
    with report.stage("detail: reading") as progress:

        def cut() -> Iterator[Tensor]:
            pictures = cut_out(scan.clip, numbers, scan.quads[frames[order]], size)
            for i, picture in enumerate(pictures):
                yield picture
                progress(i + 1, 2 * len(frames))

        pictures = keep_pictures(cut(), len(frames), size, folder / "pictures.npy", order)

        def drawn(name: str, part: slice, atlas: Atlas | None = None) -> Examples:
            before = len(frames) + (part.start or 0)
            return draw_examples(
                generator,
                w[part],
                pictures[part],
                folder / f"features_{name}.npy",
                batch,
                lambda done, total: progress(before + done, 2 * len(frames)),
                atlas=atlas,
            )

        atlas, examples = attached(drawn("train", slice(count)))
        held_out = drawn("check", slice(count, None), atlas) if count < len(frames) else None

    def show(detail: Detail) -> None:
        write_png(sheet, detail_sheet(generator, detail, held_out or examples))
        on_sheet()

    with report.stage("detail") as progress:
        detail = train_detail(
            generator,
            examples,
            held_out,
            atlas,
            settings,
            source=scan.clip.shown,
            on_evaluation=show,
            end_after=end_after,
            folder=folder,
            progress=progress,
        )
    if "psnr" in detail.info.losses[-1]:
        before, after = detail.info.losses[0]["psnr"], detail.info.losses[-1]["psnr"]
        report.note(f"detail: held-out faces {before:.1f} dB without it, {after:.1f} dB with it")
    return detail


def _base(
    base: Generator | None, encoder: nn.Module | None
) -> tuple[Generator, nn.Module | None, float]:
    """Returns the generator to start from, its encoder, and the rate at which it is tuned."""
    if base is not None:
        return base, encoder, RATE
    if encoder is not None:
        raise EncoderWithoutBaseError(
            "An encoder belongs to a generator: give that too, with --base. The embedded one has "
            "its own encoder."
        )
    return base_generator(), base_encoder(), EMBEDDED_RATE


def _select(
    scan: AlignedClip, metric: Metric, settings: PersonalizeSettings, output: Path, report: Report
) -> tuple[np.ndarray, np.ndarray]:
    """Selects the frames to train on, in the order of their choice, and those to hold out.

    Returns:
        Indices into the scan's frames, twice.
    """
    with report.stage("screening") as progress:
        plate = (scan.clip.width, scan.clip.height)
        screening = selection.screen(scan.face, scan.pictures, plate, progress=progress)
    reasons = defaultdict(list)
    for number, reason in screening.rejected.items():
        reasons[reason.split(" (")[0]].append(number)
    for reason, numbers in reasons.items():
        report.note(f"not used, {reason}: {format_numbers(numbers)}")
    for advice in selection.check_scan(scan.face, screening):
        report.note(advice)
    usable = scan.pictures[torch.from_numpy(screening.kept)]
    # Some frames of a short scan are held out, too.
    count = min(settings.count, len(usable) - max(len(usable) // 10, 1))
    with report.stage("selecting") as progress:
        distances = selection.pairwise_distances(metric, usable, progress=progress)
    order = selection.farthest_first(distances, count)
    write_png(
        output.with_name(f"{output.stem}_selection.png"),
        selection.selection_sheet(
            usable, scan.face.numbers[screening.kept].tolist(), order.tolist()
        ),
    )
    others = np.setdiff1d(np.arange(len(usable)), order)
    held_out = others[evenly_spaced(len(others), HELD_OUT)]
    report.note(f"{count} of {len(usable)} usable frames are trained on")
    return screening.kept[order], screening.kept[held_out]


def _at_resolution(scan: AlignedClip, frames: np.ndarray, resolution: int) -> Tensor:
    """Aligned pictures of some frames at the generator's resolution, float16."""
    if scan.pictures.shape[-1] == resolution:
        return scan.pictures[torch.from_numpy(frames)]
    order = np.argsort(frames)  # clips are read forwards
    numbers = [int(n) for n in scan.face.numbers[frames[order]]]
    result = torch.empty(len(frames), 3, resolution, resolution, dtype=torch.float16)
    pictures = cut_out(scan.clip, numbers, scan.quads[frames[order]], resolution)
    for i, picture in zip(order, pictures, strict=True):
        result[i] = picture
    return result


def _pivots(
    generator: Generator,
    pictures: Tensor,
    encoder: nn.Module | None,
    metric: Metric,
    settings: PersonalizeSettings,
    work: Path,
    report: Report,
) -> Tensor:
    """Inverts every picture; its w is kept in the work folder."""
    tensors = [*generator.state_dict().values()]
    if encoder is not None:
        tensors += encoder.state_dict().values()
    task = digest(pictures, *tensors, metric.name, settings.refine)
    path = work / f"pivots_{task[:16]}.checkpoint"
    if (state := load_checkpoint(path, task)) is not None:
        return state["w"]
    with report.stage("inverting") as progress:
        result = inversion.invert(
            generator,
            pictures,
            encoder,
            metric=metric,
            steps=settings.refine,
            batch=settings.batch,
            progress=progress,
        )
    save_checkpoint(path, task, {"w": result.w})
    return result.w


def _tune(
    generator: Generator,
    pairs: tuning.Pairs,
    held_out: tuning.Pairs | None,
    metric: Metric,
    settings: PersonalizeSettings,
    rate: float,
    work: Path,
    report: Report,
    on_evaluation: tuning.OnEvaluation,
    end_after: EndAfter,
) -> tuning.Tuned:
    """Tunes the generator; its checkpoint is kept in the work folder."""
    device = next(generator.parameters()).device
    half = half_precision(device) is not None
    tuning_settings = tuning.TuningSettings(
        steps=settings.steps,
        batch=settings.batch,
        rate=rate,
        half=half,
        check_every=tuning.evaluation_interval(settings.steps),
    )
    if not settings.mask:
        tuning_settings = replace(tuning_settings, features=1.0, background=1.0)
    codes = (pairs.w, None if held_out is None else held_out.w)
    with report.stage("tuning") as progress:
        tuned = tuning.tune(
            generator,
            pairs.w,
            pairs.pictures,
            metric,
            tuning_settings,
            held_out=held_out,
            recogniser=proxy_recogniser(device),
            on_evaluation=on_evaluation,
            end_after=end_after,
            folder=work / f"tuning_{digest(*codes, metric.name, tuning_settings)[:16]}",
            progress=progress,
        )
    if tuned.plateau:
        report.note(
            f"held-out frames stopped gaining: ended after {tuned.steps} of {settings.steps} steps"
        )
    if tuned.stopped:
        report.note(f"stopped early, as asked: {tuned.steps} of {settings.steps} steps")
    return tuned


def _draw_anchors(generator: Generator, w: Tensor, batch: int) -> tuple[Tensor, np.ndarray]:
    """Draws the anchors `[N, w_dim]`.

    Returns:
        Keypoints of their pictures `[N, 86, 3]`, and the picture of their mean, uint8.
    """
    device = next(generator.parameters()).device
    size = min(generator.architecture.resolution, SELECTION_SIZE)
    keypoints = []
    with torch.no_grad():
        for part in w.split(batch):
            generated = generator.synthesis(part.to(device), stop_at=size)
            keypoints.append(detect_keypoints(generated).cpu())
        centre = generator.synthesis(w.mean(0, keepdim=True).to(device), stop_at=size)[0]
    thumbnail = to_bytes(centre.permute(1, 2, 0).float().cpu().numpy() / 2 + 0.5)
    return torch.cat(keypoints), thumbnail


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
