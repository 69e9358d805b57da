"""Directions of a generator's latent space: what to add to a code so that one attribute changes.

Files: Reenact's own (`NAME.directions`, `core.base.container` of format "reenact.directions": one
array per direction, and a table of their effects), and published ones: InterFaceGAN's .npy and the
.pt of PTI, e4e and STIT. No pickle is ever executed.

Directions are found without labels: pictures are drawn, and the landmark network measures them
(`core.face.measures`). The regression of w on these measures gives, for each of them, the mean
change of w when it rises and the others stay. In a generator of many people the thumbnails are
regressed on as well, which preserves complexion and backdrop. Then the real effects of the
directions are measured, and the directions are mixed so that each moves its own measure by one unit
and, on average, no other.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from core.base import container
from core.base.errors import ReenactError, reading
from core.base.files import file_size
from core.base.progress import Progress, Report
from core.base.text import printable
from core.face.landmarks import detect_landmarks
from core.face.measures import MEASURES, measure
from core.generator import Generator
from core.generator.storage import generator_digest
from core.generator.unpickling import Array, StoredTensor, UnreadableCheckpointError, read_pickle
from core.media.contact_sheet import contact_sheet
from core.media.contents import content_of
from core.media.write import to_bytes
from core.personalize.character import Character
from core.solve.settings import MAX_RESOLUTION
from core.synthetic.base import base_generator

FORMAT = "reenact.directions"
VERSION = 1
SUFFIX = ".directions"
FOREIGN = (".npy", ".pt", ".pth")
MAX_ENTRIES = 1000  # of a foreign file
MAX_DEPTH = 4  # tables within tables
MAX_NAME = 100  # characters
MAX_BYTES = 8 << 20  # of a foreign file; the largest known has 300 kB, generators have far more

TRUNCATION = 0.7  # psi of pictures drawn from a generator's z
REACH = 1.25  # size of the region that codes of P are drawn from, in sizes of the anchors' hull
# In most pictures both eyes shut together, so one lid is composed of both lids and their
# difference.
ONE_LID = {"open_r": -1.0, "open_l": 1.0}
FITTED = tuple(name for name in MEASURES if name not in ONE_LID)
AMOUNTS = (-2.0, -1.0, 0.0, 1.0, 2.0)  # in sheets, and when effects are checked

_MIN_SINGULAR = 0.05  # share of the largest singular value below which effects are not inverted
_THUMBNAIL_SIDE = 8  # px
_MAX_WINK = 2.0  # units of wink that one lid may be composed of
_THUMBNAIL_COMPONENTS = 8  # principal components of thumbnails that are held constant
_MIXING_ROUNDS = 2
_MIN_UNIT = 1e-4  # standard deviation below which a measure counts as constant
_MIN_SLOPE = 0.1  # units by which a direction must move its own measure before it is scaled to 1
_NPY = b"\x93NUMPY"
_KNOWN = (
    "a file of Reenact's own, an .npy of one direction (floats, [512] or [layers, 512]), or the "
    ".pt of PTI, e4e or STIT"
)
_STYLEGAN1 = re.compile(r"(stylegan|pggan)_")  # names of InterFaceGAN's published boundaries


class NotDirectionsError(ReenactError):
    """The file holds no usable directions."""


class NothingFoundError(ReenactError):
    """The generator's pictures do not vary in any measure."""


class DirectionsNotWrittenError(ReenactError):
    """The directions could not be written; an older file is untouched."""


@dataclass(frozen=True, eq=False)
class Direction:
    """A change of a code, at an amount of 1."""

    vector: np.ndarray  # [512] float32 for all layers of w+, or [L, 512]
    # Mean change of each measure at an amount of 1, in its unit, and the standard deviation of that
    # change over pictures. Empty: unknown.
    moves: Mapping[str, float] = field(default_factory=dict)
    std: Mapping[str, float] = field(default_factory=dict)
    # R^2 of the own measure's change against the amount, over amounts of -2 to 2. None: unknown.
    fit: float | None = None


