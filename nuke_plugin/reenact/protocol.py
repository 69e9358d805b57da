"""The wire format between Reenact's clients and its server, specified in `docs/protocol.md`.

A message is one ZeroMQ frame of JSON, the header; `upload` and the answer to `download` have a
second one, the chunk. Only the standard library is used, since Nuke imports this (Python 3.9).
"""

import dataclasses
import functools
import hashlib
import json
import math
import re
import typing
from dataclasses import dataclass, field
from typing import Any, Callable, Dict, List, Optional, Tuple, Type, TypeVar, Union

VERSION = 1
CHUNK = 1 << 20  # bytes of a chunk; only the last of a file is smaller
CREDIT = 16  # unanswered chunk requests at most, per connection
MAX_HEADER = 1 << 20  # bytes
HEADER = {"reenact", "type", "id", "body"}  # its fields
MAX_TEXT = 4096  # characters of any text in a header
MAX_ITEMS = 10_000  # of any list in a request
MAX_DIRECTIONS = 16  # files of an edit
MAX_MOVES = 256  # of an edit

# Values of fields that any kind of job calls so: words, and numbers from 0.
CHOICES = {
    "preset": ("default", "paper"),
    "layers": ("all", "basic"),
    "edge": ("continue", "stop", "project"),
}
GREATEST = {"match": 1, "grain": 1, "motion_blur": 720}
MAX_LIMIT = 1e6  # of a measure

HASH = re.compile(r"[0-9a-f]{64}")
REQUEST_ID = re.compile(r"[0-9A-Za-z_-]{1,64}")

# Suffixes of the files of a clip: of stills and of movies.
STILLS = (".exr", ".dpx", ".cin", ".png", ".tif", ".tiff", ".jpg", ".jpeg", ".hdr", ".tga")
_CONTAINERS = (
    ".mov",
    ".mp4",
    ".m4v",
    ".3gp",
    ".mkv",
    ".webm",
    ".avi",
    ".mxf",
    ".gif",
    ".wmv",
    ".flv",
)
_BROADCAST = (".mts", ".m2ts", ".ts", ".mpg", ".mpeg")
MOVIES = _CONTAINERS + _BROADCAST

# A job waits for files, then for its turn; from every other state it can be deleted.
STATES = ("waiting", "queued", "running", "paused", "done", "failed", "cancelled")
FINISHED = ("done", "failed", "cancelled")

# Kinds of jobs that can be stopped early and kept, and the stage in which they train.
TRAINING = {"personalize": "tuning", "stylize": "stylizing"}
PICTURE = "progress.png"  # among an unfinished job's files: shows the work while it goes on


class ProtocolError(ValueError):
    """A message that the protocol doesn't allow.

    Args:
        code: one word for programs (`docs/protocol.md`).
        message: a sentence for the artist.
        detail: technical details for a TD.
        id: the request's id, if it could be read.
    """

    def __init__(self, code: str, message: str, detail: str = "", id: str = "") -> None:
        super().__init__(message)
        self.code, self.message, self.detail, self.id = code, message, detail, id


# -- files, clips and tasks -----------------------------------------------------------------------


@dataclass(frozen=True)
class File:
    """A file, identified by its content or by a path that the server may read."""

    hash: str = ""  # BLAKE2b-256, 64 hexadecimal digits
    size: int = 0  # bytes
    path: str = ""  # instead of both: under a prefix that the server's owner allowed


@dataclass(frozen=True)
class Clip:
    """A clip: frames, one movie, or a pattern under a prefix that the server's owner allowed."""

    suffix: str = ""  # of its files, with the dot
    numbers: List[int] = field(default_factory=list)  # of the frames; empty for a movie
    files: List[File] = field(default_factory=list)  # one per number, or the movie
    path: str = ""  # instead of suffix, numbers and files
    frames: str = ""  # the range to use of a movie or a pattern: "1-50"
    colour_space: Optional[str] = None  # None: the default for its suffix
    config: str = ""  # its OCIO config: "ocio://NAME", or what people call `config_file`
    config_file: Optional[File] = None  # the config itself
    name: str = ""  # for people; never used as a path


