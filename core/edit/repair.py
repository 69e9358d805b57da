"""Shot repair: frames of a latent track done again, and nothing else in it changed by a bit.

A repair list is a JSON list of repairs. They are made in order, each on what those before it left:

    [
      {"do": "solve", "frames": "1020-1035"},
      {"do": "solve", "frames": "1038", "only": "mouth", "weights": {"mouth": 40}, "steps": 30},
      {"do": "interpolate", "frames": "1040-1044, 1047", "ease": "smooth"},
      {"do": "hold", "frames": "1050-1055", "from": 1049, "blend": 2},
      {"do": "replace", "frames": "1060-1062", "from": "1030-1032"},
      {"do": "amount", "keys": [[1001, 0, "smooth"], [1009, 1]]},
      {"do": "amount", "keys": "0.5", "frames": "1060-1062"}
    ]

`solve`: finds the codes again; needs the plate and the character. The frames around stay as they
    are, and it starts from them. `only` (of eyes, mouth, head) follows the driver with these parts
    and leaves the others as they are; `weights` are those of
    `core.solve.objective.Objective`, `steps` the most per frame. All else is as the
    shot was solved.
`interpolate`: between the frames before and after, `ease` one of `core.base.keyframes.EASINGS`.
`hold`: the code of one frame.
`replace`: the codes of as many other frames, one by one.
`amount`: how much of the face is laid over the plate, as keys (`core.base.keyframes`), in any form;
    changes all frames, or `frames`.

`frames` are numbers and ranges of the track, as people write them. Held and replacing codes are
eased into over `blend` frames at either end, inside the range. Any repair may have a `reason`, for
people. A track remembers its repairs as its `recipe`: made on its parent, they give it once more,
to its hash.

Between two codes lies the straight line of their barycentric weights. P is a polytope, flat and
convex, so that line is its geodesic, as in W, and never leaves it; the great circle that suits
Gaussian latents (slerp) would.
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

BLEND_SECONDS = 0.125  # that a face takes into and out of a held or replacing code

_FIELDS = {
    "solve": ("frames", "only", "weights", "steps"),
    "interpolate": ("frames", "ease"),
    "hold": ("frames", "from", "blend"),
    "replace": ("frames", "from", "blend"),
    "amount": ("keys", "frames"),
}
_OPTIONAL = {"only", "weights", "steps", "ease", "blend", "reason"}
_WEIGHTS = tuple(n for n, value in asdict(Objective()).items() if isinstance(value, float))
_FADE = 3  # frames in which what the low-pass left outside is gone inside
_CODES = ("alpha", "delta", "codes")  # all linear in a frame's weights
# The weights of the face's parts, and the share of them that a part has which is to stay. With more
# it holds the others back: eq. 2 is as steep at distance 0 as anywhere, and there it starts.
_COUNTS = {
    "eyes": ("eye_points", "iris_points"),
    "mouth": ("mouth_points", "mouth"),
    "head": ("head_points",),
}
_KEPT = 0.25
_NUMBERS = re.compile(r"\s*(\d{1,9})\s*(?:-\s*(\d{1,9})\s*)?")


class RepairError(ReenactError):
    """What is no repair of this track; the message names the entry and what is allowed."""


@dataclass(frozen=True, eq=False)
class Solve:
    """Frames to be solved again."""

    rows: np.ndarray  # [K] int, of the track
    follow: tuple[str, ...] = tuple(PARTS)
    weights: Mapping[str, float] = field(default_factory=dict)
    steps: int | None = None


@dataclass(frozen=True, eq=False)
class Mix:
    """Frames whose codes are mixed from other frames': interpolate, hold and replace."""

    rows: np.ndarray
    sources: np.ndarray  # [K, S] rows
    shares: np.ndarray  # [K, S] float32, none negative, adding up to 1: what is mixed stays in P+


@dataclass(frozen=True, eq=False)
class Amount:
    """Frames in which another share of the face is laid over the plate."""

    rows: np.ndarray
    keys: tuple[keyframes.Key, ...]


Repair = Solve | Mix | Amount


# -- repair lists --------------------------------------------------------------------------------