@dataclass(frozen=True, eq=False)
class Directions:
    """The directions of one generator, by name."""

    directions: Mapping[str, Direction]
    owner: str = ""  # hash of the character or of the generator's tensors; empty: unknown
    base: str = ""  # hash of an owning character's base generator
    units: Mapping[str, float] = field(default_factory=dict)  # measure -> its unit
    source: str = ""  # name of the character or generator they were found in
    notes: tuple[str, ...] = ()  # sentences for the user
    hash: str = ""  # of the file they were read from


# -- files ---------------------------------------------------------------------------------------


def save_directions(path: str | Path, directions: Directions) -> None:
    """Writes directions, atomically.

    Raises:
        ValueError: vectors that can't be directions.
        DirectionsNotWrittenError: the file system's reason; an older file at `path` is untouched.
    """
    arrays = {
        name: np.ascontiguousarray(d.vector, np.float32)
        for name, d in directions.directions.items()
    }
    for name, vector in arrays.items():
        _check(vector, name)
    table = {
        name: {"moves": dict(d.moves), "spread": dict(d.std), "fit": d.fit}
        for name, d in directions.directions.items()
    }
    entries = {
        "table": json.dumps(table, allow_nan=False),
        "units": json.dumps(dict(directions.units), allow_nan=False),
        "notes": json.dumps(list(directions.notes)),
        "owner": directions.owner,
        "base": directions.base,
        "source": directions.source,
    }
    try:
        container.write(path, FORMAT, VERSION, entries, arrays)
    except OSError as error:
        raise DirectionsNotWrittenError(
            f"{path} could not be written: {error.strerror or error}. Check the free space and "
            "your rights in that folder, and run again."
        ) from error


def load_directions(path: str | Path) -> Directions:
    """Reads directions of any of the known kinds, recognised by their content.

    A foreign file holds one direction, named like the file, or a dict of several. Shapes (512,),
    (1, 512), (L, 512) and (1, L, 512) are accepted; of equal layers only one is kept, so that the
    direction fits generators of any depth.

    Raises:
        NotDirectionsError: no such file, another kind of file, a damaged one, or vectors that
            can't be directions.
    """
    path = Path(path)
    try:
        size = file_size(path)
        with path.open("rb") as file:
            head = file.read(16)
    except OSError as error:
        raise NotDirectionsError(f"{path} can't be read: {error.strerror or error}.") from error
    with reading(path, NotDirectionsError):
        return _read_own(path) if head[8:9] == b"{" else _read_foreign(path, head, size)


def _read_foreign(path: Path, head: bytes, size: int) -> Directions:
    if size > MAX_BYTES:
        raise NotDirectionsError(
            f"{path} has {size >> 20} MiB, far more than directions have. Choose {_KNOWN}."
        )
    notes = []
    name = printable(path.stem)
    try:
        if head[:6] == _NPY:
            raw: dict[str, np.ndarray] = {name: _read_npy(path)}
        else:
            raw = _unpickled(read_pickle(path), name)
        found = {name: Direction(_to_vector(array, name)) for name, array in raw.items()}
    except (ValueError, TypeError, EOFError, OSError) as error:
        raise NotDirectionsError(
            f"{path} holds no directions: {printable(str(error))} Choose {_KNOWN}."
        ) from error
    except UnreadableCheckpointError as error:
        if path.suffix.lower() in (".npy", ".npz"):
            problem = f"{path} holds no directions: {_why_not_npy(path)} Choose"
        else:  # it names the file
            problem = f"{error} As directions, choose"
        raise NotDirectionsError(f"{problem} {_KNOWN}.") from error
    if not found:
        raise NotDirectionsError(f"{path} holds no directions: it has no arrays of numbers.")
    if _STYLEGAN1.match(path.name):
        notes.append(
            f"{path.name} is named like InterFaceGAN's boundaries, which belong to StyleGAN1 and "
            "PGGAN: in a StyleGAN2 they mean nothing. Find your own, or use those of PTI or e4e."
        )
    elif any(a.dtype == np.float64 and a.shape == (1, 512) for a in raw.values()):
        notes.append(
            f"{path.name} has the form of InterFaceGAN's published boundaries, which belong to "
            "StyleGAN1; only if it was made for your StyleGAN2 does it mean anything."
        )
    return Directions(found, source=path.name, notes=tuple(notes))


