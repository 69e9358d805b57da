"""The wire alone: what goes in comes out, and nothing else gets in."""

import ast
import collections
import copy
import dataclasses
import gc
import json
import re
import subprocess
import sys
import time
import tracemalloc
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zmq
import zmq.auth
from hypothesis import given, settings
from hypothesis import strategies as st
from interpreters import interpreter
from reenact import channel, protocol
from reenact.files import safe_name
from reenact.protocol import (
    MAX_HEADER,
    MAX_ITEMS,
    MAX_TEXT,
    MOVIES,
    REQUESTS,
    STATES,
    STILLS,
    TASKS,
    VERSION,
    Clip,
    Edit,
    Events,
    File,
    FitDirections,
    Frame,
    Move,
    Personalize,
    ProtocolError,
    Render,
    Repair,
    Request,
    Solve,
    Submit,
    Task,
    decode,
    decode_answer,
    encode,
    encode_answer,
    encode_error,
    read_task,
    task_key,
)
from repository import ROOT

from core.edit import repair
from core.edit.editing import EDGES
from core.media import clip
from core.quality.definitions import MEASURES
from server.frontend import database, gateway, home, peers, requests, transfers

PLUGIN = ROOT / "nuke_plugin"
DOCUMENT = ROOT / "docs" / "protocol.md"

MESSAGES = 40_000
TRACED = 6_400  # of them with every byte counted, which takes five times as long
MESSAGE_SECONDS = 10.0  # of processor time: with more it hangs
GROWTH = TRACED << 4  # bytes

# -- strategies ----------------------------------------------------------------------------------

WHOLE = st.integers(-(2**53) + 1, 2**53 - 1)
# Equal floats are to be equal text: no negative zero.
FLOATS = st.floats(allow_nan=False, allow_infinity=False).map(lambda v: v + 0.0)
TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=40)
PATHS = TEXT.filter(bool)
JSON = st.recursive(
    st.none() | st.booleans() | WHOLE | FLOATS | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=8,
)
COUNTS = st.integers(1, 1_000_000)
# One content has one size.
CONTENT = st.binary(min_size=32, max_size=32).map(
    lambda content: File(content.hex(), 1 + int.from_bytes(content[:6], "big"))
)
FILES = CONTENT | st.builds(File, path=PATHS)
RANGES = st.sampled_from(("", "1", "1-50", "999999999-999999999"))
COMMON: dict[str, Any] = {
    "name": TEXT,
    "frames": RANGES,
    "colour_space": st.none() | TEXT,
    "config": TEXT,
    "config_file": st.none() | FILES,
}


@st.composite
def sequences(draw: st.DrawFn) -> Clip:
    numbers = draw(st.lists(st.integers(0, 10**9), min_size=1, max_size=5, unique=True))
    files = draw(st.lists(CONTENT, min_size=len(numbers), max_size=len(numbers)))
    rest = {name: draw(strategy) for name, strategy in COMMON.items()}
    return Clip(draw(st.sampled_from(STILLS)), numbers, files, **rest)


CLIPS = (
    sequences()
    | st.builds(
        Clip,
        suffix=st.sampled_from(MOVIES + STILLS),
        files=st.lists(CONTENT, min_size=1, max_size=1),
        **COMMON,
    )
    | st.builds(Clip, path=PATHS, **COMMON)
)
VALID: dict[Any, st.SearchStrategy[Any]] = {File: FILES, Clip: CLIPS}
LIMITED = {
    "count": COUNTS,
    "steps": COUNTS,
    "samples": COUNTS,
    "batch": COUNTS,
    "adaptive": st.none() | COUNTS,
    "refine": st.none() | st.just(0) | COUNTS,
    "at": st.none() | st.lists(FLOATS, min_size=2, max_size=2),
}
PLAIN: dict[Any, st.SearchStrategy[Any]] = {
    str: TEXT,
    int: WHOLE,
    float: FLOATS,
    bool: st.booleans(),
}


def values(hint: Any) -> st.SearchStrategy[Any]:
    """Every value of a type that the wire has."""
    arguments = typing.get_args(hint)
    match typing.get_origin(hint):
        case typing.Union:
            return st.none() | values(arguments[0])
        case origin if origin is list:
            return st.lists(values(arguments[0]), max_size=4)
        case origin if origin is dict:
            return st.dictionaries(TEXT, JSON, max_size=4)
    if dataclasses.is_dataclass(hint) and hint not in VALID:
        return made(hint, {})
    return VALID[hint] if hint in VALID else PLAIN[hint]


def made(kind: type[Any], limited: dict[str, Any]) -> st.SearchStrategy[Any]:
    """Every dataclass of a kind."""
    hints = typing.get_type_hints(kind)
    return st.builds(
        kind, **{name: limited.get(name, values(hint)) for name, hint in hints.items()}
    )


REQUEST = st.one_of([made(kind, {}) for kind in REQUESTS.values()])
TASK = st.one_of([made(kind, LIMITED) for kind in TASKS.values()])
IDS = st.from_regex(protocol.REQUEST_ID, fullmatch=True)