@dataclass(frozen=True)
class Personalize:
    """Makes a character from a self-scan, or adds detail to one. Files: `character`,
    `selection.png`, `reconstruction.png`; with detail `detail.png`."""

    scan: Clip
    name: str
    who: str  # the person, who has agreed to be scanned
    scope: str = ""  # what they have agreed to
    count: int = 250
    steps: int = 2000
    refine: Optional[int] = None
    metric: Optional[str] = None
    base: Optional[File] = None
    encoder: Optional[File] = None
    at: Optional[List[float]] = None  # x, y of the face, in plate px; None: the largest face
    batch: int = 8
    mask: bool = True
    resolution: Optional[int] = None  # px of the delivered pictures; None: what the scan supports
    detail_steps: int = 800
    character: Optional[File] = None  # made of this scan: it is given detail, and nothing else is


@dataclass(frozen=True)
class Solve:
    """Solves a driving clip. File: `track.latents`."""

    plate: Clip
    character: File
    previous: Optional[File] = None  # a track in which the plate's frames are solved again
    preset: str = "default"
    neutral: str = ""  # "auto", "off", "DRIVING:SCAN"; empty: the preset's
    steps: Optional[int] = None
    at: Optional[List[float]] = None
    batch: int = 8


@dataclass(frozen=True)
class Render:
    """Renders a track. Files: `frame` with its number, `preview.mp4`, `sheet.png`."""

    track: File
    character: File
    plate: Optional[Clip] = None  # None: aligned crops
    movie: bool = False
    sheet: bool = False
    truth: Optional[Clip] = None
    name: str = ""  # the track's, for the headers of the frames
    colour_space: Optional[str] = None  # of the frames; None: scene-linear
    batch: int = 8
    layers: str = "all"  # or "basic": beside RGBA only the uncomposited render
    match: float = 0.0  # 0..1, amount of the colour match to the plate's skin
    grain: float = 0.0  # 0..1, amount of the plate's grain
    motion_blur: float = 0.0  # shutter angle, degrees
    style: Optional[File] = None  # a style of the character, or a fine-tuned checkpoint
    style_amount: str = "1"  # keyframes, 0 to 1
    style_from: Optional[int] = None  # resolution of the first block that takes the style
    style_to: Optional[int] = None  # resolution of the last one
    sibling: bool = False  # accepts a style of another character with the same base
    config: str = ""  # the OCIO config of the frames' colour space, without a plate; as in `Clip`
    config_file: Optional[File] = None
    layer_names: int = 1  # version of the layers' names: `matte.face`, or 2: `reenact_matte.face`


@dataclass(frozen=True)
class Move:
    """A movement along a direction."""

    direction: str  # its name in one of the files
    amount: str  # keyframes, in units of the direction
    rows: str = ""  # layers of w+: "coarse", "middle", "fine", "0-5", joined by "+"; empty: all


@dataclass(frozen=True)
class Frame:
    """Renders one frame of a track, without waiting for long jobs. File: `frame`, its number."""

    track: File
    character: File
    number: int
    plate: Optional[Clip] = None
    name: str = ""
    colour_space: Optional[str] = None
    style: Optional[File] = None  # this and the next four as in `Render`
    style_amount: str = "1"
    style_from: Optional[int] = None
    style_to: Optional[int] = None
    sibling: bool = False
    directions: List[File] = field(default_factory=list)
    moves: List[Move] = field(default_factory=list)  # an edit that is rendered, but not kept
    edge: str = "continue"
    limit: float = 0.02
    config: str = ""  # this and the next one as in `Render`
    config_file: Optional[File] = None
    layer_names: int = 1  # as in `Render`