def read_list(path: str | Path) -> list[Any]:
    """The repairs of a list, or those that a track remembers.

    Args:
        path: JSON file, or a `.latents` file.

    Raises:
        RepairError: no such file, no JSON, no list.
        core.solve.latent_track.NotATrackError: a `.latents` file that can't be loaded.
    """
    if Path(path).suffix == ".latents":
        return list(load_track(path).recipe)
    try:
        entries = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise RepairError(f"{path} can't be read: {error.strerror or error}.") from error
    except (ValueError, RecursionError) as error:
        raise RepairError(f"{path} can't be read as a repair list: {error}.") from error
    if not isinstance(entries, list):
        raise RepairError(f'{path} is no list. Write [{{"do": "hold", …}}, …].')
    return entries


def check(entries: Sequence[Any], track: LatentTrack) -> tuple[Repair, ...]:
    """The repairs of a list, checked against the track that they are for.

    Args:
        entries: as in this module's head, plain JSON.
        track: complete.

    Raises:
        RepairError: the first entry that is no repair of this track.
    """
    if not track.complete:
        raise RepairError("The track is not complete. Finish its solve first.")
    if not entries:
        raise RepairError("The list has no repair.")
    return tuple(_read(entry, i + 1, track) for i, entry in enumerate(entries))


def _read(entry: Any, place: int, track: LatentTrack) -> Repair:
    kind = entry.get("do") if isinstance(entry, Mapping) else None
    if not isinstance(kind, str) or kind not in _FIELDS:
        said = f"do is {kind!r}" if isinstance(entry, Mapping) else f"{entry!r:.60} is no object"
        raise RepairError(f"Repair {place}: {said}. It must be one of {', '.join(_FIELDS)}.")

    def wrong(said: str) -> RepairError:
        return RepairError(f"Repair {place} ({kind}): {said}")

    def rows(name: str) -> np.ndarray:
        text = entry[name]
        if type(text) not in (int, str):
            raise wrong(f'{name} must be frames, as in "1020-1035, 1040", not {text!r}.')
        chosen = np.zeros(len(track.numbers), bool)
        for part in str(text).split(","):
            found = _NUMBERS.fullmatch(part)
            if not found:
                raise wrong(f'{name} must be frames, as in "1020-1035, 1040", not {text!r}.')
            first, last = int(found[1]), int(found[2] or found[1])
            for number in (first, last):
                if number not in track.numbers:
                    raise wrong(
                        f"frame {number} is not in the track, which has "
                        f"{format_numbers(track.numbers.tolist())}."
                    )
            if last < first:
                raise wrong(f"the range {first}-{last} ends before it starts.")
            chosen |= (track.numbers >= first) & (track.numbers <= last)
        return np.flatnonzero(chosen)

    def whole(name: str, least: int, default: int | None) -> int | None:
        value = entry.get(name, default)
        if value is not None and (type(value) is not int or not least <= value <= 1_000_000):
            raise wrong(f"{name} must be a whole number from {least}, not {value!r}.")
        return value

    allowed = (*_FIELDS[kind], "reason")
    for name in entry:
        if name != "do" and name not in allowed:
            raise wrong(f"it has no {name!r}. It may have {', '.join(allowed)}.")
    needed = set(allowed) - _OPTIONAL - ({"frames"} if kind == "amount" else set())
    for name in allowed:
        if name in needed and name not in entry:
            raise wrong(f"it needs {name!r}.")
    chosen = rows("frames") if "frames" in entry else np.arange(len(track.numbers))

    if kind == "solve":
        return _read_solve(entry, chosen, whole("steps", 1, None), track, wrong)
    if kind == "interpolate":
        ease = entry.get("ease", "linear")
        if ease not in keyframes.EASINGS:
            raise wrong(f"ease must be one of {', '.join(keyframes.EASINGS)}, not {ease!r}.")
        for run, *ends in _runs(track, chosen):
            if None in ends:
                raise wrong(
                    f"the shot has no frame {'before' if ends[0] is None else 'after'} "
                    f"{format_numbers(track.numbers[run].tolist())} to interpolate from. Hold one."
                )
        return _interpolate(track, chosen, ease)
    if kind == "amount":
        try:
            given = entry["keys"]
            read = keyframes.parse if isinstance(given, str) else keyframes.from_plain
            keys = read(given)
        except keyframes.KeyframeError as error:
            raise wrong(str(error)) from None
        if not all(0 <= key.value <= 1 for key in keys):
            raise wrong("amounts must lie between 0, the plate alone, and 1, all of the face.")
        return Amount(chosen, keys)
    source = rows("from")
    if len(source) != (1 if kind == "hold" else len(chosen)):
        hint = "hold one" if kind == "hold" else "give as many, or hold one"
        raise wrong(f"from has {len(source)} frames for {len(chosen)}: {hint}.")
    blend = whole("blend", 0, round(BLEND_SECONDS * track.fps))
    assert blend is not None
    return _take(track, chosen, source, blend)