def _read_npy(path: Path) -> np.ndarray:
    """Reads an array that `numpy.save` wrote; what the header claims is checked before it is read.

    Raises:
        ValueError: it is damaged, or holds Python objects.
    """
    form = np.lib.format
    with path.open("rb") as file:
        try:
            version = form.read_magic(file)
            header = form.read_array_header_1_0 if version == (1, 0) else form.read_array_header_2_0
            shape, by_columns, dtype = header(file)
        except Exception as error:  # numpy evaluates the header, which may raise anything
            raise ValueError("its header is damaged. Copy or download it again.") from error
        content = file.read()
    if dtype.hasobject:
        raise ValueError("it holds Python objects, which are never run. Save the numbers alone.")
    needed = math.prod(shape) * dtype.itemsize
    if needed < 1 or min(shape, default=1) < 0:
        raise ValueError("it is empty.")
    if needed > len(content):
        raise ValueError(
            f"it has {len(content)} of {needed} bytes of numbers: it is cut off, or damaged. Copy "
            "or download it again."
        )
    array = np.frombuffer(content[:needed], dtype)
    return array.reshape(shape, order="F" if by_columns else "C")


def _why_not_npy(path: Path) -> str:
    """Returns what a file is that is called .npy or .npz, and is no array."""
    content = content_of(path)
    if content is not None and content.name == "a ZIP archive":
        return (
            "it is an archive of arrays, as numpy.savez writes. Save each direction by numpy.save, "
            "as an .npy of its own."
        )
    found = "damaged, or no array of NumPy" if content is None else f"{content.name}, no array"
    return f"it is {found}. Copy or download it again."


def is_foreign(path: Path) -> bool:
    """Returns whether suffix and size are those of other tools' directions; a .pt may hold more."""
    return path.suffix in FOREIGN and path.is_file() and path.stat().st_size <= MAX_BYTES


def merge_directions(files: Iterable[Directions]) -> dict[str, Direction]:
    """Merges the directions of several files.

    Raises:
        NotDirectionsError: two different ones have the same name.
    """
    found: dict[str, Direction] = {}
    for file in files:
        for name, direction in file.directions.items():
            other = found.setdefault(name, direction)
            if not np.array_equal(other.vector, direction.vector):
                raise NotDirectionsError(
                    f"There are two directions called {name}. Give one of their files alone, or "
                    "rename it."
                )
    return found


def compatibility_notes(directions: Directions, character: Character) -> list[str]:
    """Returns sentences on why directions may not suit a character; none for its own."""
    notes = list(directions.notes)
    base = character.info.base_hash
    source = directions.source or "These directions"
    if directions.owner == "" and base == generator_digest(base_generator()):
        notes.append(
            f"{source}: directions of another generator, and {character.info.name} was made from "
            "the embedded one: there they mean nothing. Find its own: reenact directions."
        )
    elif directions.owner not in ("", character.hash, base) and directions.base != base:
        notes.append(
            f"{source}: found in another generator than {character.info.name} comes from, so they "
            "mean other things here, if any. Find its own: reenact directions."
        )
    return notes


def _read_own(path: Path) -> Directions:
    """Reads a file of Reenact's own format."""
    header, arrays = container.read(path, FORMAT, VERSION, NotDirectionsError, "file of directions")
    try:
        table = container.parse(header["table"])
        for name, vector in arrays.items():
            _check(vector, printable(name))
        found = {printable(name): _from_table(arrays[name], entry) for name, entry in table.items()}
        return Directions(
            found,
            header["owner"],
            header["base"],
            container.parse(header["units"]),
            header["source"],
            tuple(container.parse(header["notes"])),
            header["sha256"],
        )
    except (KeyError, TypeError, ValueError) as error:
        raise NotDirectionsError(f"{path} is damaged: {error}. Copy or make it again.") from error