@dataclass(frozen=True)
class Repair:
    """Repairs parts of a track. File: `track.latents`."""

    track: File
    repairs: List[Dict[str, Any]]  # as in `core/edit/repair.py`
    plate: Optional[Clip] = None  # needed, like the character, where frames are solved
    character: Optional[File] = None
    batch: int = 8


@dataclass(frozen=True)
class Qc:
    """Measures a track's frames. Files: `report.html`, `qc.csv`, `qc.json`, `repairs.json`."""

    track: File
    character: File
    plate: Clip
    rendered: Optional[Clip] = None  # frames of the track; None: they are rendered
    recogniser: Optional[File] = None  # ONNX, ArcFace's convention; None: a proxy
    face_model: Optional[File] = None  # ONNX, Deep3DFaceRecon's convention; None: proxies
    name: str = ""  # the track's, for the report's title
    limits: Dict[str, Any] = field(default_factory=dict)  # by measure; frames beyond are marked
    batch: int = 8


@dataclass(frozen=True)
class Stylize:
    """Trains a style of a character from one of `program`, `prompt` and `pictures`. Files: `style`
    and `preview.png`, repeatedly during training."""

    character: File
    name: str
    program: str = ""
    prompt: str = ""
    source: str = "a photo of a person"  # what the prompt is compared with
    pictures: Optional[Clip] = None  # stills of any sizes, or a movie
    clip: List[str] = field(default_factory=list)  # names of CLIP models
    adaptive: Optional[int] = None  # layers that are trained at a time, with CLIP; None: all
    steps: int = 300
    batch: int = 4


@dataclass(frozen=True)
class Edit:
    """Moves a track's latent codes along directions. File: `track.latents`."""

    track: File
    character: File
    directions: List[File]
    moves: List[Move]
    edge: str = "continue"  # at the boundary of P; or "stop", "project"
    limit: float = 0.02  # beta: how far P extends beyond the anchors' convex hull


@dataclass(frozen=True)
class FitDirections:
    """Fits directions. Files: `directions`, `sheet.png`."""

    character: Optional[File] = None
    base: Optional[File] = None  # a generator, without a character; neither: the embedded one
    samples: int = 768
    seed: int = 0
    batch: int = 8


Task = Union[Personalize, Solve, Render, Frame, Repair, Qc, Stylize, Edit, FitDirections]
TASKS: Dict[str, Type[Any]] = {
    "personalize": Personalize,
    "solve": Solve,
    "render": Render,
    "frame": Frame,
    "repair": Repair,
    "qc": Qc,
    "stylize": Stylize,
    "edit": Edit,
    "fit_directions": FitDirections,
}


def kind_of(task: Task) -> str:
    """Returns the kind of job that a task is of."""
    return next(kind for kind, task_type in TASKS.items() if task_type is type(task))


# -- requests and their answers ------------------------------------------------------------------


@dataclass(frozen=True)
class Hello:
    client: str  # name and version, for the log
    versions: List[int]  # versions of the protocol that the client supports


@dataclass(frozen=True)
class Ping:
    pass


@dataclass(frozen=True)
class Bye:
    """Ends the connection; there is no answer."""


@dataclass(frozen=True)
class Submit:
    kind: str
    task: Dict[str, Any]  # of `TASKS[kind]`


@dataclass(frozen=True)
class Status:
    job: str


@dataclass(frozen=True)
class List_:
    pass


@dataclass(frozen=True)
class Events:
    job: str
    after: int = 0  # number of the last event that the client has
    wait: float = 0.0  # seconds to wait for an event, at most 30


@dataclass(frozen=True)
class Cancel:
    job: str


@dataclass(frozen=True)
class Pause:
    job: str


@dataclass(frozen=True)
class Resume:
    job: str


@dataclass(frozen=True)
class Finish:
    """Stops a training early, and keeps what it has as a whole result."""

    job: str


@dataclass(frozen=True)
class Figures:
    """Asks for the history of a job's figures."""

    job: str


@dataclass(frozen=True)
class Delete:
    job: str