def kind_of(task: Task) -> str:
    return next(name for name, kind in TASKS.items() if kind is type(task))


def over_the_wire(task: Task) -> Task:
    """A task as the server reads it."""
    _, submit = decode(encode(Submit(kind_of(task), protocol.plain(task)), "a"))
    assert isinstance(submit, Submit)
    return read_task(submit)


# -- what goes in comes out ----------------------------------------------------------------------


@settings(max_examples=300, deadline=None)
@given(REQUEST, IDS)
def test_a_request_arrives_as_it_was_sent(request: Request, id: str) -> None:
    assert decode(encode(request, id)) == (id, request)


@pytest.mark.parametrize("name", REQUESTS)
def test_every_request_has_a_strategy_and_its_name(name: str) -> None:
    @settings(max_examples=20, deadline=None)
    @given(made(REQUESTS[name], {}))
    def arrives(request: Request) -> None:
        header = encode(request, "a")
        assert json.loads(header)["type"] == name
        assert decode(header) == ("a", request)

    arrives()


@settings(max_examples=200, deadline=None)
@given(TASK)
def test_a_task_arrives_as_it_was_sent(task: Task) -> None:
    assert over_the_wire(task) == task


@settings(max_examples=100, deadline=None)
@given(IDS, st.dictionaries(TEXT, JSON, max_size=5))
def test_an_answer_arrives_as_it_was_sent(id: str, body: dict[str, Any]) -> None:
    assert decode_answer(encode_answer(id, body)) == (id, body)


@settings(max_examples=100, deadline=None)
@given(IDS | st.just(""), TEXT, TEXT, TEXT)
def test_an_error_arrives_as_it_was_sent(id: str, code: str, said: str, detail: str) -> None:
    got, error = decode_answer(encode_error(ProtocolError(code, said, detail, id)))
    assert isinstance(error, ProtocolError)
    assert (got, error.id, error.code, str(error), error.detail) == (id, id, code, said, detail)


def test_what_is_not_sent_has_its_default() -> None:
    task = read_task(Submit("solve", {"plate": {"path": "/a.mov"}, "character": {"path": "/b"}}))
    assert task == Solve(Clip(path="/a.mov"), File(path="/b"))
    assert decode(message("events", {"job": "j"}))[1] == Events("j", 0, 0.0)


def test_core_and_the_wire_name_the_same_kinds_of_files() -> None:
    assert set(STILLS) == clip.PICTURES
    assert set(MOVIES) == clip.MOVIES


@pytest.mark.parametrize("suffix", sorted(clip.PICTURES))
def test_every_kind_of_picture_that_core_reads_is_accepted(suffix: str) -> None:
    plate = Clip(suffix, [1001], [File("1" * 64, 1)])
    task = Solve(plate, File("2" * 64, 1))
    assert over_the_wire(task) == task


@pytest.mark.parametrize("suffix", sorted(clip.MOVIES))
def test_every_kind_of_movie_that_core_reads_is_accepted(suffix: str) -> None:
    task = Solve(Clip(suffix, [], [File("1" * 64, 1)]), File("2" * 64, 1))
    assert over_the_wire(task) == task


# -- what a request is known by ------------------------------------------------------------------


def variants(a: Any, b: Any) -> Iterator[Any]:
    """`a` with one of its fields, at any depth, as `b` has it."""
    for field in dataclasses.fields(a):
        mine, other = getattr(a, field.name), getattr(b, field.name)
        inner = [other]
        if dataclasses.is_dataclass(mine) and type(mine) is type(other):
            inner += list(variants(mine, other))
        elif isinstance(mine, list) and mine:
            inner.append(mine[:-1])
        for value in inner:
            yield dataclasses.replace(a, **{field.name: value})


@pytest.mark.parametrize("kind", tuple(TASKS))
def test_the_key_tells_tasks_apart(kind: str) -> None:
    @settings(max_examples=60, deadline=None)
    @given(made(TASKS[kind], LIMITED), made(TASKS[kind], LIMITED))
    def differs(a: Task, b: Task) -> None:
        key = task_key(kind, a)
        assert task_key(kind, over_the_wire(a)) == key
        for variant in variants(a, b):
            assert (task_key(kind, variant) == key) == (variant == a), variant
        assert task_key("other", a) != key

    differs()


def test_the_key_does_not_depend_on_how_a_number_or_a_default_was_written() -> None:
    body = {"plate": {"path": "/a.mov"}, "character": {"path": "/b"}}
    plain = read_task(Submit("solve", {**body, "at": [1, 2]}))
    full = read_task(Submit("solve", {"batch": 8, "steps": None, "at": [1.0, 2.0], **body}))
    assert task_key("solve", plain) == task_key("solve", full)


def test_files_are_named_once() -> None:
    one, two = File("1" * 64, 1), File("2" * 64, 2)
    clip = Clip(".png", [1, 2, 3], [one, two, one])
    task = Render(one, File(path="/c"), clip, truth=Clip(".mov", [], [two]))
    assert protocol.files(task) == [one, two]