def _from_table(vector: np.ndarray, entry: Mapping[str, Any]) -> Direction:
    """Returns a direction from its entry in a file's table, where `std` is called spread."""
    return Direction(vector, **{"std" if k == "spread" else k: v for k, v in entry.items()})


def _unpickled(content: object, name: str) -> dict[str, np.ndarray]:
    """Returns the arrays of a pickle by name.

    Raises:
        ValueError: there are more than any file of directions has, or the same ones over and over.
    """
    found: dict[str, np.ndarray] = {}
    entries_left, bytes_left = MAX_ENTRIES, MAX_BYTES

    def visit(value: object, name: str, depth: int) -> None:
        nonlocal entries_left, bytes_left
        entries_left -= len(value) if isinstance(value, dict) else 1
        if isinstance(value, StoredTensor) or (isinstance(value, Array) and value.dtype):
            bytes_left -= 8 * math.prod(value.shape)
        if depth > MAX_DEPTH or entries_left < 0 or bytes_left < 0:
            raise ValueError("it holds far more than directions.")
        match value:
            case StoredTensor():
                found[name] = value.load().float().numpy()
            case Array(dtype=np.dtype()):
                found[name] = value.load()
            case dict():
                for key, part in value.items():
                    if isinstance(key, str):
                        visit(part, printable(key[:MAX_NAME]), depth + 1)

    visit(content, name, 0)
    return found


def _to_vector(array: np.ndarray, name: str) -> np.ndarray:
    """Converts a foreign array to a direction, `[512]` or `[L, 512]` float32."""
    if array.dtype.kind != "f":
        raise ValueError(f"{name} is of type {array.dtype}, not of floats.")
    vector = array.reshape(array.shape[1:]) if array.ndim > 1 and len(array) == 1 else array
    if vector.ndim == 2 and len(vector) and (vector == vector[0]).all():
        vector = vector[0]
    with np.errstate(over="ignore"):
        vector = np.ascontiguousarray(vector, np.float32)
    _check(vector, name)
    return vector


def _check(vector: np.ndarray, name: str) -> None:
    """Raises ValueError if a vector can't be a direction."""
    layers = vector.shape[0] if vector.ndim == 2 else 1
    if vector.dtype != np.float32 or vector.ndim not in (1, 2) or not 1 <= layers <= 26:
        raise ValueError(f"{name} is {vector.dtype} {[*vector.shape]}, not [512] or [L, 512].")
    if vector.shape[-1:] < (2,):
        raise ValueError(f"{name} is a single number, not [512] or [L, 512].")
    if not np.isfinite(vector).all():
        raise ValueError(f"{name} has values that are NaN, infinite, or too large.")
    if not vector.any():
        raise ValueError(f"{name} is 0 throughout.")


# -- finding -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class DirectionSettings:
    """How directions are found."""

    samples: int = 768  # pictures they are fitted to
    mixed: int = 12  # codes on which their effects are measured to mix them
    checked: int = 16  # other codes on which the result is measured
    seed: int = 0
    batch: int = 8  # pictures drawn at once


def find_in_character(
    character: Character, report: Report, settings: DirectionSettings | None = None
) -> Directions:
    """Finds the directions of a character, one for each of `MEASURES` that its pictures vary in.

    One unit is the standard deviation of the measure over the anchors' pictures, so an amount of 1
    is a typical step in this person's scan. Codes are drawn from P.

    Args:
        character: its generator on the device that is used.
        report: receives progress.
        settings: by default `DirectionSettings()`.

    Raises:
        NothingFoundError: the pictures do not vary in any measure.
    """
    settings = settings or DirectionSettings()
    anchors = character.anchors.to(_device(character.generator))

    def draw(count: int, random: torch.Generator) -> Tensor:
        return sample_p(anchors, count, random)

    return _find(
        character.generator,
        draw,
        anchors,
        report,
        settings,
        owner=character.hash,
        base=character.info.base_hash,
        source=character.info.name,
    )