def _read_solve(
    entry: Any, rows: np.ndarray, steps: int | None, track: LatentTrack, wrong: Any
) -> Solve:
    only, weights = entry.get("only"), entry.get("weights", {})
    follow = tuple(PARTS) if only is None else tuple(str(only).replace(",", " ").split())
    if not follow or not set(follow) <= set(PARTS):
        raise wrong(f"only must be of {', '.join(PARTS)}, not {only!r}.")
    if not isinstance(weights, Mapping) or not set(weights) <= set(_WEIGHTS):
        raise wrong(f"weights must be numbers of {', '.join(_WEIGHTS)}, not {weights!r}.")
    for name, value in weights.items():
        if type(value) not in (int, float) or not 0 <= value <= 1e6:
            raise wrong(f"the weight {name} must be a number from 0, not {value!r}.")
    if edited(track):
        raise wrong(
            "the track was edited, which would be lost in what is solved. Repair the track that it "
            "was made from, and edit the result again."
        )
    found = rows[np.isfinite(track.landmarks[rows]).all((1, 2))]
    if not len(found):
        raise wrong("its frames show no face. Hold or interpolate them.")
    partly = set(follow) < set(PARTS)
    return Solve(found if partly else rows, follow, weights, steps)


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
    """Makes the repairs of a list.

    With `work`, a solve that was interrupted goes on there when the call is repeated, to the same
    result.

    Args:
        track: from its file; stays as it is.
        entries: as in this module's head.
        character: the track's; for solves.
        plate: the clip that it was solved on; for solves.
        batch: frames solved at once.
        work: folder for what is solved in part.
        progress: called with frames solved and to be solved.

    Returns:
        The repaired track. What no repair names is bit for bit the track's. Frames with other
        frames' codes are `REPAIRED`, without losses and quality; those of solved ones are the
        solver's, to which a part that stays is its own driver. The low-pass over time runs anew
        within what was repaired.

    Raises:
        RepairError: an entry is no repair of this track.
        core.solve.latent_track.PlateMismatchError: the clip is another one.
        core.media.errors.MissingFramesError: the clip lacks frames that are to be solved.
        ValueError: a track that was not read from its file; solves without character or plate.
        core.base.errors.ReenactError: as `core.solve.shot.solve_shot`.
    """
    repairs = check(entries, track)
    if not track.hash:
        raise ValueError("Save the track and load it: its hash says what was repaired.")
    recipe = tuple(json.loads(json.dumps(list(entries))))
    solves = [r.rows for r in repairs if isinstance(r, Solve)]
    count, solved = sum(map(len, solves)), 0
    if solves and plate is not None:
        check_plate(plate, track, np.concatenate(solves))

    def tick(done: float, total: float) -> None:
        progress(solved + done, count)

    made = track
    for place, one in enumerate(repairs, 1):
        match one:
            case Solve():
                task = (track.hash, *recipe[:place])
                made = _solve(made, one, character, plate, batch, work, task, tick)
                solved += len(one.rows)
            case Mix():
                made = _mix(made, one)
            case Amount():
                amount = made.amount.copy()
                amount[one.rows] = keyframes.at(one.keys, track.numbers[one.rows])
                made = replace(made, amount=amount)
    smooth = _smooth(track, made, changed(repairs))
    return replace(made, smooth=smooth, task="", parent=track.hash, recipe=recipe, hash="")