# -- what is refused -----------------------------------------------------------------------------


def message(type: str, body: Any, **rest: Any) -> bytes:
    """A header, right or wrong."""
    header = {"reenact": VERSION, "type": type, "id": "a", "body": body} | rest
    return json.dumps(header).encode()


def refusal(read: Callable[[], object]) -> ProtocolError:
    with pytest.raises(ProtocolError) as caught:
        read()
    return caught.value


@pytest.mark.parametrize(
    ("header", "code", "id"),
    [
        (b"", "malformed", ""),
        (b"\xff\xfe", "malformed", ""),
        (b"[" * 100_000, "malformed", ""),
        (b" " * (MAX_HEADER + 1), "too_large", ""),
        (message("ping", {})[:-1], "malformed", ""),
        (message("ping", {}).replace(b"{}", b'{"a":NaN}'), "malformed", ""),
        (message("status", {"job": "j"}, id="../a"), "malformed", ""),
        (message("status", {"job": "j"}, id="a" * 65), "malformed", ""),
        (message("answer", {}), "malformed", "a"),
        (message("ping", {"a": 1}), "malformed", "a"),
        (message("status", {}), "malformed", "a"),
        (message("status", {"job": 1}), "malformed", "a"),
        (message("status", {"job": None}), "malformed", "a"),
        (message("status", {"job": "j" * (MAX_TEXT + 1)}), "malformed", "a"),
        (message("events", {"job": "j", "after": True}), "malformed", "a"),
        (message("events", {"job": "j", "after": 1.0}), "malformed", "a"),
        (message("events", {"job": "j", "after": 2**53}), "malformed", "a"),
        (message("held", {"hashes": "ab"}), "malformed", "a"),
        (message("held", {"hashes": [["a"]]}), "malformed", "a"),
        (message("submit", {"kind": "solve", "task": []}), "malformed", "a"),
    ],
)
def test_what_no_request_may_be(header: bytes, code: str, id: str) -> None:
    error = refusal(lambda: decode(header))
    assert (error.code, error.id) == (code, id)
    assert str(error)


HASH_A = "a" * 64
STILL: dict[str, Any] = {"suffix": ".png", "numbers": [1], "files": [{"hash": HASH_A, "size": 1}]}
MOVIE: dict[str, Any] = {"suffix": ".mov", "files": [{"hash": HASH_A, "size": 1}]}
NAMED: dict[str, Any] = {"path": "/a"}
NAMES = ("../../etc/passwd", "/etc/passwd", "..", "a/b", "C:\\a", "~/a", "", ".mov/../a")


def solve(**changes: Any) -> dict[str, Any]:
    return {"plate": STILL, "character": NAMED} | changes


def edit(**changes: Any) -> dict[str, Any]:
    parts = {"track": NAMED, "character": NAMED, "directions": [NAMED], "moves": []}
    return parts | changes


@pytest.mark.parametrize(
    ("kind", "task", "code"),
    [
        ("fit_direction", {}, "unknown_kind"),
        ("Solve", solve(), "unknown_kind"),
        ("solve", {}, "malformed"),
        ("solve", solve(colour=1), "malformed"),
        ("solve", solve(plate={}), "malformed"),
        ("solve", solve(plate=None), "malformed"),
        ("solve", solve(plate={**STILL, "path": "/a"}), "malformed"),
        ("solve", solve(plate={**STILL, "numbers": [1, 2]}), "malformed"),
        (
            "solve",
            solve(plate={**STILL, "numbers": [1, 1], "files": STILL["files"] * 2}),
            "malformed",
        ),
        ("solve", solve(plate={**STILL, "numbers": [-1]}), "malformed"),
        ("solve", solve(plate={**STILL, "files": [NAMED]}), "malformed"),
        ("solve", solve(plate={**STILL, "suffix": ".mov"}), "bad_value"),
        ("solve", solve(plate={**STILL, "suffix": ".PNG"}), "bad_value"),
        ("solve", solve(plate={**STILL, "numbers": [], "suffix": ".r3d"}), "bad_value"),
        ("solve", solve(plate={**MOVIE, "files": MOVIE["files"] * 2}), "malformed"),
        ("solve", solve(plate={**MOVIE, "frames": "1-50;"}), "malformed"),
        ("solve", solve(plate={**MOVIE, "frames": "1-\u0665"}), "malformed"),
        ("solve", solve(character={"hash": HASH_A}), "malformed"),
        ("solve", solve(character={"hash": HASH_A, "size": 0}), "malformed"),
        ("solve", solve(character={"hash": HASH_A.upper(), "size": 1}), "malformed"),
        ("solve", solve(character={"hash": HASH_A + "\n", "size": 1}), "malformed"),
        ("solve", solve(character={"hash": HASH_A, "size": 1, "path": "/a"}), "malformed"),
        ("solve", solve(batch=0), "bad_value"),
        ("solve", solve(steps=1_000_001), "bad_value"),
        ("solve", solve(at=[1.0]), "bad_value"),
        ("edit", edit(moves=[{"direction": "a"}]), "malformed"),
        ("edit", edit(moves=[{"direction": "a", "amount": 1}]), "malformed"),
        ("edit", edit(directions=[{"hash": HASH_A}]), "malformed"),
        ("edit", edit(directions=[NAMED] * 17), "bad_value"),
        ("edit", edit(moves=[{"direction": "a", "amount": "1"}] * 257), "bad_value"),
        ("fit_directions", {"samples": 0}, "bad_value"),
        ("solve", solve(at=[1.0, "2"]), "malformed"),
    ],
)
def test_what_no_task_may_be(kind: str, task: dict[str, Any], code: str) -> None:
    assert refusal(lambda: read_task(Submit(kind, task))).code == code


