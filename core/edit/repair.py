"""Shot repair: changes single frames of a latent track and leaves all others bit-identical.

A repair list is a JSON list of repairs. They are applied in order, each to the result of the one
before:

    [
      {"do": "solve", "frames": "1020-1035"},
      {"do": "solve", "frames": "1038", "only": "mouth", "weights": {"mouth": 40}, "steps": 30},
      {"do": "interpolate", "frames": "1040-1044, 1047", "ease": "smooth"},
      {"do": "hold", "frames": "1050-1055", "from": 1049, "blend": 2},
      {"do": "replace", "frames": "1060-1062", "from": "1030-1032"},
      {"do": "amount", "keys": [[1001, 0, "smooth"], [1009, 1]]},
      {"do": "amount", "keys": "0.5", "frames": "1060-1062"}
    ]

`solve`: finds the codes again, starting from the frames around, which stay as they are. It needs
the
    plate and the character. `only` (of eyes, mouth, head) follows the driving face with these parts
    and keeps the others; `weights` are those of `core.solve.objective.Objective`; `steps` is the
    maximum per frame. Everything else is as the shot was solved.
`interpolate`: between the frames before and after, with `ease` of `core.base.keyframes.EASINGS`.
`hold`: uses the code of one frame.
`replace`: uses the codes of as many other frames, one by one.
`amount`: sets how much of the face is merged over the plate, by keys in any form that
    `core.base.keyframes` reads; in all frames, or in `frames`.

`frames` are numbers and ranges of the track. Held and replacing codes are blended in over `blend`
frames at either end, inside the range. Any repair may have a `reason` for people. A track stores
its repairs as its `recipe`: applied to its parent, they give the same track with the same hash.

Codes are interpolated along the straight line of their barycentric weights. P is a convex polytope,
so that line is its geodesic, as in W, and stays inside; a great circle (slerp), which suits
Gaussian latents, would leave it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from core.base import keyframes
from core.base.digest import digest
from core.base.errors import ReenactError
from core.base.files import read_json
from core.base.progress import Progress
from core.media.clip import Clip
from core.media.errors import MissingFramesError
from core.media.numbering import format_numbers
from core.personalize.character import Character
from core.solve.driving import driving_from_track
from core.solve.latent_track import FrameState, LatentTrack, load_track
from core.solve.objective import Objective
from core.solve.settings import MAX_RESOLUTION, PARTS, SolveSettings
from core.solve.shot import TrackExistsError, solve_shot
from core.solve.smoothing import smooth_codes

BLEND_SECONDS = 0.125  # into and out of held or replacing codes, by default

_FIELDS = {
    "solve": ("frames", "only", "weights", "steps"),
    "interpolate": ("frames", "ease"),
    "hold": ("frames", "from", "blend"),
    "replace": ("frames", "from", "blend"),
    "amount": ("keys", "frames"),
}
_OPTIONAL = {"only", "weights", "steps", "ease", "blend", "reason"}
_WEIGHTS = tuple(n for n, value in asdict(Objective()).items() if isinstance(value, float))
_FADE = 3  # frames over which the low-pass error at the edge of a repair fades out
_CODES = ("alpha", "delta", "codes")  # arrays that are linear in a frame's weights
# The objective's weights of each facial part, and the factor for parts that are kept. A larger
# factor would hold the followed parts back: eq. 2 is as steep at distance 0, where a solve starts,
# as anywhere.
_PART_WEIGHTS = {
    "eyes": ("eye_points", "iris_points"),
    "mouth": ("mouth_points", "mouth"),
    "head": ("head_points",),
}
_KEPT_FACTOR = 0.25
_NUMBERS = re.compile(r"\s*(\d{1,9})\s*(?:-\s*(\d{1,9})\s*)?")


class RepairError(ReenactError):
    """An entry is no repair of this track; the message names it and says what is allowed."""


@dataclass(frozen=True, eq=False)
class Solve:
    """Frames that are solved again."""

    frames: np.ndarray  # [K] indices
    follow: tuple[str, ...] = tuple(PARTS)
    weights: Mapping[str, float] = field(default_factory=dict)
    steps: int | None = None


@dataclass(frozen=True, eq=False)
class Mix:
    """Frames whose codes are mixtures of other frames': interpolate, hold and replace."""

    frames: np.ndarray  # [K] indices
    sources: np.ndarray  # [K, S] indices of the frames that are mixed
    shares: np.ndarray  # [K, S] float32, not negative, adding up to 1, so mixtures stay in P+