def made_before(path: Path, track: LatentTrack, entries: Sequence[Any]) -> LatentTrack | None:
    """The repaired track that an earlier call left at a path; None where nothing is.

    Raises:
        core.solve.shot.TrackExistsError: another file is there.
    """
    if not path.exists():
        return None
    there = load_track(path)
    if (there.parent, [*there.recipe]) != (track.hash, [*entries]):
        raise TrackExistsError(
            f"{path} holds another version. Choose another name: no version is overwritten."
        )
    return there


def check_plate(plate: Clip, track: LatentTrack, rows: np.ndarray) -> None:
    """Refuses a clip that rows of a track can't be solved on.

    Raises:
        core.solve.latent_track.PlateMismatchError: its size is another one.
        core.media.errors.MissingFramesError: it lacks frames.
    """
    track.check_plate(plate)
    seen = np.isfinite(track.landmarks[rows]).all((1, 2))
    absent = {int(n) for n in track.numbers[rows[seen]]} - set(plate.numbers)
    if absent:
        raise MissingFramesError(plate.path, absent, format_numbers(plate.numbers))


def edited(track: LatentTrack) -> bool:
    """Whether more than repairs was done to a track: frames solved anew would lack that."""
    return any(step.get("do") not in _FIELDS for step in track.recipe)


def changed(repairs: Sequence[Repair]) -> np.ndarray:
    """Rows whose codes are changed by repairs, `[K]`."""
    rows = [r.rows for r in repairs if not isinstance(r, Amount)]
    return np.unique(np.concatenate(rows)) if rows else np.zeros(0, int)


def still_seen(before: LatentTrack, after: LatentTrack, repairs: Sequence[Repair]) -> list[int]:
    """Frames next to repaired ones in which what was repaired still shows.

    The low-pass had mixed them with it, and a repair leaves them as they are.

    Args:
        before: the track.
        after: repaired.
        repairs: what was done.

    Returns:
        Numbers of frames that the low-pass alone would now move by more than the shot's median step
        from frame to frame.
    """
    sigma = SolveSettings.of(before).sigma(before.fps)
    old, new = (smooth_codes(t, sigma) for t in (before, after))
    step = np.linalg.norm(np.diff(old, axis=0), axis=(1, 2))
    far = np.linalg.norm(new - old, axis=(1, 2)) > np.median(step[step > 0] if step.any() else 0.0)
    far[changed(repairs)] = False
    return [int(n) for n in before.numbers[far]]


def _solve(
    track: LatentTrack,
    one: Solve,
    character: Character | None,
    plate: Clip | None,
    batch: int,
    work: Path | None,
    task: tuple[object, ...],
    progress: Progress,
) -> LatentTrack:
    if character is None or plate is None:
        raise ValueError("To solve frames again, character and plate are needed.")
    shot = SolveSettings.of(track)
    kept = {
        name: _KEPT * getattr(shot.objective, name)
        for part, names in _COUNTS.items()
        if part not in one.follow
        for name in names
    }
    weights: dict[str, Any] = {**kept, **one.weights}
    settings = replace(
        shot,
        batch=batch,
        follow=one.follow,
        objective=replace(shot.objective, **weights),
        steps=one.steps or shot.steps,
        first_steps=one.steps or shot.first_steps,
    )
    size = min(MAX_RESOLUTION, character.generator.architecture.resolution)
    numbers = [int(n) for n in track.numbers[one.rows]]
    driving = driving_from_track(plate, track, numbers, size)
    path = work and work / f"{digest(*task, character.hash, driving.pictures)[:16]}.latents"
    made = solve_shot(character, driving, settings, path=path, previous=track, progress=progress)
    parts = {name: getattr(made, name)[one.rows] for name in (*_CODES, "state")}
    figures = {n: v[one.rows] for n, v in {**made.losses, **made.quality}.items()}
    return _changed(track, one.rows, parts, figures)