def find_in_generator(
    generator: Generator,
    report: Report,
    settings: DirectionSettings | None = None,
    source: str = "",
) -> Directions:
    """Finds the directions of a generator, which all characters made from it can use.

    One unit is the standard deviation of the measure over its pictures at a truncation of 0.7.

    Args:
        generator: on the device that is used.
        report: receives progress.
        settings: by default `DirectionSettings()`.
        source: its name for people.

    Raises:
        NothingFoundError: the pictures do not vary in any measure.
    """
    width = generator.architecture.z_dim

    def draw(count: int, random: torch.Generator) -> Tensor:
        z = torch.randn(count, width, generator=random).to(_device(generator))
        with torch.no_grad():
            return generator.mapping(z, TRUNCATION)

    return _find(
        generator,
        draw,
        None,
        report,
        settings or DirectionSettings(),
        owner=generator_digest(generator),
        source=source,
    )


def sample_p(anchors: Tensor, count: int, random: torch.Generator) -> Tensor:
    """Draws codes of P.

    As in MyStyle each code mixes three anchors, by uniform random weights that are normalised.
    Codes are then moved away from the anchors' mean by up to the factor `REACH`, beyond the hull.

    Args:
        anchors: `[N, 512]`.
        count: number of codes.
        random: a generator on the CPU.

    Returns:
        `[count, 512]`.
    """
    shares = torch.rand(count, len(anchors), generator=random)
    mixed = min(3, len(anchors))
    chosen = torch.rand(shares.shape, generator=random).topk(mixed, 1).indices
    weights = torch.zeros_like(shares).scatter(1, chosen, shares.gather(1, chosen))
    weights /= weights.sum(1, keepdim=True)
    reach = 1 + (REACH - 1) * torch.rand(count, 1, generator=random)
    weights = 1 / len(anchors) + reach * (weights - 1 / len(anchors))
    return weights.to(anchors) @ anchors


def _find(
    generator: Generator,
    draw: Callable[[int, torch.Generator], Tensor],
    anchors: Tensor | None,
    report: Report,
    settings: DirectionSettings,
    **belongs: str,
) -> Directions:
    """Finds directions on codes `[count, 512]` that `draw` returns, after the anchors if given."""
    from sklearn.metrics import r2_score

    random = torch.Generator().manual_seed(settings.seed)
    codes = draw(settings.samples, random)
    if anchors is not None:
        codes = torch.cat([anchors, codes])
    with report.stage("drawing") as progress:
        measured, thumbnails = _measure_codes(generator, codes, settings.batch, progress)
    units = measured[: len(codes) if anchors is None else len(anchors)].std(0)
    # One person's pictures differ only in expression and pose.
    held = thumbnails if anchors is None else None
    found = _regress(codes.cpu().double().numpy(), measured, units, held)
    with report.stage("mixing") as progress:
        found = _mix_directions(
            generator, draw(settings.mixed, random), found, units, settings.batch, progress
        )
    if not found:
        raise NothingFoundError(
            "These pictures differ in nothing that the landmark network sees. Choose a generator "
            "of faces, or a character whose scan shows more."
        )
    _add_lids(found, units)
    notes = [
        f"no direction for {name}: these pictures show too little of it"
        for name in MEASURES
        if name not in found
    ]
    steps = [a for a in AMOUNTS if a]
    with report.stage("checking") as progress:
        fresh = draw(settings.checked, random)
        moved = _effects(
            generator, fresh, [*found.values()], steps, units, settings.batch, progress
        )
    result = {}
    for (name, vector), change in zip(found.items(), moved, strict=True):
        at_one = (change[steps.index(1)] - change[steps.index(-1)]) / 2
        own = change[..., MEASURES.index(name)]
        amounts = np.broadcast_to(np.array(steps)[:, None], own.shape)
        result[name] = Direction(
            vector.astype(np.float32),
            _by_measure(at_one.mean(0)),
            _by_measure(at_one.std(0)),
            round(float(r2_score(amounts.ravel(), own.ravel())), 3),
        )
    return Directions(result, units=_by_measure(units), notes=tuple(notes), **belongs)