@pytest.mark.parametrize("number", ["1e999", "-1e999"])
def test_no_number_is_infinite(number: str) -> None:
    """The server could take one in, and never send it back."""
    for part in (b'"at":[%s,0]', b'"plate":{"path":"/a","x":%s}'):
        task = part.replace(b"%s", number.encode())
        header = message("submit", {"kind": "solve", "task": {"TASK": 1}})
        header = header.replace(b'"TASK": 1', task + b',"character":{"path":"/a"}')
        assert refusal(lambda header=header: decode(header)).code == "malformed"  # type: ignore[misc]


@pytest.mark.parametrize("text", ["a\0b", "\ud800", "/a/\udfff"])
def test_text_is_text(text: str) -> None:
    """No path and no database takes the rest."""
    for header in (
        message("status", {"job": text}),
        message("hello", {"client": text, "versions": [1]}),
        message("held", {"hashes": [text]}),
    ):
        assert refusal(lambda header=header: decode(header)).code == "malformed"  # type: ignore[misc]
    for task in (solve(plate={"path": text}), solve(character={"path": text}), solve(neutral=text)):
        error = refusal(lambda task=task: read_task(Submit("solve", task)))  # type: ignore[misc]
        assert error.code == "malformed"


@pytest.mark.parametrize("name", NAMES)
def test_names_lead_nowhere(name: str) -> None:
    """Hashes and suffixes become paths on the server, and files' names on the client."""
    for part in (
        {"character": {"hash": name or "..", "size": 1}},
        {"plate": {**STILL, "suffix": name}},
        {"plate": {**MOVIE, "suffix": name}},
        {"plate": {**STILL, "suffix": f".png/{name}"}},
    ):
        error = refusal(lambda part=part: read_task(Submit("solve", solve(**part))))  # type: ignore[misc]
        assert error.code in ("malformed", "bad_value")
    plate = read_task(Submit("solve", solve(plate={**STILL, "name": name})))
    assert isinstance(plate, Solve)
    assert plate.plate.name == name  # for people: it arrives as it is
    safe = safe_name(name, "anna")
    assert (Path("folder") / safe).parent == Path("folder")
    assert safe not in ("", ".", "..")
    assert not set(safe) & set("/\\\0:~")


@pytest.mark.parametrize("theirs", [0, -1, 2, 10**300, 1.0, 1.5, True, None, "1", [1], {}])
def test_another_version_is_refused_by_both_sides(theirs: Any) -> None:
    header = json.dumps({"reenact": theirs, "type": "ping", "id": "a", "body": {}}).encode()
    for read in (decode, decode_answer):
        error = refusal(lambda read=read: read(header))  # type: ignore[misc]
        assert (error.code, error.id) == ("version", "a")
        assert f"protocol {VERSION} here, {str(theirs)[:20]} there" in error.detail


@pytest.mark.parametrize(
    ("theirs", "of_client", "of_server"),
    [(VERSION - 1, "plugin", "server"), (VERSION + 1, "server", "plugin")],
)
def test_a_version_error_says_which_side_to_update(
    theirs: int, of_client: str, of_server: str
) -> None:
    """Who reads a request is the server; who reads an answer is the plugin."""
    request = message("ping", {}, reenact=theirs)
    answer = message("answer", {}, reenact=theirs)
    assert f"Update the {of_client}." in str(refusal(lambda: decode(request)))
    assert f"Update the {of_server}." in str(refusal(lambda: decode_answer(answer)))


# -- what anybody may send -----------------------------------------------------------------------