@dataclass(frozen=True, eq=False)
class Amount:
    """Frames in which the face is merged over the plate by another amount."""

    frames: np.ndarray  # [K] indices
    keys: tuple[keyframes.Key, ...]


Repair = Solve | Mix | Amount


# -- repair lists --------------------------------------------------------------------------------


def read_list(path: str | Path) -> list[Any]:
    """Reads a repair list, or the repairs that a track stores.

    Args:
        path: a JSON file or a `.latents` file.

    Raises:
        RepairError: no such file, or no JSON list.
        core.solve.latent_track.NotATrackError: a `.latents` file that can't be loaded.
    """
    if Path(path).suffix == ".latents":
        return list(load_track(path).recipe)
    try:
        entries = read_json(path)
    except OSError as error:
        raise RepairError(f"{path} can't be read: {error.strerror or error}.") from error
    except (ValueError, RecursionError) as error:
        raise RepairError(f"{path} can't be read as a repair list: {error}.") from error
    if not isinstance(entries, list):
        raise RepairError(f'{path} is no list. Write [{{"do": "hold", …}}, …].')
    return entries


def check(entries: Sequence[Any], track: LatentTrack) -> tuple[Repair, ...]:
    """Checks a repair list against the track that it is for.

    Args:
        entries: plain JSON as in this module's docstring.
        track: complete.

    Raises:
        RepairError: by the first entry that is no repair of this track.
    """
    if not track.complete:
        raise RepairError("The track is not complete. Finish its solve first.")
    if not entries:
        raise RepairError("The list has no repair.")
    return tuple(_read(entry, i, track) for i, entry in enumerate(entries, 1))


@dataclass(frozen=True)
class _Entry:
    """One entry of a list, read field by field."""

    fields: Mapping[str, Any]
    position: int  # in the list, from 1
    track: LatentTrack

    @property
    def kind(self) -> str:
        return str(self.fields["do"])

    def error(self, problem: str) -> RepairError:
        return RepairError(f"Repair {self.position} ({self.kind}): {problem}")

    def frames(self, name: str) -> np.ndarray:
        """Returns the indices of the frames in a field, such as "1020-1035, 1040"."""
        text, numbers = self.fields[name], self.track.numbers
        if type(text) not in (int, str):
            raise self.error(f'{name} must be frames, as in "1020-1035, 1040", not {text!r}.')
        chosen = np.zeros(len(numbers), bool)
        for part in str(text).split(","):
            found = _NUMBERS.fullmatch(part)
            if not found:
                raise self.error(f'{name} must be frames, as in "1020-1035, 1040", not {text!r}.')
            first, last = int(found[1]), int(found[2] or found[1])
            for number in (first, last):
                if number not in numbers:
                    raise self.error(
                        f"frame {number} is not in the track, which has "
                        f"{format_numbers(numbers.tolist())}."
                    )
            if last < first:
                raise self.error(f"the range {first}-{last} ends before it starts.")
            chosen |= (numbers >= first) & (numbers <= last)
        return np.flatnonzero(chosen)

    def whole_number(self, name: str, least: int, default: int | None) -> int | None:
        value = self.fields.get(name, default)
        if value is not None and (type(value) is not int or not least <= value <= 1_000_000):
            raise self.error(f"{name} must be a whole number from {least}, not {value!r}.")
        return value