def _regress(
    codes: np.ndarray, measured: np.ndarray, units: np.ndarray, thumbnails: np.ndarray | None
) -> dict[str, np.ndarray]:
    """Regresses codes on measures.

    Args:
        codes: `[M, 512]`.
        measured: `[M, K]`.
        units: `[K]`.
        thumbnails: `[M, P]`, to be held constant; None holds nothing.

    Returns:
        By the name of each measure that varies, the mean change `[512]` of codes when it rises by
        its unit and the others stay.
    """
    from sklearn.decomposition import PCA
    from sklearn.linear_model import LinearRegression

    names = [n for n in FITTED if units[MEASURES.index(n)] > _MIN_UNIT]
    if not names:
        return {}
    columns = [MEASURES.index(n) for n in names]
    causes = (measured - measured.mean(0))[:, columns] / units[columns]
    if thumbnails is not None:
        few = PCA(
            min(_THUMBNAIL_COMPONENTS, len(codes)), whiten=True, random_state=0
        ).fit_transform(thumbnails)
        causes = np.hstack([causes, few])
    changes = LinearRegression().fit(causes, codes).coef_.T
    return dict(zip(names, changes, strict=False))


def _mix_directions(
    generator: Generator,
    codes: Tensor,
    found: dict[str, np.ndarray],
    units: np.ndarray,
    batch: int,
    progress: Progress,
) -> dict[str, np.ndarray]:
    """Mixes directions so that each moves its own measure by one unit and no other.

    Those that hardly move their own measure are dropped.
    """
    for number in range(_MIXING_ROUNDS if found else 0):

        def round_progress(done: float, total: float, before: int = number) -> None:
            progress(before * total + done, _MIXING_ROUNDS * total)

        moved = _effects(
            generator, codes, [*found.values()], (-1.0, 1.0), units, batch, round_progress
        )
        slopes = (moved[:, 1] - moved[:, 0]).mean(1) / 2
        able = [i for i, name in enumerate(found) if slopes[i, MEASURES.index(name)] > _MIN_SLOPE]
        if not able:
            return {}
        names = [[*found][i] for i in able]
        slopes = slopes[np.ix_(able, [MEASURES.index(name) for name in names])]
        vectors = np.reshape([found[name] for name in names], (len(names), -1))
        # A scan may vary in fewer ways than there are measures: then some can't be separated.
        mixed = np.linalg.pinv(slopes, rcond=_MIN_SINGULAR) @ vectors
        found = dict(zip(names, mixed, strict=True))
    return found


def _add_lids(found: dict[str, np.ndarray], units: np.ndarray) -> None:
    """Adds each single lid, where pictures wink enough: half of both lids, and the difference."""
    unit = dict(zip(MEASURES, units, strict=True))
    for name, side in ONE_LID.items():
        if found.keys() >= {"lids", "wink"} and unit[name] < _MAX_WINK * unit["wink"]:
            both, difference = unit[name] / 2 / unit["lids"], unit[name] / unit["wink"]
            found[name] = both * found["lids"] + side * difference * found["wink"]


def _by_measure(values: np.ndarray) -> dict[str, float]:
    """Names values `[K]` by their measures."""
    return {name: round(float(v), 5) for name, v in zip(MEASURES, values, strict=True)}


def _effects(
    generator: Generator,
    codes: Tensor,
    vectors: Sequence[np.ndarray],
    steps: Sequence[float],
    units: np.ndarray,
    batch: int,
    progress: Progress,
) -> np.ndarray:
    """Returns how much measures change when codes are moved, in units: `[D, steps, codes, K]`."""
    stacked = torch.from_numpy(np.stack(vectors)).to(codes)
    moves = torch.einsum("dw,s->dsw", stacked, codes.new_tensor(steps))
    moved = (codes + moves[:, :, None]).flatten(0, 2)
    measured, _ = _measure_codes(generator, torch.cat([codes, moved]), batch, progress)
    before, after = measured[: len(codes)], measured[len(codes) :]
    change = after.reshape(len(vectors), len(steps), len(codes), -1) - before
    return change / units.clip(_MIN_UNIT)