def templates() -> list[bytes]:
    """A valid header of every request, kind of task, and answer."""
    content = File(HASH_A, 5)
    clip = Clip(".exr", [1001, 1002], [content, File("b" * 64, 7)], colour_space="ACEScg")
    tasks: list[Task] = [
        Personalize(clip, "anna", "Anna", at=[10.0, 20.5], base=content),
        Solve(clip, content, preset="paper", neutral="3:4", steps=5),
        Solve(Clip(path="/plates/a.%04d.exr", frames="1-50"), File(path="/a.character")),
        Render(content, content, clip, movie=True, truth=Clip(".mov", [], [content])),
        Frame(content, content, 1001, clip, "anna"),
        Repair(content, [{"do": "hold", "frames": "1001", "from": 1002}], clip, content),
        Edit(content, content, [content], [Move("smile", "1001:0.5:hold", "0-3")], "stop"),
        FitDirections(content, samples=64),
    ]
    plain: dict[str, dict[str, Any]] = {
        "hello": {"client": "nuke 0.1.0", "versions": [1, 2]},
        "events": {"job": "4f1d6c", "after": 17, "wait": 10.5},
        "held": {"hashes": [HASH_A, "b" * 64]},
        "upload": {"hash": HASH_A, "size": 1 << 21, "offset": 1 << 20},
        "download": {"hash": HASH_A, "offset": 0},
        "verify": {"hash": HASH_A},
    }
    headers = [encode(Submit(kind_of(t), dataclasses.asdict(t)), "id-1") for t in tasks]
    for name, kind in REQUESTS.items():
        if name != "submit":
            body = plain.get(name, dict.fromkeys(typing.get_type_hints(kind), "4f1d6c"))
            headers.append(encode(kind(**body), "id_2"))
    headers.append(encode_answer("id3", {"events": [{"n": 1, "type": "state"}], "x": 1.5}))
    headers.append(encode_error(ProtocolError("path", "No.", "/a", "id4")))
    return headers


DEEP = [b"[" * n + b"]" * n for n in (5, 900, 990, 5000)] + [b'{"a":' * 5000, b"[" * 50_000]
TOKENS = [
    b"NaN",
    b"Infinity",
    b"-Infinity",
    b"1e999",
    b"-1e999",
    b"1e-999",
    b"9" * 400,
    b"-0",
    b"-0.0",
    b"9" * 6000,
    b"1." + b"3" * 3000,
    b"9007199254740992",
    b"0x1",
    b"01",
    b"null",
    b"true",
    b"false",
    b"{}",
    b"[]",
    b'""',
    b'"\\ud800"',
    b'"\\udfff\\ud800"',
    b'"\\u0000"',
    b'"\\u12"',
    b'"\xed\xa0\x80"',
    b"\xef\xbb\xbf",
    b'"../../etc/passwd"',
    b'"__class__"',
    b"'a'",
    b"//",
    b",",
    b'"a":',
    b"\0",
    b'"' + b"x" * 5000 + b'"',
    b"[" + b"0," * 3000 + b"0]",
    b'{"a":1,"a":2}',
    *DEEP,
]
VALUES: list[Any] = [
    None,
    True,
    False,
    0,
    -1,
    1,
    2**31,
    2**53,
    2**63,
    -(2**64),
    10**400,
    0.0,
    -0.5,
    1e308,
    5e-324,
    "",
    "a",
    "..",
    "/",
    "\0",
    "\ud800",
    "\udfff\ud800",
    "\U0010ffff" * 41,
    "x" * 4097,
    HASH_A,
    ".exr",
    ".mov",
    "1-50",
    "9" * 4000,
    [],
    {},
    [[]],
    [{}] * 40,
    ["a"] * 500,
    [0] * 1000,
    {"a": 1},
    {"path": "/a"},
    {"hash": HASH_A, "size": 1},
    {"__init__": 1},
    dict.fromkeys("xyz"),
]
FIELDS = ["self", "__class__", "\ud800", "", "x" * 5000, "task", "path", "files", "number", "id"]