@dataclass(frozen=True)
class Held:
    """Asks how many bytes the server has of each file."""

    hashes: List[str]


@dataclass(frozen=True)
class Upload:
    hash: str
    size: int
    offset: int


@dataclass(frozen=True)
class Download:
    """Requests one chunk."""

    hash: str
    offset: int


@dataclass(frozen=True)
class Verify:
    """Has the server check a file's hash, and drop the file if it is damaged."""

    hash: str


@dataclass(frozen=True)
class Health:
    pass


REQUESTS: Dict[str, Type[Any]] = {
    "hello": Hello,
    "ping": Ping,
    "bye": Bye,
    "submit": Submit,
    "status": Status,
    "list": List_,
    "events": Events,
    "cancel": Cancel,
    "pause": Pause,
    "resume": Resume,
    "finish": Finish,
    "figures": Figures,
    "delete": Delete,
    "held": Held,
    "upload": Upload,
    "download": Download,
    "verify": Verify,
    "health": Health,
}
Request = Union[
    Hello,
    Ping,
    Bye,
    Submit,
    Status,
    List_,
    Events,
    Cancel,
    Pause,
    Resume,
    Finish,
    Figures,
    Delete,
    Held,
    Upload,
    Download,
    Verify,
    Health,
]
NAMES = {kind: name for name, kind in REQUESTS.items()}


def encode(request: Request, id: str) -> bytes:
    """Returns the header of a request."""
    body = dataclasses.asdict(request)
    return _dump({"reenact": VERSION, "type": NAMES[type(request)], "id": id, "body": body})


def encode_answer(id: str, body: Dict[str, Any]) -> bytes:
    """Returns the header of an answer."""
    return _dump({"reenact": VERSION, "type": "answer", "id": id, "body": body})


def encode_error(error: ProtocolError) -> bytes:
    """Returns the header of an error."""
    body = {"code": error.code, "message": error.message, "detail": error.detail}
    return _dump({"reenact": VERSION, "type": "error", "id": error.id, "body": body})


def decode(header: bytes) -> Tuple[str, Request]:
    """Decodes a request; returns its id and the request.

    Raises:
        ProtocolError: `version`, `too_large` or `malformed`.
    """
    kind, id, body = _open(header, "plugin", "server", strict=True)
    if not id:
        raise ProtocolError("malformed", _WRONG, "no valid id")
    if kind not in REQUESTS:
        raise ProtocolError("malformed", _WRONG, f"no request is called {kind[:40]!r}", id)
    try:
        return id, build(REQUESTS[kind], body)
    except ProtocolError as error:
        error.id = id
        raise


def decode_answer(header: bytes) -> Tuple[str, Union[Dict[str, Any], ProtocolError]]:
    """Decodes an answer; returns its id, and its body or the error that the server answered.

    The id is empty if the server could not read the request's.

    Raises:
        ProtocolError: `version`, `too_large` or `malformed`.
    """
    kind, id, body = _open(header, "server", "plugin")
    if kind == "answer":
        return id, body
    if kind != "error":
        raise ProtocolError("malformed", _WRONG, f"an answer of type {kind[:40]!r}", id)
    texts = [body.get(name) for name in ("code", "message", "detail")]
    if not all(isinstance(t, str) for t in texts):
        raise ProtocolError("malformed", _WRONG, "an error without code, message or detail", id)
    code, message, detail = typing.cast("List[str]", texts)
    return id, ProtocolError(code, message, detail, id)