def _smooth(before: LatentTrack, after: LatentTrack, rows: np.ndarray) -> np.ndarray:
    """Codes after the low-pass, of a track in some of whose rows the codes are others now.

    The rows beside them stay, though the low-pass had mixed them with the old codes. How far they
    are from where it would put them now fades out over the first frames inside. It fades no slower
    than the low-pass itself forgets, so that what comes out is still a mean of codes: in P+.
    """
    sigma = SolveSettings.of(before).sigma(before.fps)
    again = smooth_codes(after, sigma)
    smooth = before.smooth.copy()
    smooth[rows] = again[rows]
    runs = [*_runs(before, rows)]
    for run, *ends in runs:
        alone = again
        if len(runs) > 1:  # what other runs near it do is no fault of this one to make up for
            codes, state = before.codes.copy(), before.state.copy()
            codes[run], state[run] = after.codes[run], after.state[run]
            alone = smooth_codes(replace(before, codes=codes, state=state), sigma)
        for end in ends:
            if end is not None:
                far = np.abs(before.numbers[run] - before.numbers[end])
                share = np.clip(1 - far / _FADE, 0, None).astype(np.float32)
                smooth[run] += share[:, None, None] * (before.smooth[end] - alone[end])
    return smooth


def _interpolate(track: LatentTrack, rows: np.ndarray, ease: str) -> Mix:
    """Between the rows around each run; there are such, see `check`."""
    sources, shares = [], []
    for run, before, after in _runs(track, rows):
        ends = np.array([before, after])
        a, b = track.numbers[ends].tolist()
        keys = (keyframes.Key(a, 0.0, ease), keyframes.Key(b, 1.0))
        share = keyframes.at(keys, track.numbers[run])
        sources.append(np.broadcast_to(ends, (len(run), 2)))
        shares.append(np.stack([1 - share, share], 1))
    return Mix(rows, np.concatenate(sources), np.concatenate(shares))


def _take(track: LatentTrack, rows: np.ndarray, source: np.ndarray, blend: int) -> Mix:
    """Codes of source rows, eased into from the rows around each run."""
    sources = np.broadcast_to(source[:, None], (len(rows), 1)).repeat(3, 1)
    shares = np.zeros((len(rows), 3), np.float32)
    shares[:, 1] = 1
    for run, *ends in _runs(track, rows):
        here = np.isin(rows, run)
        most = min(blend, (len(run) - 1) // 2)  # the two ends don't meet
        keys = (keyframes.Key(0, 0.0, "smooth"), keyframes.Key(most + 1, 1.0))
        for side, end in zip((0, 2), ends, strict=True):
            if end is not None:
                own = keyframes.at(keys, np.abs(track.numbers[run] - track.numbers[end]))
                sources[here, side] = end
                shares[here] *= own[:, None]
                shares[here, side] = 1 - own
    return Mix(rows, sources, shares)


def _mix(track: LatentTrack, one: Mix) -> LatentTrack:
    parts = {
        name: np.einsum("ks,ks...->k...", one.shares, getattr(track, name)[one.sources])
        for name in _CODES
    }
    return _changed(track, one.rows, parts | {"state": FrameState.REPAIRED}, {})


def _runs(
    track: LatentTrack, rows: np.ndarray
) -> Iterator[tuple[np.ndarray, int | None, int | None]]:
    """Rows that follow each other in a shot, with the shot's row before and after, if any."""
    shot = np.cumsum(track.cut)
    if not len(rows):
        return
    splits = np.flatnonzero((np.diff(rows) > 1) | (np.diff(shot[rows]) > 0)) + 1
    for run in np.split(rows, splits):
        ends = (run[0] - 1, run[-1] + 1)
        there = [0 <= e < len(shot) and shot[e] == shot[run[0]] for e in ends]
        before, after = (e if yes else None for e, yes in zip(ends, there, strict=True))
        yield run, before, after


def _changed(
    track: LatentTrack,
    rows: np.ndarray,
    parts: Mapping[str, Any],
    figures: Mapping[str, np.ndarray],
) -> LatentTrack:
    """The track with other arrays in some rows; losses and quality as given there, or none."""
    changes: dict[str, Any] = {}
    for name, values in parts.items():
        changes[name] = getattr(track, name).copy()
        changes[name][rows] = values
    for table in ("losses", "quality"):
        changes[table] = {n: values.copy() for n, values in getattr(track, table).items()}
        for name, values in changes[table].items():
            values[rows] = figures.get(name, np.nan)
    return replace(track, **changes)