class Hostile:
    """Messages of somebody who knows the protocol and means harm."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.headers = templates()
        self.full = [
            b'{"reenact":1,"type":"ping","id":"a","body":' + b'{"a":' * 200_000,
            b'"' + b"x" * (MAX_HEADER - 2) + b'"',
            b'{"reenact":1,"id":"a","type":"held","body":{"hashes":["'
            + b'","'.join([b"a"] * 250_000)
            + b'"]}}',
            b"9" * MAX_HEADER,
            b"1e" + b"9" * (MAX_HEADER - 2),
            b"\xff" * (MAX_HEADER + 1),
            b'{"reenact":' + b"9" * 500_000 + b"}",
            b'{"a":1,' * 140_000,
        ]

    def below(self, n: int) -> int:
        return int(self.rng.integers(n))

    def one(self, of: list[Any]) -> Any:
        return of[self.below(len(of))]

    def next(self) -> bytes:
        """The next message."""
        kind = self.below(1000)
        if kind < 1:
            return self.one(self.full)
        if kind < 50:
            return self.rng.bytes(self.below(200))
        header = self.one(self.headers)
        return self.of_bytes(header) if kind < 500 else self.of_values(header)

    def of_bytes(self, header: bytes) -> bytes:
        """A header with some of its bytes changed."""
        value = bytearray(header)
        for _ in range(1 + self.below(3)):
            at = self.below(len(value) + 1)
            match self.below(6):
                case 0:
                    del value[at:]
                case 1:
                    del value[at : at + self.below(8)]
                case 2 if at < len(value):
                    value[at] = self.below(256)
                case 3:
                    value[at:at] = self.one(TOKENS)
                case 4:
                    found = [m.span() for m in re.finditer(rb'"[^"]*"|[0-9.]+|null', value)]
                    if found:
                        start, end = self.one(found)
                        value[start:end] = self.one(TOKENS)
                case 5:
                    other = self.one(self.headers)
                    value[at:] = other[self.below(len(other)) :]
        return bytes(value)

    def of_values(self, header: bytes) -> bytes:
        """A header with some of its values changed."""
        value = json.loads(header)
        for _ in range(1 + self.below(2)):
            inside = value
            while True:  # down to somewhere
                places = list(inside) if isinstance(inside, dict) else list(range(len(inside)))
                if not places:
                    break
                place = self.one(places)
                if isinstance(inside[place], (dict, list)) and inside[place] and self.below(5):
                    inside = inside[place]
                    continue
                if self.below(5) == 0:
                    del inside[place]
                else:
                    inside[place] = copy.deepcopy(self.one(VALUES))
                break
            if isinstance(inside, dict) and self.below(6) == 0:
                inside[self.one(FIELDS)] = copy.deepcopy(self.one(VALUES))
        return json.dumps(value).encode()


def refused(read: Callable[[], object]) -> str:
    """What a message is refused with, in words that can be sent back; or nothing."""
    try:
        read()
    except ProtocolError as error:
        known = error
    else:
        return ""
    assert not known.id or protocol.REQUEST_ID.fullmatch(known.id)
    answer = encode_error(known)
    assert len(answer) < 1 << 16
    assert decode_answer(answer)[0] == known.id
    return known.code


def read_all(header: bytes) -> list[str]:
    """Reads a message as both sides would; what each step refused it with."""
    codes = [refused(lambda: decode_answer(header)), refused(lambda: decode(header))]
    if not codes[1]:
        request = decode(header)[1]
        if isinstance(request, Submit):
            codes.append(refused(lambda: task_key(request.kind, read_task(request))))
    return codes


def send(hostile: Hostile, messages: int) -> tuple[collections.Counter[str], float]:
    """Reads so many messages; how often each refusal came, and the seconds that the worst took."""
    codes, worst = collections.Counter[str](), 0.0
    for _ in range(messages):
        header = hostile.next()
        start = time.thread_time()
        try:
            codes.update(read_all(header))
        except Exception as error:
            pytest.fail(f"{error!r:.300} from {header[:1000]!r}")
        worst = max(worst, time.thread_time() - start)
    gc.collect()
    return codes, worst


def test_nothing_that_is_sent_does_harm() -> None:
    hostile = Hostile(1)
    for header in hostile.full + hostile.headers:
        read_all(header)
    codes, worst = send(hostile, MESSAGES // 2)
    before = sys.getallocatedblocks()
    more, later = send(hostile, MESSAGES // 2)
    assert sys.getallocatedblocks() - before < MESSAGES // 20
    assert max(worst, later) < MESSAGE_SECONDS
    codes += more
    assert set(codes) == {"", "malformed", "too_large", "version", "unknown_kind", "bad_value"}
    assert codes[""] > MESSAGES // 20  # it came near enough to what is allowed


def test_nothing_that_is_sent_stays_in_memory() -> None:
    hostile = Hostile(2)
    tracemalloc.start()
    try:
        send(hostile, TRACED // 2)
        before, _ = tracemalloc.get_traced_memory()
        send(hostile, TRACED // 2)
        assert tracemalloc.get_traced_memory()[0] - before < GROWTH
    finally:
        tracemalloc.stop()


def test_any_depth_is_read_or_refused() -> None:
    """What is just shallow enough to be read must not be too deep for what reads it on."""
    for n in [*range(1, 1000, 13), *range(900, 1010)]:
        deep = b"[" * n + b"]" * n
        for header in (
            message("ping", {}).replace(b": 1,", b": " + deep + b",", 1),
            message("ping", {}).replace(b"{}", b'{"a":' + deep + b"}"),
            message("submit", {"kind": "solve", "task": {}}).replace(
                b"{}", b'{"at":' + deep + b"}"
            ),
        ):
            read_all(header)


@pytest.mark.parametrize(
    "item", ["{}", '{"size":1}', "[]", "0", '""', '{"path":"/a"}', '{"hash":"%s","size":1}']
)
def test_a_full_header_does_not_hold_the_server_up(
    item: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each request is read by the one thread that every client waits for."""
    typed, calls = protocol._typed, 0

    def counted(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        return typed(*arguments)

    monkeypatch.setattr(protocol, "_typed", counted)
    item = item.replace("%s", HASH_A)
    start = (
        '{"reenact":1,"type":"submit","id":"a","body":{"kind":"solve","task":{"plate":{"files":['
    )
    end = ']},"character":{}}}}'
    count = (MAX_HEADER - len(start) - len(end)) // (len(item) + 1)
    header = (start + ",".join([item] * count) + end).encode()
    assert len(header) <= MAX_HEADER
    assert any(read_all(header))
    assert calls < 5 * protocol.MAX_ITEMS


# -- the document --------------------------------------------------------------------------------


def document() -> str:
    return DOCUMENT.read_text(encoding="utf-8")


def section(title: str) -> str:
    """A section of the document, up to the next one."""
    found = re.search(rf"^### {re.escape(title)}$(.*?)(?=^##)", document(), re.M | re.S)
    assert found, f"docs/protocol.md has no section {title}"
    return found[1]


@pytest.mark.parametrize("title", [*REQUESTS, *TASKS, "File", "Clip", "Move"])
def test_the_document_has_every_field(title: str) -> None:
    kinds = {**REQUESTS, **TASKS, "File": File, "Clip": Clip, "Move": Move}
    text = section(f"`{title}`")
    for field in typing.get_type_hints(kinds[title]):
        assert f"`{field}`" in text


def test_the_document_has_every_code() -> None:
    raised: set[str] = set()
    for path in (*(PLUGIN / "reenact").glob("*.py"), *(ROOT / "server").rglob("*.py")):
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(call, ast.Call):
                continue
            name = getattr(call.func, "attr", getattr(call.func, "id", ""))
            at = {"ProtocolError": 0, "ServerError": 0, "refuse": 0}.get(name, len(call.args))
            raised |= {
                a.value
                for a in call.args[at : at + 1]
                if isinstance(a, ast.Constant) and isinstance(a.value, str)
            }
    assert {"version", "too_large", "malformed", "unknown_kind", "bad_value"} < raised
    assert {"no_such_file", "no_such_job", "credit"} < raised
    text = DOCUMENT.read_text(encoding="utf-8")
    errors = text[text.index("\n## Errors") :]
    rows = re.findall(r"^\| (`\w+`(?:, `\w+`)*) \|", errors[: errors.index("\n## ", 5)], re.M)
    documented = set(re.findall(r"\w+", " ".join(rows)))
    assert raised - documented == set()


def test_the_document_has_every_word_and_number() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    assert f"version {VERSION}" in text
    for word in (*STATES, *TASKS, *STILLS, *MOVIES):
        assert f"`{word}`" in text
    for number in (protocol.CHUNK, protocol.CREDIT, MAX_HEADER, MAX_TEXT):
        assert re.search(rf"\b{number:,}\b", text), number


def test_the_documents_hashes_are_those_of_files(tmp_path: Path) -> None:
    rows = re.findall(r"^\| (nothing|`\w+`) \| `([0-9a-f]{64})` \|$", document(), re.M)
    assert [content for content, _ in rows] == ["nothing", "`abc`"]
    for content, hash in rows:
        text = "" if content == "nothing" else content.strip("`")
        (tmp_path / "file").write_text(text)
        assert protocol.file_hash(tmp_path / "file") == (hash, len(text))


def test_the_documents_key_file_is_one_that_the_server_makes(tmp_path: Path) -> None:
    (example,) = re.findall(r"^```text\n(#.*?secret-key.*?)^```$", document(), re.M | re.S)
    (tmp_path / "example").write_text(example)
    public, secret = zmq.auth.load_certificate(tmp_path / "example")
    assert secret is not None
    assert zmq.curve_public(secret) == public
    assert b"#" in secret  # what a careless reader takes for a comment
    made = home.make_key(tmp_path, "made")

    def lines(text: str) -> list[str]:
        """Those that say something, without the keys."""
        kept = [line for line in text.splitlines() if line and not line.startswith("#")]
        return [re.sub('"[^"]{40}"', '"KEY"', line) for line in kept]

    assert lines(made.read_text()) == lines(example)
    assert lines(made.with_suffix(".key").read_text()) == lines(example)[:-1]


def test_the_document_has_the_servers_numbers() -> None:
    text = " ".join(document().split())
    for sentence in (
        f"may have at most {gateway.FRAME_BYTES:,} bytes; the {gateway.CURVE_BYTES} that",
        f"at most {MAX_ITEMS:,} items",
        f"more than {requests.MAX_WAIT_SECONDS:g} counts as",
        f"may have {protocol.CREDIT} chunk requests unanswered",
        f"wait to be read pass {peers.ALL_CHUNK_BYTES >> 20} MiB",
        f"While more than {transfers.MAX_BACKLOG} chunks wait",
        f"A connection of which {peers.UNREAD_BYTES >> 20} MiB of answers",
        f"reads nothing for about {gateway.UNREAD_SECONDS} s",
        f"at most {peers.MAX_WAITING:,} of a connection and {peers.HEADER_BYTES >> 20} MiB",
        f"are kept for {database.PARTIAL_SECONDS / 86400:g} days, "
        f"or, while room is needed, for {database.UPLOAD_SECONDS:g} s",
        f"silent for {peers.CLIENT_SECONDS:g} s",
        f"If there is no answer for {channel.RESEND_SECONDS:g} s",
    ):
        assert sentence in text, sentence


def test_the_document_has_every_limit_of_the_server() -> None:
    text = document()
    limits = text[text.index("\n## Limits") : text.index("\n## Security")]
    for field in dataclasses.fields(peers.Limits):
        assert f"`{field.name}`" in limits


def test_the_document_has_every_measure_and_repair() -> None:
    limited = {name for name, measure in MEASURES.items() if measure.bad}
    _, _, measures = section("`qc`").partition("Measures: ")
    assert set(re.findall(r"`(\w+)`", measures.partition(".")[0])) == limited
    text = section("`repair`")
    for kind, fields in repair._FIELDS.items():
        (row,) = re.findall(rf"^\| `{kind}` \| (.*?) \|", text, re.M)
        assert set(re.findall(r"`(\w+)`", row)) == set(fields)
    for name in repair._WEIGHTS:
        assert f"`{name}`" in text


def test_the_document_has_what_submit_checks() -> None:
    text = section("What is checked when")
    for name, words in protocol.CHOICES.items():
        assert f"`{name}`" in text
        kinds = [kind for kind, task in TASKS.items() if name in typing.get_type_hints(task)]
        assert any(all(f"`{w}`" in section(f"`{kind}`") for w in words) for kind in kinds)
    assert sorted(protocol.CHOICES["edge"]) == sorted(EDGES)
    for name, most in protocol.GREATEST.items():
        assert re.search(rf"`{name}`[^;]* outside 0 to {most}\b", " ".join(text.split()))
    assert f"outside 0 to {protocol.MAX_LIMIT:,.0f}" in " ".join(text.split())


DRAWN: dict[str, Any] = {"track": NAMED, "character": NAMED}


@pytest.mark.parametrize(
    ("kind", "field", "task"),
    [
        ("solve", "neutral", solve(neutral="sideways")),
        ("solve", "at", solve(at=[-5, 1e9])),
        ("render", "style_amount", {**DRAWN, "style_amount": "much"}),
        ("render", "layer_names", {**DRAWN, "layer_names": 99}),
        ("frame", "layer_names", {**DRAWN, "number": 1, "layer_names": 99}),
        ("edit", "rows", edit(moves=[{"direction": "a", "amount": "1", "rows": "some"}])),
        ("repair", "repairs", {"track": NAMED, "repairs": []}),
        ("stylize", "program", {"character": NAMED, "name": "a", "program": "dots"}),
        ("stylize", "clip", {"character": NAMED, "name": "a", "prompt": "b", "clip": ["none"]}),
        ("personalize", "metric", {"scan": STILL, "name": "a", "who": "b", "metric": "none"}),
    ],
)
def test_what_submit_does_not_check_is_documented(
    kind: str, field: str, task: dict[str, Any]
) -> None:
    """What comes to nothing only when the job runs."""
    protocol.check_values(read_task(Submit(kind, task)))
    _, _, later = section("What is checked when").partition("All else")
    assert f"`{field}`" in later


# -- where it runs -------------------------------------------------------------------------------

IMPORTED = """
import sys
path, modules = list(sys.path), set(sys.modules)
import reenact, reenact.protocol, reenact.client
assert "zmq" not in sys.modules  # a render that asks no server pays nothing
reenact.client.Client().close()
assert sys.path == path, sys.path
roots = {name.partition(".")[0] for name in set(sys.modules) - modules}
print(*sorted(roots - set(sys.stdlib_module_names)))
"""
UNDER_NUKE = f"""
from reenact.protocol import *
submit = Submit("solve", {solve(at=[1, 2])!r})
assert decode(encode(submit, "a")) == ("a", submit)
task = read_task(submit)
assert task.at == [1.0, 2.0] and task_key("solve", task)
try:
    decode(b"[" * 100000)
except ProtocolError as error:
    print(error.code)
"""


def run_alone(interpreter: str, code: str) -> str:
    done = subprocess.run(
        [interpreter, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
        env={"PYTHONPATH": str(PLUGIN), "PYTHONDONTWRITEBYTECODE": "1"},
    )
    return done.stdout.strip()


def test_importing_the_client_pulls_in_nothing_but_zmq() -> None:
    # Cython registers modules of its own for what it has compiled.
    roots = {r for r in run_alone(sys.executable, IMPORTED).split() if "cython" not in r}
    assert roots == {"reenact", "zmq"}


@pytest.mark.parametrize("path", sorted((PLUGIN / "reenact").glob("*.py")), ids=lambda p: p.name)
def test_the_plugin_is_python_3_9(path: Path) -> None:
    ast.parse(path.read_text(encoding="utf-8"), feature_version=(3, 9))


def test_the_protocol_works_in_python_3_9() -> None:
    assert run_alone(str(interpreter("3.9")), UNDER_NUKE) == "malformed"


@pytest.mark.parametrize("name", ["plate.####.exr", "plate.%04d.exr"])
def test_numbers_stand_in_names_of_files_alone(tmp_path: Path, name: str) -> None:
    """A `#` in a folder's name is a `#`: frames of other folders are not the clip's."""
    for folder in ("show#", "show2"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "plate.1001.exr").write_bytes(b"x")
    pattern = str(tmp_path / "show#" / name)
    before = requests.path_state(pattern, [tmp_path])
    (tmp_path / "show2" / "plate.1001.exr").write_bytes(b"xx")
    assert requests.path_state(pattern, [tmp_path]) == before
    (tmp_path / "show#" / "plate.1002.exr").write_bytes(b"x")
    assert requests.path_state(pattern, [tmp_path]) != before