def read_task(submit: Submit) -> Task:
    """Returns the task of a `submit`, checked.

    Raises:
        ProtocolError: `unknown_kind`, `malformed`, or `bad_value`.
    """
    if submit.kind not in TASKS:
        raise ProtocolError("unknown_kind", _WRONG, f"no kind of job is called {submit.kind!r}")
    task: Task = build(TASKS[submit.kind], submit.task)
    for name, part in parts(task):
        where = f"{submit.kind}.{name}"
        if isinstance(part, File):
            _check_file(part, where)
        else:
            _check_clip(part, where)
    sizes: Dict[str, int] = {}
    for file in _named(task):
        if sizes.setdefault(file.hash, file.size) != file.size:
            raise ProtocolError("bad_value", "A file has two sizes.", file.hash)
    for name in ("count", "steps", "refine", "samples", "batch", "adaptive"):
        value, least = getattr(task, name, None), 0 if name == "refine" else 1
        if value is not None and not least <= value <= 1_000_000:
            raise ProtocolError("bad_value", f"{name} must be {least} to 1000000, not {value}.")
    if isinstance(task, (Edit, Frame)):
        for name, most in (("directions", MAX_DIRECTIONS), ("moves", MAX_MOVES)):
            if len(getattr(task, name)) > most:
                raise ProtocolError("bad_value", f"An edit has {most} {name} at most.")
    at = getattr(task, "at", None)
    if at is not None and len(at) != 2:
        raise ProtocolError("bad_value", f"at must be x and y, not {len(at)} numbers.")
    return task


def check_values(task: Task) -> None:
    """Refuses values that a task can't have, where no file is needed to know.

    Raises:
        ProtocolError: `bad_value`.
    """
    for name, choices in CHOICES.items():
        value = getattr(task, name, None)
        if value is not None and value not in choices:
            listed = ", ".join(choices)
            raise ProtocolError("bad_value", f"{name} must be one of {listed}, not {value[:40]}.")
    for name, greatest in GREATEST.items():
        value = getattr(task, name, None)
        if value is not None and not 0 <= value <= greatest:
            raise ProtocolError("bad_value", f"{name} must be 0 to {greatest}, not {value:g}.")
    if isinstance(task, Render) and task.plate is None and (task.movie or task.sheet):
        raise ProtocolError("bad_value", "A movie or a sheet shows the plate: choose one.")
    for name, value in task.limits.items() if isinstance(task, Qc) else ():
        if type(value) not in (int, float) or not 0 <= value <= MAX_LIMIT:
            detail = f"The limit of {name[:40]} must be a number from 0, not {value!r:.40}."
            raise ProtocolError("bad_value", detail)


def parts(task: Task) -> List[Tuple[str, Union[File, Clip]]]:
    """Returns the files and clips of a task, with their fields' names: `plate`, `directions.0`,
    `plate.config_file`."""
    fields: List[Tuple[str, Any]] = []
    for f in dataclasses.fields(task):
        value = getattr(task, f.name)
        several = enumerate(value) if isinstance(value, list) else ()
        fields += [(f.name, value)] + [(f"{f.name}.{i}", one) for i, one in several]
        if isinstance(value, Clip):
            fields.append((f"{f.name}.config_file", value.config_file))
    return [(name, value) for name, value in fields if isinstance(value, (File, Clip))]


def files(task: Task) -> List[File]:
    """Returns the files that a task identifies by content, each once."""
    return list({file.hash: file for file in _named(task)}.values())


def _named(task: Task) -> List[File]:
    lists = [[p] if isinstance(p, File) else p.files for _, p in parts(task)]
    return [file for some in lists for file in some if file.hash]


def plain(value: Any) -> Any:
    """Returns a dataclass as JSON values, without fields that have their defaults.

    So a server that lacks a newer field refuses only tasks that need it.
    """
    if isinstance(value, list):
        return [plain(one) for one in value]
    if not dataclasses.is_dataclass(value):
        return value
    fields = ((f, getattr(value, f.name)) for f in dataclasses.fields(value))
    return {
        f.name: plain(given)
        for f, given in fields
        if given != (f.default_factory() if callable(f.default_factory) else f.default)
    }


def task_key(kind: str, task: Task) -> str:
    """Returns a hash of a task; tasks with the same hash have the same result."""
    plain = json.dumps([kind, dataclasses.asdict(task)], sort_keys=True)
    return hashlib.blake2b(plain.encode(), digest_size=32).hexdigest()