def _read(fields: Any, position: int, track: LatentTrack) -> Repair:
    """Reads and checks one entry of a list."""
    kind = fields.get("do") if isinstance(fields, Mapping) else None
    if not isinstance(kind, str) or kind not in _FIELDS:
        found = f"do is {kind!r}" if isinstance(fields, Mapping) else f"{fields!r:.60} is no object"
        raise RepairError(f"Repair {position}: {found}. It must be one of {', '.join(_FIELDS)}.")
    entry = _Entry(fields, position, track)
    allowed = (*_FIELDS[kind], "reason")
    for name in fields:
        if name != "do" and name not in allowed:
            raise entry.error(f"it has no {name!r}. It may have {', '.join(allowed)}.")
    needed = set(allowed) - _OPTIONAL - ({"frames"} if kind == "amount" else set())
    for name in allowed:
        if name in needed and name not in fields:
            raise entry.error(f"it needs {name!r}.")
    frames = entry.frames("frames") if "frames" in fields else np.arange(len(track.numbers))
    match kind:
        case "solve":
            return _read_solve(entry, frames)
        case "interpolate":
            return _read_interpolate(entry, frames)
        case "amount":
            return _read_amount(entry, frames)
    return _read_copy(entry, frames)


def _read_solve(entry: _Entry, frames: np.ndarray) -> Solve:
    steps = entry.whole_number("steps", 1, None)
    only, weights = entry.fields.get("only"), entry.fields.get("weights", {})
    follow = tuple(PARTS) if only is None else tuple(str(only).replace(",", " ").split())
    if not follow or not set(follow) <= set(PARTS):
        raise entry.error(f"only must be of {', '.join(PARTS)}, not {only!r}.")
    if not isinstance(weights, Mapping) or not set(weights) <= set(_WEIGHTS):
        raise entry.error(f"weights must be numbers of {', '.join(_WEIGHTS)}, not {weights!r}.")
    for name, value in weights.items():
        if type(value) not in (int, float) or not 0 <= value <= 1e6:
            raise entry.error(f"the weight {name} must be a number from 0, not {value!r}.")
    if edited(entry.track):
        raise entry.error(
            "the track was edited, which would be lost in what is solved. Repair the track that it "
            "was made from, and edit the result again."
        )
    found = frames[np.isfinite(entry.track.landmarks[frames]).all((1, 2))]
    if not len(found):
        raise entry.error("its frames show no face. Hold or interpolate them.")
    partly = set(follow) < set(PARTS)
    return Solve(found if partly else frames, follow, weights, steps)


def _read_interpolate(entry: _Entry, frames: np.ndarray) -> Mix:
    ease = entry.fields.get("ease", "linear")
    if ease not in keyframes.EASINGS:
        raise entry.error(f"ease must be one of {', '.join(keyframes.EASINGS)}, not {ease!r}.")
    for run, *ends in _runs(entry.track, frames):
        if None in ends:
            raise entry.error(
                f"the shot has no frame {'before' if ends[0] is None else 'after'} "
                f"{format_numbers(entry.track.numbers[run].tolist())} to interpolate from. Hold "
                "one."
            )
    return _interpolated(entry.track, frames, ease)


def _read_amount(entry: _Entry, frames: np.ndarray) -> Amount:
    try:
        given = entry.fields["keys"]
        read = keyframes.parse if isinstance(given, str) else keyframes.from_plain
        keys = read(given)
    except keyframes.KeyframeError as error:
        raise entry.error(str(error)) from None
    if not all(0 <= key.value <= 1 for key in keys):
        raise entry.error("amounts must lie between 0, the plate alone, and 1, all of the face.")
    return Amount(frames, keys)