def _measure_codes(
    generator: Generator, codes: Tensor, batch: int, progress: Progress
) -> tuple[np.ndarray, np.ndarray]:
    """Draws codes `[B, 512]`; returns their `MEASURES` `[B, K]` and thumbnails `[B, 3 * 8 * 8]`."""
    size = min(MAX_RESOLUTION, generator.architecture.resolution)
    landmarks, thumbnails = [], []
    for part in codes.split(batch):
        with torch.no_grad():
            pictures = generator.synthesis(part, stop_at=size).clamp(-1, 1)
            landmarks.append(detect_landmarks(pictures).landmarks.cpu())
        thumbnails.append(F.adaptive_avg_pool2d(pictures, _THUMBNAIL_SIDE).flatten(1).cpu())
        progress(sum(map(len, landmarks)), len(codes))
    measured = measure(torch.cat(landmarks).numpy())
    return np.stack([measured[name] for name in MEASURES], 1), torch.cat(thumbnails).numpy()


def _device(generator: Generator) -> torch.device:
    return next(generator.parameters()).device


# -- sheet and table -----------------------------------------------------------------------------


def sheet(
    generator: Generator, code: Tensor, directions: Directions, tile: int = 128
) -> np.ndarray:
    """Draws every direction at amounts of -2 to 2, two directions per row.

    Args:
        generator: the directions' own.
        code: `[512]` or `[L, 512]`, the picture to change.
        directions: what is drawn.
        tile: side of a picture, px.

    Returns:
        `[H, W, 3]` uint8.
    """
    layers = generator.architecture.num_ws
    tiles, labels = [], []
    for name, direction in directions.directions.items():
        vector = torch.from_numpy(direction.vector).to(code)
        codes = torch.stack([(code + a * vector).expand(layers, -1) for a in AMOUNTS])
        with torch.no_grad():
            pictures = generator.synthesis(codes).clamp(-1, 1) / 2 + 0.5
        for amount, picture in zip(AMOUNTS, pictures.permute(0, 2, 3, 1).cpu(), strict=True):
            small = cv2.resize(picture.numpy(), (tile, tile), interpolation=cv2.INTER_AREA)
            tiles.append(to_bytes(small))
            labels.append(f"{name} {amount:+g}" if amount else name)
    return contact_sheet(tiles, labels, 2 * len(AMOUNTS))


def facts(directions: Directions) -> dict[str, Any]:
    """Returns directions and their effects as plain JSON values."""
    return {
        "owner": directions.owner,
        "source": directions.source,
        "units": dict(directions.units),
        "notes": list(directions.notes),
        "directions": {
            name: {
                "shape": [*d.vector.shape],
                "norm": round(float(np.linalg.norm(np.atleast_2d(d.vector), axis=1).mean()), 3),
                "fit": d.fit,
                "moves": dict(d.moves),
                "spread": dict(d.std),
            }
            for name, d in directions.directions.items()
        },
    }


def table(facts: Mapping[str, Any]) -> str:
    """Formats the effects of an amount of 1, in units of each measure, with a row per direction.

    Args:
        facts: from `facts`.
    """
    lines = []
    found = facts["directions"]
    if facts["units"]:
        lines.append(f"{'+1 of':8s}{'R^2':>6s}" + "".join(f"{name:>8s}" for name in MEASURES))
        lines.append(f"{'(unit)':14s}" + "".join(f"{facts['units'][n]:8.3g}" for n in MEASURES))
    for name, d in found.items():
        if d["moves"]:
            moved = "".join(f"{d['moves'][n]:8.2f}" for n in MEASURES)
            lines.append(f"{name:8s}{d['fit']:6.2f}{moved}")
        else:
            lines.append(f"{name:24s} {d['shape']}, norm {d['norm']:g}")
    return "\n".join(lines)