# -- JSON to dataclasses -------------------------------------------------------------------------

_WRONG = "The server was sent something that it can't read. Update the plugin or the server."
_NO_TEXT = re.compile("[\0\ud800-\udfff]")  # paths and databases can't hold these
T = TypeVar("T")


def _dump(value: Dict[str, Any]) -> bytes:
    return json.dumps(value, separators=(",", ":"), allow_nan=False).encode()


def _open(
    header: bytes, theirs: str, ours: str, strict: bool = False
) -> Tuple[str, str, Dict[str, Any]]:
    """Opens a header; returns its type, id and body.

    Args:
        header: the frame.
        theirs: what to update if the other side's version is older.
        ours: what to update if this side's version is older.
        strict: refuses fields that no header has.
    """
    if len(header) > MAX_HEADER:
        raise ProtocolError(
            "too_large", f"The request is too large: {len(header)} bytes, limit {MAX_HEADER}."
        )
    try:
        value = json.loads(header.decode(), parse_constant=_no_constant, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        raise ProtocolError("malformed", _WRONG, f"no JSON: {str(error)[:200]}") from None
    if not isinstance(value, dict):
        raise ProtocolError("malformed", _WRONG, "the header is no object")
    id = value.get("id")
    if not isinstance(id, str) or not REQUEST_ID.fullmatch(id):
        id = ""
    version, kind, body = value.get("reenact"), value.get("type"), value.get("body")
    if type(version) is not int or version != VERSION:
        newer = type(version) is int and version > VERSION
        older = ours if newer else theirs
        raise ProtocolError(
            "version",
            f"Plugin and server don't speak the same protocol. Update the {older}.",
            f"protocol {VERSION} here, {str(version)[:20]} there",
            id,
        )
    if not isinstance(kind, str) or not isinstance(body, dict):
        raise ProtocolError("malformed", _WRONG, "type or body is missing", id)
    if strict and (unknown := set(value) - HEADER):
        detail = f"the header has an unknown {sorted(unknown)[0][:40]!r}"
        raise ProtocolError("malformed", _WRONG, detail, id)
    return kind, id, body


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:20]} is too large a number")
    return value


@functools.lru_cache(maxsize=None)
def _hints(kind: Any) -> Dict[str, Any]:
    return typing.get_type_hints(kind)


@functools.lru_cache(maxsize=None)
def _shape(hint: Any) -> Tuple[Any, Tuple[Any, ...]]:
    return typing.get_origin(hint), typing.get_args(hint)


def build(kind: Type[T], value: Any, where: str = "") -> T:
    """Builds a dataclass from JSON values; checks each field against its declared type.

    Args:
        kind: the dataclass.
        value: the JSON value.
        where: names the value in errors.

    Raises:
        ProtocolError: `malformed`.
    """
    if not isinstance(value, dict):
        raise ProtocolError("malformed", _WRONG, f"{where or kind.__name__} is no object")
    hints = _hints(typing.cast(Any, kind))
    if unknown := set(value) - set(hints):
        raise ProtocolError("malformed", _WRONG, f"{where}: unknown {sorted(unknown)[0][:40]!r}")
    values = {name: _typed(hints[name], v, f"{where}.{name}") for name, v in value.items()}
    try:
        return kind(**values)
    except TypeError as error:
        raise ProtocolError("malformed", _WRONG, f"{where or kind.__name__}: {error}") from None