def _read_copy(entry: _Entry, frames: np.ndarray) -> Mix:
    """Reads hold and replace."""
    sources = entry.frames("from")
    if len(sources) != (1 if entry.kind == "hold" else len(frames)):
        hint = "hold one" if entry.kind == "hold" else "give as many, or hold one"
        raise entry.error(f"from has {len(sources)} frames for {len(frames)}: {hint}.")
    blend = entry.whole_number("blend", 0, round(BLEND_SECONDS * entry.track.fps))
    assert blend is not None
    return _copied(entry.track, frames, sources, blend)


# -- repairs -------------------------------------------------------------------------------------


def repair(
    track: LatentTrack,
    entries: Sequence[Any],
    *,
    character: Character | None = None,
    plate: Clip | None = None,
    batch: int = 8,
    work: Path | None = None,
    progress: Progress = lambda done, total: None,
) -> LatentTrack:
    """Applies a repair list.

    With `work`, an interrupted solve continues when the call is repeated, with the same result.

    Args:
        track: from its file; it is not changed.
        entries: as in this module's docstring.
        character: the track's; needed for solves.
        plate: the clip that the track was solved on; needed for solves.
        batch: frames solved at once.
        work: folder for unfinished solves.
        progress: called with frames solved and to be solved.

    Returns:
        The repaired track. Frames that no repair names are bit-identical. Frames with other frames'
        codes have the state `REPAIRED` and neither losses nor quality; solved frames have the
        solver's, computed with kept parts following themselves. The low-pass over time is repeated
        within the repaired frames.

    Raises:
        RepairError: an entry is no repair of this track.
        core.solve.latent_track.PlateMismatchError: the clip is another one.
        core.media.errors.MissingFramesError: the clip lacks frames that are to be solved.
        ValueError: a track that was not read from a file, or solves without character or plate.
        core.base.errors.ReenactError: as `core.solve.shot.solve_shot`.
    """
    repairs = check(entries, track)
    if not track.hash:
        raise ValueError("Save the track and load it: its hash says what was repaired.")
    recipe = tuple(json.loads(json.dumps(list(entries))))
    solves = [r.frames for r in repairs if isinstance(r, Solve)]
    count, solved = sum(map(len, solves)), 0
    if solves and plate is not None:
        check_plate(plate, track, np.concatenate(solves))

    def solve_progress(done: float, total: float) -> None:
        progress(solved + done, count)

    result = track
    for position, item in enumerate(repairs, 1):
        match item:
            case Solve():
                task = (track.hash, *recipe[:position])
                result = _solve(result, item, character, plate, batch, work, task, solve_progress)
                solved += len(item.frames)
            case Mix():
                result = _mix(result, item)
            case Amount():
                amount = result.amount.copy()
                amount[item.frames] = keyframes.at(item.keys, track.numbers[item.frames])
                result = replace(result, amount=amount)
    smooth = _smooth(track, result, changed_frames(repairs))
    return replace(result, smooth=smooth, task="", parent=track.hash, recipe=recipe, hash="")


def existing_repair(path: Path, track: LatentTrack, entries: Sequence[Any]) -> LatentTrack | None:
    """Loads the repaired track that an earlier call saved; None if there is no file.

    Raises:
        core.solve.shot.TrackExistsError: the file is another track.
    """
    if not path.exists():
        return None
    existing = load_track(path)
    if (existing.parent, [*existing.recipe]) != (track.hash, [*entries]):
        raise TrackExistsError(
            f"{path} holds another version. Choose another name: no version is overwritten."
        )
    return existing


def check_plate(plate: Clip, track: LatentTrack, frames: np.ndarray) -> None:
    """Refuses a clip on which frames of a track, given by their indices, can't be solved.

    Raises:
        core.solve.latent_track.PlateMismatchError: its size is another one.
        core.media.errors.MissingFramesError: it lacks frames.
    """
    track.check_plate(plate)
    found = np.isfinite(track.landmarks[frames]).all((1, 2))
    absent = {int(n) for n in track.numbers[frames[found]]} - set(plate.numbers)
    if absent:
        raise MissingFramesError(plate.path, absent, format_numbers(plate.numbers))


def edited(track: LatentTrack) -> bool:
    """Returns whether a track was edited: frames that are solved again would lose the edit."""
    return any(step.get("do") not in _FIELDS for step in track.recipe)


def changed_frames(repairs: Sequence[Repair]) -> np.ndarray:
    """Returns the indices `[K]` of the frames whose codes are changed by repairs, increasing."""
    frames = [r.frames for r in repairs if not isinstance(r, Amount)]
    return np.unique(np.concatenate(frames)) if frames else np.zeros(0, int)


def affected_neighbours(
    before: LatentTrack, after: LatentTrack, repairs: Sequence[Repair]
) -> list[int]:
    """Finds frames beside repaired ones in which the repaired error is still visible.

    The low-pass had mixed the error into them, and a repair does not change them.

    Args:
        before: the track.
        after: the repaired track.
        repairs: the repairs that were applied.

    Returns:
        Numbers of the frames that a repeated low-pass would move by more than the shot's median
        step from frame to frame.
    """
    sigma = SolveSettings.of(before).sigma(before.fps)
    old, new = (smooth_codes(t, sigma) for t in (before, after))
    step = np.linalg.norm(np.diff(old, axis=0), axis=(1, 2))
    far = np.linalg.norm(new - old, axis=(1, 2)) > np.median(step[step > 0] if step.any() else 0.0)
    far[changed_frames(repairs)] = False
    return [int(n) for n in before.numbers[far]]


def _solve(
    track: LatentTrack,
    item: Solve,
    character: Character | None,
    plate: Clip | None,
    batch: int,
    work: Path | None,
    task: tuple[object, ...],
    progress: Progress,
) -> LatentTrack:
    """Solves frames of a track again; those around stay as they are."""
    if character is None or plate is None:
        raise ValueError("To solve frames again, character and plate are needed.")
    shot = SolveSettings.of(track)
    kept = {
        name: _KEPT_FACTOR * getattr(shot.objective, name)
        for part, names in _PART_WEIGHTS.items()
        if part not in item.follow
        for name in names
    }
    weights: dict[str, Any] = {**kept, **item.weights}
    settings = replace(
        shot,
        batch=batch,
        follow=item.follow,
        objective=replace(shot.objective, **weights),
        steps=item.steps or shot.steps,
        first_steps=item.steps or shot.first_steps,
    )
    size = min(MAX_RESOLUTION, character.generator.architecture.resolution)
    numbers = [int(n) for n in track.numbers[item.frames]]
    driving = driving_from_track(plate, track, numbers, size)
    path = work and work / f"{digest(*task, character.hash, driving.pictures)[:16]}.latents"
    solved = solve_shot(character, driving, settings, path=path, previous=track, progress=progress)
    arrays = {name: getattr(solved, name)[item.frames] for name in (*_CODES, "state")}
    figures = {n: v[item.frames] for n, v in {**solved.losses, **solved.quality}.items()}
    return _with_frames(track, item.frames, arrays, figures)


def _smooth(before: LatentTrack, after: LatentTrack, frames: np.ndarray) -> np.ndarray:
    """Returns the low-passed codes of a track some of whose frames were changed.

    The frames beside them stay, although the low-pass had mixed them with the old codes. Their
    distance from where the low-pass would put them now fades out over the first changed frames. It
    fades no slower than the low-pass itself forgets, so the result is still a mean of codes, in P+.

    Args:
        before: the track.
        after: the track with other codes in some frames.
        frames: their indices, increasing.
    """
    sigma = SolveSettings.of(before).sigma(before.fps)
    repeated = smooth_codes(after, sigma)
    smooth = before.smooth.copy()
    smooth[frames] = repeated[frames]
    runs = [*_runs(before, frames)]
    for run, *ends in runs:
        alone = repeated
        if len(runs) > 1:  # without the other runs, whose changes near it are not its own
            codes, state = before.codes.copy(), before.state.copy()
            codes[run], state[run] = after.codes[run], after.state[run]
            alone = smooth_codes(replace(before, codes=codes, state=state), sigma)
        for end in ends:
            if end is not None:
                distance = np.abs(before.numbers[run] - before.numbers[end])
                share = np.clip(1 - distance / _FADE, 0, None).astype(np.float32)
                smooth[run] += share[:, None, None] * (before.smooth[end] - alone[end])
    return smooth