def _typed(hint: Any, value: Any, where: str) -> Any:
    origin, arguments = _shape(hint)
    if origin is Union:  # Optional
        return None if value is None else _typed(arguments[0], value, where)
    if origin is list and isinstance(value, list):
        if len(value) > MAX_ITEMS:
            raise ProtocolError("malformed", _WRONG, f"{where} has more than {MAX_ITEMS} items")
        texts = arguments[0] is str and set(map(type, value)) == {str}
        # Thousands of hashes are checked as one text: the server's loop waits for this.
        if texts and max(map(len, value)) <= MAX_TEXT and not _NO_TEXT.search("".join(value)):
            return value
        return [_typed(arguments[0], v, where) for v in value]
    if origin is dict and isinstance(value, dict):
        return value
    if dataclasses.is_dataclass(hint):
        return build(typing.cast("Type[Any]", hint), value, where)
    if hint is float and type(value) is int and abs(value) < 2**53:
        return float(value)
    if type(value) is hint:
        if hint is str and len(value) > MAX_TEXT:
            raise ProtocolError("malformed", _WRONG, f"{where} is longer than {MAX_TEXT}")
        if hint is str and _NO_TEXT.search(value):
            raise ProtocolError("malformed", _WRONG, f"{where} has characters that are none")
        if hint is int and abs(value) >= 2**53:
            raise ProtocolError("malformed", _WRONG, f"{where} is too large a number")
        return value
    raise ProtocolError("malformed", _WRONG, f"{where} is {type(value).__name__}")


def _check_file(file: File, where: str) -> None:
    if bool(file.path) == bool(file.hash) or (file.path and file.size):
        raise ProtocolError("malformed", _WRONG, f"{where} needs a hash and size, or a path")
    if file.hash and not (HASH.fullmatch(file.hash) and file.size > 0):
        raise ProtocolError("malformed", _WRONG, f"{where}: hash or size")


def _check_clip(clip: Clip, where: str) -> None:
    if bool(clip.path) == bool(clip.files):
        raise ProtocolError("malformed", _WRONG, f"{where} needs files or a path")
    if clip.frames and not re.fullmatch(r"[0-9]{1,9}(-[0-9]{1,9})?", clip.frames):
        raise ProtocolError("malformed", _WRONG, f"{where}: frames must be like 1-50")
    if clip.path:
        if clip.numbers:
            raise ProtocolError("malformed", _WRONG, f"{where}: numbers of a path")
        return
    for file in clip.files:
        _check_file(file, where)
        if file.path:
            raise ProtocolError("malformed", _WRONG, f"{where}: a path among files")
    if clip.numbers:
        distinct = len(set(clip.numbers)) == len(clip.numbers) == len(clip.files)
        if not distinct or not all(0 <= n <= 10**9 for n in clip.numbers):
            raise ProtocolError("malformed", _WRONG, f"{where}: one number for each file")
    elif len(clip.files) != 1:
        raise ProtocolError("malformed", _WRONG, f"{where}: a movie is one file")
    if clip.suffix not in (STILLS if clip.numbers else MOVIES + STILLS):
        raise ProtocolError("bad_value", not_read(clip.suffix))


def not_read(suffix: str) -> str:
    """Returns the sentence for a file of a kind that clips are not made of."""
    return (
        f"{suffix[:20] or 'That'} is no kind of file that clips are made of. Write EXR frames, or "
        "a ProRes or H.264 movie (.mov or .mp4)."
    )


def file_hash(path: Any, is_stopped: Callable[[], bool] = lambda: False) -> Tuple[str, int]:
    """Returns the hash and size of a file.

    Args:
        path: of the file; a movie takes minutes.
        is_stopped: asked meanwhile whether nobody waits for the hash any more.

    Raises:
        OSError: the file can't be read; InterruptedError, nobody waits.
    """
    sha, size = hashlib.blake2b(digest_size=32), 0
    buffer = memoryview(bytearray(CHUNK // 4))  # stays in the processor's cache
    with open(path, "rb", buffering=0) as file:
        while count := file.readinto(buffer):
            if is_stopped():
                raise InterruptedError(f"{path} is not needed any more.")
            sha.update(buffer[:count])
            size += count
    return sha.hexdigest(), size


def write_all(file: Any, chunk: Any) -> None:
    """Writes all of a chunk to an unbuffered file, which may take less than it is given.

    Raises:
        OSError: there is no space for the rest.
    """
    rest = memoryview(chunk)
    while len(rest):
        rest = rest[file.write(rest) :]