def _interpolated(track: LatentTrack, frames: np.ndarray, ease: str) -> Mix:
    """Interpolates between the frames around each run, which exist (see `_read_interpolate`)."""
    sources, shares = [], []
    for run, before, after in _runs(track, frames):
        ends = np.array([before, after])
        a, b = track.numbers[ends].tolist()
        keys = (keyframes.Key(a, 0.0, ease), keyframes.Key(b, 1.0))
        share = keyframes.at(keys, track.numbers[run])
        sources.append(np.broadcast_to(ends, (len(run), 2)))
        shares.append(np.stack([1 - share, share], 1))
    return Mix(frames, np.concatenate(sources), np.concatenate(shares))


def _copied(track: LatentTrack, frames: np.ndarray, source: np.ndarray, blend: int) -> Mix:
    """Uses the codes of source frames, blended with the frames around each run."""
    sources = np.broadcast_to(source[:, None], (len(frames), 1)).repeat(3, 1)
    shares = np.zeros((len(frames), 3), np.float32)
    shares[:, 1] = 1
    for run, *ends in _runs(track, frames):
        here = np.isin(frames, run)
        length = min(blend, (len(run) - 1) // 2)  # so that the two blends do not overlap
        keys = (keyframes.Key(0, 0.0, "smooth"), keyframes.Key(length + 1, 1.0))
        for side, end in zip((0, 2), ends, strict=True):
            if end is not None:
                own = keyframes.at(keys, np.abs(track.numbers[run] - track.numbers[end]))
                sources[here, side] = end
                shares[here] *= own[:, None]
                shares[here, side] = 1 - own
    return Mix(frames, sources, shares)


def _mix(track: LatentTrack, item: Mix) -> LatentTrack:
    arrays = {
        name: np.einsum("ks,ks...->k...", item.shares, getattr(track, name)[item.sources])
        for name in _CODES
    }
    return _with_frames(track, item.frames, arrays | {"state": FrameState.REPAIRED}, {})


def _runs(
    track: LatentTrack, frames: np.ndarray
) -> Iterator[tuple[np.ndarray, int | None, int | None]]:
    """Yields consecutive frames of a shot, with the shot's frame before and after, if any."""
    shot = np.cumsum(track.cut)
    if not len(frames):
        return
    splits = np.flatnonzero((np.diff(frames) > 1) | (np.diff(shot[frames]) > 0)) + 1
    for run in np.split(frames, splits):
        before, after = (
            end if 0 <= end < len(shot) and shot[end] == shot[run[0]] else None
            for end in (run[0] - 1, run[-1] + 1)
        )
        yield run, before, after


def _with_frames(
    track: LatentTrack,
    frames: np.ndarray,
    arrays: Mapping[str, Any],
    figures: Mapping[str, np.ndarray],
) -> LatentTrack:
    """Returns a track with other values in some frames.

    Args:
        track: stays as it is.
        frames: `[K]` indices.
        arrays: by field, `[K, ...]` or one value.
        figures: `[K]` losses and quality by name; those that are missing become NaN.
    """
    changes: dict[str, Any] = {}
    for name, values in arrays.items():
        changes[name] = getattr(track, name).copy()
        changes[name][frames] = values
    for table in ("losses", "quality"):
        changes[table] = {n: values.copy() for n, values in getattr(track, table).items()}
        for name, values in changes[table].items():
            values[frames] = figures.get(name, np.nan)
    return replace(track, **changes)
