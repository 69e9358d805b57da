"""A strict stand-in for Nuke, for machines without Nuke.

It is at least as strict as Nuke: unknown names raise AttributeError, nodes and knobs raise when
used off the main thread, and native nodes have the knobs of `nuke_knobs.json` and `DOCUMENTED`.
Scripts are real text, parsed by Tcl; Write and Read use real files; Qt's event loop runs. A group's
onCreate runs before its inside exists, since Nuke does not promise otherwise. While a script loads
there is no root, knobs arrive one after the other, knobChanged is called for each, events may be
processed (`while_loading`), and whatever a callback raises is a fault of the test, even if somebody
catches it. Every change of a knob is noted as a modification of the script. Labels are evaluated by
Tcl, text in their knobs too. Layers exist once a script declares them or a Read has read them, and
no node is made that names another one of ours. Clones share their knobs, the name too.

Of an EXR with several views, a Read shows the one that is drawn. While a script renders, events are
processed. A File knob's value has `%04d` for `####`. Nuke's
documentation does not settle whether a script keeps the items that a menu was given (`keeps_items`)
and whether knobChanged is called for changes by a program (`calls_for_programs`): tests do both.

It can't show how Nuke draws, caches, schedules and licenses (`nuke_acceptance.py`).
"""

from __future__ import annotations

import builtins
import json
import os
import re
import sys
import threading
import time
import types
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import nk_script
import nuke_pixels
import nuke_shapes
import numpy as np
import OpenImageIO as oiio
import reenact
from nk_script import Statement, quote, words
from repository import ROOT

from core.media.write import write_exr
from core.render.layers import CHANNELS, NEWEST, PLAIN, in_file

_plain_import = builtins.__import__
from PySide6.QtCore import QEventLoop, QTimer  # noqa: E402
from PySide6.QtWidgets import QApplication  # noqa: E402

builtins.__import__ = _plain_import  # without Qt's hook, which disturbs other tests

Picture = dict[str, np.ndarray]  # channel -> [H, W], over the format

# The plugin's modules that import Nuke, directly or through each other.
KNOW_NUKE = (
    "host",
    "kinds",
    "chosen",
    "upstream",
    "requests",
    "display",
    "session",
    "nodes",
    "panel",
)

CLASSES = json.loads((Path(__file__).parent / "nuke_knobs.json").read_text())

# Knobs that every node has: those seen in at least five classes.
_SEEN = Counter(
    knob for kind in CLASSES.values() if isinstance(kind, dict) for knob in kind["knobs"]
)
EVERYWHERE = {knob for knob, classes in _SEEN.items() if classes >= 5} | {"inputs"}
_CALLBACKS = "https://learn.foundry.com/nuke/developers/130/pythondevguide/callbacks.html"
_ROOT = "https://learn.foundry.com/nuke/content/reference_guide/other_nodes/root.html"
_TRACKER = "https://learn.foundry.com/nuke/content/reference_guide/transform_nodes/tracker.html"
_SCAN = "https://github.com/kirkjr2/nuke-python-reference/tree/main/data/nodes"  # of Nuke 17.0v3
# Classes and knobs that no collected script had, with their documentation.
DOCUMENTED = {
    "Group": {
        **dict.fromkeys(("onCreate", "onDestroy", "knobChanged"), _CALLBACKS),
        "help": "seen in NoOp, which has no knobs of its own",
    },
    "TimeClip": dict.fromkeys(
        (
            *("first", "last", "origfirst", "origlast", "before", "after"),
            *("frame_mode", "frame", "reverse"),
        ),
        f"{_SCAN}/TimeClip.json",
    ),
    "TimeOffset": {"reverse_input": f"{_SCAN}/TimeOffset.json"},
    **{kind: {"disable": f"{_SCAN}/{kind}.json"} for kind in ("AppendClip", "Kronos")},
    "Tracker4": dict.fromkeys(("tracks", "reference_frame"), _TRACKER),
    "VariableSwitch": {  # from Nuke 16 on
        "variable": "https://learn.foundry.com/nuke/content/reference_guide/merge_nodes/"
        "variableswitch.html"
    },
    "VectorBlur2": dict.fromkeys(
        (
            *("uv", "scale", "offset", "blur_type", "grow_bbox"),
            *("uv_offset", "blur_uv", "soft_lines", "normalize"),
        ),
        f"{_SCAN}/VectorBlur2.json",
    ),
    "CornerPin2D": dict.fromkeys(
        (f"enable{corner}" for corner in range(1, 5)), f"{_SCAN}/CornerPin2D.json"
    ),
    "Write": {
        "views": "https://learn.foundry.com/nuke/content/comp_environment/stereoscopic_films/"
        "rendering_stereo_images.html"
    },
    "Root": dict.fromkeys(
        (
            "first_frame",
            "last_frame",
            "proxy",
            "colorManagement",
            "OCIO_config",
            "customOCIOConfigPath",
            "OCIOConfigPath",  # also in deadline-cloud-for-nuke
            "workingSpaceLUT",
            "fps",
            "frame",
            "project_directory",
        ),
        _ROOT,
    ),
}


def knows(kind: str, knob: str) -> bool:
    """Returns whether a native node of a class is known to have a knob."""
    seen = CLASSES.get(kind, {})
    names = {*seen.get("knobs", ()), *seen.get("also_seen_in_scripts", ())}
    return (
        knob in names or knob in EVERYWHERE or knob in _COMMON or knob in DOCUMENTED.get(kind, {})
    )


class _Main:
    """Base of classes whose public names raise off the main thread."""

    def __getattribute__(self, name: str):
        if not name.startswith("_"):
            _on_main(name)
        return object.__getattribute__(self, name)


def _on_main(what: str) -> None:
    if threading.current_thread() is not threading.main_thread():
        raise RuntimeError(f"nuke was used off the main thread: {what}")


# -- knobs ---------------------------------------------------------------------------------------

# INVISIBLE cannot be undone by setVisible, HIDDEN can: NDK, "Knob Flags".
FLAGS = {
    "INVISIBLE": 0x400,
    "HIDDEN": 0x40000,
    "DISABLED": 0x80,
    "STARTLINE": 0x1000,
    "DO_NOT_WRITE": 0x200,
}
TO_SCRIPT, WRITE_NON_DEFAULT_ONLY, WRITE_USER_KNOB_DEFS = 1, 4, 8
# Layers of our frames, of today and of earlier versions.
OUR_LAYERS = {in_file(name, names) for name in CHANNELS for names in (PLAIN, NEWEST)}
FORMAT = (1080, 1920)  # of root, which what has no input has
LABEL_LENGTH = 40  # characters of a line of a label, which Nuke does not wrap


class NoRoot(BaseException):
    """Root was used while a script loads: in Nuke "an internal error", which can't be caught."""


class Knob(_Main):
    _default: object = ""

    def __init__(self, name: str, label: str = "") -> None:
        self._name, self._label, self._tip = name, label, ""
        self._node: Node | None = None
        self._definition: list[str] | None = None  # of a user knob: type, then the rest
        self._flags: set[str] = set()
        self._value, self._keys, self._expression = self._default, {}, ""

    def name(self):
        return self._name

    def Class(self):
        return type(self).__name__

    def label(self):
        return self._label

    def setLabel(self, label):
        self._label = str(label)
        self._modify()

    def tooltip(self):
        return self._tip

    def visible(self):
        return not self._flags & {"INVISIBLE", "HIDDEN"}

    def setVisible(self, visible):
        (self._flags.discard if visible else self._flags.add)("HIDDEN")
        self._modify()

    def setFlag(self, flags):
        self._flags |= {name for name, flag in FLAGS.items() if flags & flag}
        self._modify()

    def _modify(self) -> None:
        if self._node is not None:
            self._node._session._modified = True

    def node(self):
        return self._node

    def value(self):
        return self._value

    def setValue(self, value):
        self._set(self._checked(value))
        return True

    def toScript(self):
        return self._text()

    def fromScript(self, text):
        self._undoable()
        self._set_text(text)
        self._modify()

    def _undoable(self) -> None:
        """Notes how it is now, for undo."""
        before = self._value, self._keys, self._expression

        def back() -> None:
            self._value, self._keys, self._expression = before
            if self._node._session.calls_for_programs:
                self._node._session._knob_changed(self._node, self)

        # What a program sets outside of a step can't be undone, as was measured in Nuke 17.0v3.
        if self._node is not None and self._node._session._undo_begun:
            self._node._session._undoable(back)

    def _checked(self, value):
        return value

    def _set(self, value) -> None:
        before = self._value
        self._undoable()
        self._value, self._keys, self._expression = value, {}, ""
        if self._node is not None:
            session = self._node._session
            session._modified = True  # also if the value is the same
            if value != before and (session._by_artist or session.calls_for_programs):
                session._knob_changed(self._node, self)

    def _set_text(self, text: str) -> None:
        self._value = text

    def _text(self) -> str:
        return str(self._value)


class String_Knob(Knob):
    def _checked(self, value):
        if not isinstance(value, str):
            raise TypeError(f"{self._name}: a string, not {type(value).__name__}")
        return value


class EvalString_Knob(String_Knob):
    def _checked(self, value):
        text = super()._checked(value)
        # Only paths and Tcl hold back slashes: Tcl takes them for escapes. Artists may paste them.
        by_artist = self._node is not None and self._node._session._by_artist
        if not by_artist and re.search(r"\\(?![\[\]$])", text):
            raise ValueError(f"{self._name}: back slashes are Tcl's")
        return text

    def evaluate(self, context=None):
        if not self._value:
            return None
        session = self._node._session
        text = self._value
        if re.search(r"[\[\\$]", text):
            text = nk_script.substitute(text, session._tcl_values(self._node))
        frame = session._frame if context is None else context
        view = session._view
        if isinstance(context, OutputContext):
            frame, view = context._frame, session._views[context._view]
        # Whether a script's variables are known in a context of ours is not documented.
        text = session._with_variables(text) if context is None else text
        text = text.replace("%V", view).replace("%v", view[:1])

        def number(found: re.Match[str]) -> str:
            return f"{int(frame):0{int(found[1] or len(found[0]))}d}"

        path = re.sub(r"#+|%0(\d+)d", number, text).removeprefix(session.drive)
        return self._localised(path)

    def _localised(self, path: str) -> str:
        return path


class File_Knob(EvalString_Knob):
    def value(self):
        return re.sub(r"#+", lambda found: f"%0{len(found[0])}d", self._value)

    def evaluate(self, context=None):
        found = super().evaluate(context)
        return found and os.path.expanduser(found)

    def _localised(self, path: str) -> str:
        """A Read's file evaluates to the local copy once there is one, and it may be used."""
        node, folder = self._node, self._node._session.localised
        if folder is None or node._kind != "Read" or node["localizationPolicy"].value() == "off":
            return path
        above, _, name = path.lstrip("/").rpartition("/")
        copy = folder / above.replace("/", "_") / name
        return str(copy) if copy.exists() else path


class Multiline_Eval_String_Knob(EvalString_Knob):
    def _checked(self, value):
        return String_Knob._checked(self, value)  # read as it is


class Script_Knob(String_Knob):
    def execute(self):
        self._node._session._run(self._value, self._node, self)

    def command(self):
        return self._value


class PyScript_Knob(Script_Knob):
    pass


class Tab_Knob(Knob):
    pass


class Text_Knob(Knob):
    pass


class Link_Knob(Knob):
    pass


class Array_Knob(Knob):
    _default: object = 0.0
    _kind: type = float

    def _checked(self, value):
        if isinstance(value, str) or not isinstance(value, (int, float)):
            raise TypeError(f"{self._name}: a number, not {value!r}")
        return self._kind(value)

    def value(self):
        return self.valueAt(self._node._session._frame) if self._node else self._value

    def valueAt(self, frame):
        if self._expression:
            return self._kind(self._node._session._evaluate(self._expression, self._node))
        if self._keys:
            where = sorted(self._keys)
            return self._kind(np.interp(frame, where, [self._keys[n] for n in where]))
        return self._value

    def isAnimated(self):
        return bool(self._keys)

    def getNumKeys(self):
        return len(self._keys)

    def _set_text(self, text: str) -> None:
        self._keys, self._expression = {}, ""
        if text.startswith("{"):
            (inside,) = words(text)
            if inside.startswith("curve"):
                frame = 0
                for word in words(inside)[1:]:
                    if word.startswith("x"):
                        frame = int(word[1:])
                    elif re.fullmatch(r"-?[\d.]+(e-?\d+)?", word):
                        self._keys[frame] = float(word)
                        frame += 1
            else:
                plain = words(inside)
                self._expression = plain[0] if len(plain) == 1 else inside
        else:
            self._value = self._kind(int(text, 0) if text.startswith("0x") else float(text))

    def _text(self) -> str:
        if self._expression:
            return quote(self._expression) if " " in self._expression else f"{{{self._expression}}}"
        if self._keys:
            keys = " ".join(f"x{n} {self._keys[n]:.6g}" for n in sorted(self._keys))
            return f"{{curve L {keys}}}"
        return f"{self._value:g}" if self._kind is float else str(self._value)


class Double_Knob(Array_Knob):
    pass


class Int_Knob(Array_Knob):
    _default, _kind = 0, int


class Unsigned_Knob(Int_Knob):
    pass


class Boolean_Knob(Array_Knob):
    _default, _kind = False, bool

    def _set_text(self, text: str) -> None:
        if text.startswith("{"):
            super()._set_text(text)
        else:
            self._value = {"true": True, "false": False, "1": True, "0": False}[text]

    def _text(self) -> str:
        text = super()._text()
        return text if text.startswith("{") else text.lower()  # an expression keeps its names


class Disable_Knob(Boolean_Knob):
    pass


class Font_Knob(Knob):
    pass


class XY_Knob(Array_Knob):
    _default = ("0", "0")  # each axis as text: a number, or a curve

    def value(self):
        return nuke_pixels.numbers(self._node, self._name, "")

    def _checked(self, value):
        x, y = value
        return f"{float(x):g}", f"{float(y):g}"

    def _set_text(self, text: str) -> None:
        self._value = tuple(words(text))

    def _text(self) -> str:
        return " ".join(map(quote, self._value))


class _TracksKnob(String_Knob):
    """The knob `tracks` of a Tracker4; cells are counted along its rows."""

    def _cell(self, index: int) -> nuke_shapes.Track:
        row, column = divmod(index, 31)
        track = [*nuke_shapes.read_tracks(self._value).values()][row]
        return {0: track.enabled, 2: track.x, 3: track.y}[column]

    def getValueAt(self, frame, index=0):
        keys = self._cell(index)
        return keys[max(n for n in keys if n <= frame)]

    def getNumKeys(self, index=0):
        return len(self._cell(index))


class _CurvesKnob(String_Knob):
    """The knob `curves` of a Roto."""

    def toElement(self, name):
        shape = nuke_shapes.read_shapes(self._value)[name]

        def animated(x: nuke_shapes.Keys, y: nuke_shapes.Keys) -> types.SimpleNamespace:
            return types.SimpleNamespace(
                getPosition=lambda t: (nuke_shapes.value(x, t), nuke_shapes.value(y, t)),
                getControlPointKeyTimes=lambda: sorted(map(float, x)),
            )

        return [types.SimpleNamespace(center=animated(x, y)) for x, y in shape.knots[1::3]]


class Enumeration_Knob(Unsigned_Knob):
    _default: object = ""

    def __init__(self, name: str, label: str = "", items: tuple[str, ...] = ()) -> None:
        self._items, self._given = list(items), list(items)  # _given: by its definition
        super().__init__(name, label)
        self._value = self._items[0] if self._items else ""

    def value(self):
        return self._value

    def values(self):
        return list(self._items)

    def setValues(self, items):
        self._modify()
        self._items = [str(i) for i in items]
        if self._value not in self._items:
            self._value = self._items[0]

    def _checked(self, value):
        if isinstance(value, int):
            return self._items[value]
        if value not in self._items:
            raise ValueError(f"{self._name} has no {value!r}, but {self._items}")
        return value

    def valueAt(self, frame):
        return self._items.index(self._value)

    def _set_text(self, text: str) -> None:
        # Where the script has not kept the items that were set later, Nuke shows the first.
        self._value = text if text in self._items else self._items[0]

    def _text(self) -> str:
        return str(self._value)


class _Colorspace_Knob(Enumeration_Knob):
    """An enumeration whose items are a value, and after a tab what menus show."""

    def Class(self):
        return "Enumeration_Knob"

    def value(self):
        return self._value.partition("\t")[0]

    def _text(self) -> str:
        return self.value()

    def _checked(self, value):
        return next((i for i in self._items if i.partition("\t")[0] == value), None) or (
            super()._checked(value)
        )


class ColorChip_Knob(Unsigned_Knob):  # tile_color and the like: one number
    def _text(self) -> str:
        return hex(self._value)


_USER = {
    "1": EvalString_Knob,
    "2": File_Knob,
    "3": Int_Knob,
    "4": Enumeration_Knob,
    "6": Boolean_Knob,
    "7": Double_Knob,
    "12": XY_Knob,
    "20": Tab_Knob,
    "22": PyScript_Knob,
    "26": Text_Knob,
    "41": Link_Knob,
    "43": Multiline_Eval_String_Knob,
}


def user_knob(definition: str) -> Knob:
    """Builds a knob from the text of `addUserKnob {...}`: type, name, then `l` label, `t` tooltip,
    `T` text, `M` menu, `R` range, and flags."""
    number, name, *rest = words(definition)
    knob = _USER[number](name)
    knob._definition = [number]
    i = 0
    while i < len(rest):
        word = rest[i]
        if word[0] in "+-":
            if word[1:] not in FLAGS:
                raise nk_script.BadScript(f"{name}: no flag {word}")
            (knob._flags.add if word[0] == "+" else knob._flags.discard)(word[1:])
            if word == "-STARTLINE":
                knob._definition += [word]
        elif word == "R":
            knob._definition += rest[i : i + 3]
            i += 2
        elif word == "n" and number == "20":  # begins or ends a group of knobs
            knob._definition += rest[i : i + 2]
            i += 1
        elif word in "ltTM" and len(word) == 1:
            i += 1
            if word == "l":
                knob._label = rest[i]
            elif word == "t":
                knob._tip = rest[i]
            elif word == "T":
                knob._value = rest[i]
            else:
                knob._items = words(rest[i])
                knob._value = knob._items[0]
                knob._given = list(knob._items)
        else:
            raise nk_script.BadScript(f"{name}: what is {word}?")
        i += 1
    return knob


def _user_definition(knob: Knob) -> str:
    number, *rest = knob._definition
    made = [number, knob._name, "l", knob._label]
    made += ["t", knob._tip] * bool(knob._tip)
    if isinstance(knob, (PyScript_Knob, Text_Knob, Link_Knob)):
        made += ["T", str(knob._value)]
    if isinstance(knob, Enumeration_Knob):
        items = knob._items if _session.keeps_items else knob._given
        made += ["M", " ".join(map(quote, items))]
    made += rest + [f"+{flag}" for flag in sorted(knob._flags)]
    return " ".join(map(quote, made))


# Knobs of every node whose types matter: Nuke's stubs, and `Node.knobs` of Nuke 17 in _SCAN. The
# last ones hold what Nuke keeps for itself.
_COMMON: dict[str, type[Knob]] = {
    "disable": Disable_Knob,
    **dict.fromkeys(("selected", "hide_input", "useLifetime", "dope_sheet"), Boolean_Knob),
    **dict.fromkeys(("postage_stamp", "cached", "bookmark"), Boolean_Knob),
    **dict.fromkeys(("lifetimeStart", "lifetimeEnd"), Array_Knob),
    **dict.fromkeys(("tile_color", "gl_color", "note_font_color"), ColorChip_Knob),
    "note_font": Font_Knob,
    **dict.fromkeys(("xpos", "ypos"), Int_Knob),
    "indicators": Unsigned_Knob,
}

# Types and defaults of native knobs that are used; others keep their text.
_NATIVE: dict[str, dict[str, Callable[[str], Knob]]] = {
    "Read": {
        **dict.fromkeys(("file", "proxy"), File_Knob),
        "frame": EvalString_Knob,
        **dict.fromkeys(("first", "last", "origfirst", "origlast"), Int_Knob),
        **dict.fromkeys(("raw", "premultiplied", "auto_alpha", "origset"), Boolean_Knob),
        **dict.fromkeys(
            ("before", "after"),
            lambda n: Enumeration_Knob(n, n, ("hold", "loop", "bounce", "black")),
        ),
        "on_error": lambda n: Enumeration_Knob(
            n, n, ("error", "black", "checkerboard", "nearest frame")
        ),
        "frame_mode": lambda n: Enumeration_Knob(n, n, ("expression", "start at", "offset")),
        "reload": Script_Knob,
        "colorspace": lambda n: _Colorspace_Knob(n, n, ("default (sRGB)", "linear", "sRGB")),
        "localizationPolicy": lambda n: Enumeration_Knob(
            n, n, ("fromAutoLocalizePath", "on", "onDemand", "off")
        ),
    },
    "Write": {
        "file": File_Knob,
        **dict.fromkeys(("raw", "create_directories", "use_limit"), Boolean_Knob),
    },
    "Switch": {"which": Double_Knob},
    "TimeClip": {"reverse": Boolean_Knob},
    "TimeOffset": {"time_offset": Double_Knob, "reverse_input": Boolean_Knob},
    "Tracker4": {"tracks": _TracksKnob},
    "Roto": {"curves": _CurvesKnob},
    "Input": {"number": Int_Knob},
    "Root": {
        **dict.fromkeys(("first_frame", "last_frame", "frame"), Int_Knob),
        "proxy": Boolean_Knob,
        **dict.fromkeys(("customOCIOConfigPath", "OCIOConfigPath", "project_directory"), File_Knob),
    },
}
_DEFAULTS = {
    ("Read", "first"): 1,
    ("Read", "last"): 1,
    ("Root", "first_frame"): 1,
    ("Root", "last_frame"): 100,
    ("Root", "colorManagement"): "Nuke",
    ("Root", "workingSpaceLUT"): "linear",
    ("Root", "OCIO_config"): "nuke-default",
}


# -- nodes ---------------------------------------------------------------------------------------


class Node:
    def __init__(self, session: Session, kind: str, parent: Group | None) -> None:
        self._session, self._kind, self._parent = session, kind, parent
        self._inputs: list[Node | None] = []
        self._knobs: dict[str, Knob] = {}
        self._attached = True
        self._clones: list[Node] = []

    def __getattribute__(self, name: str):
        if not name.startswith("_"):
            _on_main(name)
            if not object.__getattribute__(self, "_attached"):
                raise ValueError("A PythonObject is not attached to a node")
        return object.__getattribute__(self, name)

    def __getitem__(self, name: str) -> Knob:
        found = self.knob(name)
        if found is None:
            raise NameError(f"knob {name} does not exist")
        return found

    def Class(self):
        return self._kind

    def knob(self, name):
        if name in self._knobs:
            return self._knobs[name]
        if not knows(self._kind, name) or name == "inputs":
            return None
        knob = {**_COMMON, **_NATIVE.get(self._kind, {})}.get(name, String_Knob)(name)
        knob._value = _DEFAULTS.get((self._kind, name), knob._value)
        if (self._kind, name) in self._session.defaults:
            knob._set_text(self._session.defaults[self._kind, name])
        if (self._kind, name) == ("Write", "views"):
            knob._value = " ".join(self._session._views)
        knob._node = self
        self._knobs[name] = knob
        return knob

    def knobs(self):
        common = {n: kind(n) for n, kind in _COMMON.items() if n not in self._knobs}
        return {**common, **self._knobs}  # also those that nobody has asked for yet

    def addKnob(self, knob):
        (number,) = [n for n, kind in _USER.items() if type(knob) is kind]
        knob._definition, knob._node = [number], self
        self._knobs[knob._name] = knob
        self._session._modified = True

    def clones(self):
        return len(self._clones)

    def writeKnobs(self, flags=0):
        assert flags == WRITE_NON_DEFAULT_ONLY | WRITE_USER_KNOB_DEFS | TO_SCRIPT
        lines = []
        for name, value in self._session._statement(self, {}).knobs:
            knob = self._knobs.get(name)
            if name in ("name", "xpos", "ypos", "selected"):
                continue  # without WRITE_ALL
            if knob is not None and value in (type(knob)(name)._text(), ""):
                continue  # also a user knob that is 0, whatever its gizmo begins with
            lines.append(f"{name} {quote(value)}")
        return "\n".join(lines)

    def readKnobs(self, text):
        flat = words(text)
        for name, value in zip(flat[::2], flat[1::2], strict=True):
            if name == "addUserKnob":
                knob = user_knob(value)
                knob._node = self
                self._knobs[knob._name] = knob
            else:
                self[name].fromScript(value)

    def setSelected(self, selected):
        self["selected"]._value = bool(selected)

    def selectOnly(self):
        for other in self._parent._children:
            other["selected"]._value = other is self

    def name(self):
        return self["name"].value()

    def setName(self, name):
        if self._parent.node(name) not in (None, self):
            name = self._session._free_name(self._parent, name)
        self["name"].setValue(name)

    def fullName(self):
        above = self._parent
        inside = above is not None and above is not self._session._root
        return f"{above.fullName()}.{self.name()}" if inside else self.name()

    def parent(self):
        return self._parent

    def input(self, index):
        return self._inputs[index] if index < len(self._inputs) else None

    def inputs(self):
        return len(self._inputs)

    def setInput(self, index, node):
        self._inputs += [None] * (index + 1 - len(self._inputs))
        self._inputs[index] = node
        return True

    def dependent(self, what, forceEvaluate=True):
        nodes = _all_inside(self._session._root)
        return [n for n in nodes if any(source is self for source in n._inputs)]

    def xpos(self):
        return self["xpos"].value()

    def ypos(self):
        return self["ypos"].value()

    def shown(self):
        return self.name() in self._session.shown

    def setXYpos(self, x, y):
        self["xpos"]._value, self["ypos"]._value = x, y

    def firstFrame(self):
        return self._session._range(self)[0]

    def lastFrame(self):
        return self._session._range(self)[1]

    def sample(self, channel, x, y):
        picture = self._session.look(self, self._session._frame)
        plane = picture.get(channel, np.zeros_like(picture["red"]))
        return float(plane[plane.shape[0] - 1 - int(y), int(x)])

    def width(self):
        return self._session._picture(self, self._session._frame)["red"].shape[1]

    def format(self):
        try:
            shape = self._session._picture(self, self._session._frame)["red"].shape
        except RuntimeError:  # no such file
            shape = FORMAT
        # Whether it is the proxy's in proxy mode is not documented.
        return Format([side // (1 + self._session._root["proxy"].value()) for side in shape])

    def metadata(self):
        return self._session._metadata(self)


class Group(Node):
    def __init__(self, *arguments) -> None:
        super().__init__(*arguments)
        self._children: list[Node] = []

    def output(self):
        return next((n for n in self._children if n._kind == "Output"), None)

    def __enter__(self):
        self._session._contexts.append(self)
        return self

    def __exit__(self, *_):
        self._session._contexts.pop()

    def nodes(self):
        return list(self._children)

    def node(self, name):
        first, _, rest = name.partition(".")
        found = next((n for n in self._children if n.name() == first), None)
        return found.node(rest) if rest and found is not None else found


class Format(_Main):
    def __init__(self, shape) -> None:
        self._shape = shape

    def width(self):
        return self._shape[1]

    def height(self):
        return self._shape[0]


class Root(Group):
    pass


class Precomp(Group):
    pass


class LiveGroup(Precomp):
    """https://learn.foundry.com/nuke/developers/120/pythonreference/nuke.LiveGroup-class.html"""


class OutputContext(_Main):
    def __init__(self) -> None:
        self._frame, self._view = 0, 0

    def setFrame(self, frame):
        self._frame = frame

    def setView(self, view):
        self._view = int(view)

    def viewFromName(self, name):
        return _session._views.index(name)


class Menu(_Main):
    def __init__(self) -> None:
        self._commands: dict[str, tuple[str, str]] = {}

    def addCommand(self, name, command="", shortcut="", icon=""):
        self._commands[name] = command, icon


# -- the program ---------------------------------------------------------------------------------

_session: Session


class Session:
    """A running Nuke.

    Args:
        gui: False is `nuke -t`.
        views: of its script.
    """

    def __init__(self, gui: bool = True, views: tuple[str, ...] = ("main",)) -> None:
        global _session
        _session = self
        if gui:
            os.environ.pop("QT_QPA_PLATFORM_PLUGIN_PATH", None)  # cv2's, for its own Qt
            os.environ["QT_QPA_PLATFORM"] = "offscreen"
            self._app = QApplication.instance() or QApplication([])
        self._gui, self._views, self._frame = gui, list(views), 1
        self._view = views[0]  # that is drawn
        self._modified = self._loading = self._rendering = self._by_artist = False
        self.faults: list[str] = []  # what nobody may do, even if the exception is caught
        self._labels: dict[Node, tuple[str, ...]] = {}  # the texts of those that were evaluated
        self.drive = ""  # where files lie on Windows, as "C:"
        self.while_loading: Callable[[], object] = lambda: None  # called after each node
        self.layers: dict[str, str] = {}  # of the script: name -> their text
        self.defaults: dict[tuple[str, str], str] = {}  # that a studio sets: class, knob -> text
        self._undo: list[Callable[[], object]] = []
        self._undo_off = 0
        self._undo_begun: list[tuple[str, int]] = []  # the name, and steps before each `begin`
        self.undo_names: list[str] = []  # of the steps that had one
        self._this: list[tuple[Node, Knob | None]] = []
        self._running: list[Knob] = []
        self._load_calls: list[Callable[[], None]] = []
        self._close_calls: list[Callable[[], None]] = []
        self._save_calls: list[Callable[[], None]] = []
        self.calls_for_programs = True  # whether knobChanged is called for those, and for undo
        self.keeps_items = True  # whether scripts have the items that menus of a user were given
        self._main_calls: list[Callable[[], object]] = []
        self.plugin_path: list[Path] = []
        self.said: list[str] = []  # on the terminal
        self.messages: list[str] = []  # in windows
        self.picked = ""  # what the artist chooses in file dialogs
        self.shown: list[str] = []  # nodes whose properties were opened
        self.panels: dict[str, str] = {}  # id -> class
        self.menus: dict[str, Menu] = {}
        self.localised: Path | None = None  # where local copies of Reads' files lie, if anywhere
        self._filters: list[Callable[[str], str | None]] = []
        self.variables: dict[str, str] = {}  # of the script, by name: from Nuke 16 on
        self.longest = 0.0  # longest time that the event loop was blocked, s
        self._root = self._new_root()
        self._drawn: dict[tuple[Node, int], Picture] | None = None  # by `look`
        self._contexts: list[Group] = []  # groups that nodes are created in
        self.module = self._module()

    def _module(self) -> types.ModuleType:
        module = types.ModuleType("nuke")
        names = {
            "GUI": self._gui,
            "NUKE_VERSION_STRING": "15.1v3",
            "NUKE_VERSION_MAJOR": 15,
            "INVISIBLE": FLAGS["INVISIBLE"],
            "INPUTS": 1,
            "HIDDEN_INPUTS": 4,
            "DO_NOT_WRITE": FLAGS["DO_NOT_WRITE"],
            "allNodes": self._all_nodes,
            "addOnScriptClose": self._close_calls.append,
            "addOnScriptLoad": self._load_calls.append,
            "WRITE_NON_DEFAULT_ONLY": WRITE_NON_DEFAULT_ONLY,
            "WRITE_USER_KNOB_DEFS": WRITE_USER_KNOB_DEFS,
            "TO_SCRIPT": TO_SCRIPT,
            "scriptReadText": self._read_text,
            "tcl": nk_script.command,
            "clone": lambda node, args="", inpanel=None: self.clone(node),
            "addFilenameFilter": self._filters.append,
            "filenameFilter": self._filter,
            "evaluateGsv": lambda expression, node=None: self._with_variables(expression),
            "createNode": self._create_node,
            "delete": self._delete,
            "addOnScriptSave": self._save_calls.append,
            "execute": self._execute,
            "executing": lambda: self._rendering,
            "executeInMainThread": self._later,
            "executeInMainThreadWithResult": self._now,
            "frame": self._at,
            "knobDefault": self._knob_default,
            "getFilename": lambda *_: self.picked or None,
            "layers": lambda: list(self.layers),
            "menu": self._menu,
            "message": self._message,
            "modified": self._modified_flag,
            "nodeCopy": self._copy,
            "nodePaste": self._paste,
            "pluginAddPath": self._add_path,
            "root": self._the_root,
            "selectedNodes": lambda: [n for n in self._root._children if n["selected"].value()],
            "scriptClear": self._clear,
            "scriptOpen": self._open,
            "scriptSaveAs": self._save,
            "thisKnob": lambda: self._this[-1][1],
            "thisNode": lambda: self._this[-1][0],
            "toNode": self._find,
            "tprint": lambda text: self.said.append(text),
            "show": lambda node: self.shown.append(node.name()),
            "zoomToFitSelected": lambda: None,
            "undo": self._undo_one,
            "usingOcio": lambda: self._the_root()["colorManagement"].value() == "OCIO",
            "views": lambda: list(self._needs_root("views")._views),
        }
        for name, value in names.items():
            setattr(module, name, self._guarded(name, value) if callable(value) else value)
        groups = (Group, Root, Precomp, LiveGroup)
        for kind in (Node, *groups, Format, OutputContext, Menu, *_knob_classes()):
            setattr(module, kind.__name__, kind)
        module.Undo = type(
            "Undo",
            (),
            {
                "begin": staticmethod(self._begin_undo),
                "end": staticmethod(self._end_undo),
                "disable": staticmethod(lambda: self._switch_undo(1)),
                "enable": staticmethod(lambda: self._switch_undo(-1)),
            },
        )
        return module

    def _filter(self, path: str) -> str:
        for one in reversed(self._filters):
            path = one(path) or path
        return path

    def _with_variables(self, text: str) -> str:
        """Fills in the script's variables; `%V`, `%v`, `%d` and unknown names stay."""
        own = {name: value for name, value in self.variables.items() if name not in ("v", "V", "d")}

        def filled(found: re.Match[str]) -> str:
            return own.get(found[1] or found[2], found[0])

        return re.sub(r"%(?:\{([\w.]+)\}|(\w+))", filled, text)

    def _opened(self, path: str) -> Path:
        """Returns where Nuke opens a file: relative paths begin in the project's directory."""
        folder = self._root["project_directory"].evaluate() or ""
        return Path(folder, self._with_variables(path))

    @staticmethod
    def _guarded(name: str, call: Callable) -> Callable:
        def run(*arguments, **named):
            if not name.startswith("executeInMainThread"):
                _on_main(name)
            return call(*arguments, **named)

        return run

    # -- what the artist does

    def press(self, node: Node, knob: str) -> None:
        """Presses a button."""
        assert node[knob].visible(), f"{knob} is hidden"
        self._held(node[knob].execute)

    def set(self, node: Node, knob: str, value: object) -> None:
        """Changes a knob as the artist does."""
        self._by_artist = True
        self._begin_undo("")
        try:
            self._held(lambda: node[knob].setValue(value))
        finally:
            self._by_artist = False
            self._end_undo()

    def clone(self, node: Node) -> Node:
        """Clones a node (Alt+K): it shares all knobs but its place, and so its name."""
        made = type(node)(self, node._kind, node._parent)
        own = ("xpos", "ypos", "selected")
        made._knobs = {name: knob for name, knob in node._knobs.items() if name not in own}
        made._inputs = list(node._inputs)
        for one in (node, *node._clones):
            one._clones.append(made)
            made._clones.append(one)
        node._parent._children.append(made)
        self._callback("onCreate", made)
        return made

    def label(self, node: Node) -> str:
        """Returns a node's label as the tile shows it."""
        text = nk_script.substitute(node["label"].value(), self._tcl_values(node))
        assert all(len(line) <= LABEL_LENGTH for line in text.split("\n")), text
        return text

    def render_all(self, first: int, last: int) -> None:
        """Renders all Writes, also inside groups: Render > Render all, or `nuke -x`."""
        for node in list(_all_inside(self._root)):
            if node._kind == "Write" and not node["disable"].value():
                self._execute(node, first, last)

    def pump(self, test: Callable[[], object], seconds: float, what: str) -> None:
        """Runs the event loop until a condition holds."""
        until = time.monotonic() + seconds
        while not test():
            assert time.monotonic() < until, f"waited {seconds} s for {what}"
            self._held(lambda: self.process(0.01))
            while self._main_calls:
                self._held(self._main_calls.pop(0))
            self._check_labels()

    def process(self, seconds: float) -> None:
        """Runs an event loop for a time, as Nuke's own or that of a window."""
        loop = QEventLoop()
        QTimer.singleShot(int(seconds * 1000), loop.quit)
        loop.exec()

    def in_event(self, call: Callable[[], object]) -> None:
        """Calls a function from an event, as a menu of Nuke does."""
        done: list[object] = []
        QTimer.singleShot(0, lambda: done.append(call()))
        self.pump(lambda: done, 60, "the event")

    def _check_labels(self) -> None:
        """Evaluates labels that may have changed, as their tiles do."""
        for node in self._root._children:
            if "state" in node._knobs:
                texts = tuple(node[k].value() for k in ("label", "state", "tile") if node.knob(k))
                if self._labels.get(node) != texts:
                    self._labels[node] = texts
                    self.label(node)

    def _held(self, call: Callable[[], object]) -> None:
        begun = time.monotonic()
        call()
        self.longest = max(self.longest, time.monotonic() - begun)

    def look(self, node: Node, frame: int, view: str = "") -> Picture:
        """Returns what a viewer shows; of the first view if none is named."""
        before, self._frame, self._drawn = self._frame, frame, {}
        self._view = view or self._views[0]
        try:
            return self._picture(node, frame)
        finally:
            self._frame, self._drawn, self._view = before, None, self._views[0]

    # -- nuke's functions

    def _knob_default(self, classknob: str, value: str) -> None:
        """Sets a default of all nodes of a class that are created from now on, also by a script."""
        kind, _, knob = classknob.partition(".")
        assert knows(kind, knob), classknob
        self.defaults[kind, knob] = value

    def _needs_root(self, what: str) -> Session:
        if self._loading:
            self.faults.append(f"nuke.{what} while a script loads")
            raise NoRoot(what)
        return self

    def _the_root(self) -> Root:
        return self._needs_root("root")._root

    def _modified_flag(self, state: bool | None = None) -> bool:
        self._needs_root("modified")
        if state is not None:
            self._modified = state
        return self._modified

    def _all_nodes(self, kind: str = "", group: Group | None = None, recurseGroups: bool = False):
        nodes = (group or self._root)._children
        if recurseGroups:
            nodes = list(_all_inside(group or self._root))
        return [n for n in nodes if not kind or n.Class() == kind]

    def _find(self, name: str) -> Node | None:
        return self._the_root() if name == "root" else self._root.node(name)

    def _at(self, frame: int | None = None) -> int:
        self._needs_root("frame")
        if frame is not None:
            self._frame = frame
        return self._frame

    def _message(self, text: str) -> None:
        if not self._gui:
            raise RuntimeError("there are no windows in terminal mode")
        self.messages.append(text)

    def _menu(self, name: str) -> Menu:
        if not self._gui:
            raise RuntimeError("there are no menus in terminal mode")
        return self.menus.setdefault(name, Menu())

    def _add_path(self, path: str, addToSysPath: bool = True) -> None:
        self.plugin_path.insert(0, Path(path))

    def _later(self, call: Callable, args=(), kwargs=None) -> None:
        if not self._gui:
            raise RuntimeError("Invalid function call in non-gui mode")
        if threading.current_thread() is threading.main_thread():
            raise RuntimeError("executeInMainThread on the main thread: Nuke would hang")
        args = args if isinstance(args, tuple) else (args,)
        self._main_calls.append(lambda: call(*args, **(kwargs or {})))

    def _now(self, call: Callable, args=(), kwargs=None):
        done = threading.Event()
        result: list[object] = []

        def run() -> None:
            result.append(call(*(args if isinstance(args, tuple) else (args,)), **(kwargs or {})))
            done.set()

        self._later(run)
        done.wait()
        return result[0]

    def _switch_undo(self, by: int) -> None:
        _on_main("Undo")
        self._undo_off += by

    def _undoable(self, back: Callable[[], object]) -> None:
        if not self._undo_off:
            self._undo.append(back)

    def _begin_undo(self, name: str) -> None:
        _on_main("Undo")
        self._undo_begun.append((name, len(self._undo)))

    def _end_undo(self) -> None:
        name, begun = self._undo_begun.pop()
        steps = self._undo[begun:]
        self._undo[begun:] = [lambda: [step() for step in reversed(steps)]] * bool(steps)
        self.undo_names += [name] * bool(steps and name)

    def _undo_one(self) -> None:
        back = self._undo.pop()
        self._switch_undo(1)
        try:
            back()
        finally:
            self._switch_undo(-1)

    # -- scripts

    def _new_root(self) -> Root:
        root = Root(self, "Root", None)
        root["name"]._value = "Root"
        return root

    def _create_node(self, kind: str, knobs: str = "", inpanel: bool = True) -> Node:
        for folder in self.plugin_path:
            if (folder / f"{kind}.gizmo").exists():
                text = (folder / f"{kind}.gizmo").read_text()
                statements = nk_script.parse(text, layers=self.layers)
                break
        else:
            statements = [Statement(kind, [("name", kind)])]
        (statement,) = statements
        group = self._contexts[-1] if self._contexts else self._root
        name = self._free_name(group, kind + "1")
        statement.knobs = [(k, v) for k, v in statement.knobs if k != "name"] + [("name", name)]
        (made,) = self._build(statements, group)
        flat = words(knobs)
        for name, value in zip(flat[::2], flat[1::2], strict=True):
            made[name].fromScript(value)
        self._undoable(lambda: self._remove(made))
        return made

    def _build(
        self, statements: list[Statement], parent: Group, above: Mapping[int, Node] = {}
    ) -> list[Node]:
        made: dict[int, Node] = dict(above)
        for one in statements:
            if one.kind == "Root":
                for name, value in one.knobs:
                    if name != "inputs":
                        self._root[name]._set_text(value)
                continue
            if one.kind not in CLASSES and one.kind not in DOCUMENTED:
                raise RuntimeError(f"{one.kind}: Unknown command")
            if one.clone_of is not None:
                node = made[id(one)] = self.clone(made[id(one.clone_of)])
                node._inputs = [made.get(id(source)) for source in one.inputs]
                for name, value in one.knobs:
                    if name != "inputs":
                        node[name]._set_text(value)
                continue
            self._check_layers(one)
            node = (Group if one.kind == "Group" else Node)(self, one.kind, parent)
            made[id(one)] = node
            node._inputs = [made.get(id(source)) for source in one.inputs]
            for name, value in one.knobs:
                if name == "addUserKnob":
                    knob = user_knob(value)
                    knob._node = node
                    node._knobs[knob._name] = knob
                elif name != "inputs":
                    if node.knob(name) is None:
                        raise RuntimeError(f"{one.kind}: no such knob {name}")
                    node[name]._set_text(value)
                    self._knob_changed(node, node[name])  # not only for changes by a user
            if not node.name():
                node["name"]._value = f"{one.kind}1"
            if parent.node(node.name()) is not None:
                node["name"]._value = self._free_name(parent, node.name())
            parent._children.append(node)
            self._callback("onCreate", node)
            if self._loading and parent is self._root:
                self.while_loading()
            if isinstance(node, Group):
                self._build(one.children, node)
        return [node for key, node in made.items() if key not in above]

    def _check_layers(self, one: Statement) -> None:
        """Refuses a node that names a layer of our frames which the script does not have."""
        for knob, value in one.knobs:
            if knob in ("channels", "uv", "in", "out"):
                named = {value}
            elif re.fullmatch(r"(from|to|expr|temp_expr)\d", knob):
                named = {name.partition(".")[0] for name in re.findall(r"\w+\.\w+", value)}
            else:
                continue
            for layer in named & OUR_LAYERS - self.layers.keys():
                raise RuntimeError(f"{one.kind} {one.knob('name')}: there is no layer {layer}")

    def _free_name(self, parent: Group, name: str) -> str:
        stem = name.rstrip("0123456789")
        number = int(name[len(stem) :] or 1)
        while parent.node(f"{stem}{number}") is not None:
            number += 1
        return f"{stem}{number}"

    def _statement(self, node: Node, made: dict[int, Statement]) -> Statement:
        knobs: list[tuple[str, str]] = []
        for knob in node._knobs.values():
            if knob._definition is not None:
                knobs.append(("addUserKnob", _user_definition(knob)))
                if isinstance(knob, (Tab_Knob, PyScript_Knob, Text_Knob, Link_Knob)):
                    continue
            if "DO_NOT_WRITE" in knob._flags:
                continue
            if not isinstance(knob, Script_Knob):
                knobs.append((knob._name, knob._text()))
        one = Statement(node._kind, knobs)
        made[id(node)] = one
        if isinstance(node, Group) and node is not self._root:
            one.children = self._statements(node._children)
        return one

    def _statements(self, nodes: list[Node]) -> list[Statement]:
        made: dict[int, Statement] = {}
        all_of_them = []
        for node in nodes:
            first = next((made[id(other)] for other in node._clones if id(other) in made), None)
            one = self._statement(node, made)
            if first is not None:
                own = [(name, value) for name, value in one.knobs if name in ("xpos", "ypos")]
                one = made[id(node)] = Statement(node._kind, own, clone_of=first)
            all_of_them.append(one)
        for node, one in zip(nodes, all_of_them, strict=True):
            one.inputs = [made.get(id(source)) for source in node._inputs]
        return all_of_them

    def _save(self, path: str, overwrite: bool = False) -> None:
        if Path(path).exists() and not overwrite:
            raise RuntimeError(f"{path} exists")
        for call in self._save_calls:
            call()
        self._root["name"]._value = path
        self._modified = False
        root = self._statement(self._root, {})
        nodes = self._statements(self._root._children)
        Path(path).write_text(nk_script.write(nodes, root, layers=self.layers))

    def _clear(self) -> None:
        for call in self._close_calls:
            call()
        for node in _all_inside(self._root):
            node._attached = False
        self._root = self._new_root()
        self._undo.clear()
        self._labels.clear()
        self.layers.clear()

    def _open(self, path: str) -> None:
        self._clear()
        statements = nk_script.parse(Path(path).read_text(), layers=self.layers)
        self._loading = True
        try:
            self._build(statements, self._root)
        finally:
            self._loading = False
        self._root["name"]._value = path
        self._modified = False
        for call in self._load_calls:
            call()

    def _read_text(self, text: str) -> None:
        group = self._contexts[-1] if self._contexts else self._root
        made = self._build(nk_script.parse(text, layers=self.layers), group)
        self._undoable(lambda: [self._remove(node) for node in made])

    def _copy(self, path: str) -> None:
        chosen = [n for n in self._root._children if n["selected"].value()]
        Path(path).write_text(nk_script.write(self._statements(chosen), layers=self.layers))

    def _paste(self, path: str) -> Node:
        group = self._contexts[-1] if self._contexts else self._root
        chosen = [n for n in group._children if n["selected"].value()]
        above = Statement("", []) if chosen else None
        statements = nk_script.parse(Path(path).read_text(), above, self.layers)
        made = self._build(statements, group, {id(above): chosen[-1]} if chosen else {})
        self._undoable(lambda: [self._remove(node) for node in made])
        for node in group._children:
            node["selected"]._value = node in made
        return made[-1]

    def _delete(self, node: Node) -> None:
        (text,) = self._statements([node])
        inputs = list(node._inputs)
        everything = list(_all_inside(self._root))
        fed = [(n, i) for n in everything for i, s in enumerate(n._inputs) if s is node]
        self._remove(node)

        def back() -> None:
            (again,) = self._build([text], self._root)
            again._inputs = inputs
            for other, i in fed:
                other._inputs[i] = again

        self._undoable(back)

    def _remove(self, node: Node) -> None:
        self._callback("onDestroy", node)
        for other in _all_inside(self._root):
            other._inputs = [None if source is node else source for source in other._inputs]
        node._parent._children.remove(node)
        node._attached = False
        for inside in _all_inside(node):
            inside._attached = False

    # -- callbacks, expressions

    def _run(self, text: str, node: Node, knob: Knob | None = None) -> None:
        self._this.append((node, knob))
        self._contexts += [node] * isinstance(node, Group)
        try:
            exec(compile(text, node._kind, "exec"), {"nuke": self.module})
        except BaseException as error:
            if knob is None or not isinstance(knob, PyScript_Knob):  # a callback
                self.faults.append(f"a callback raised {error!r}")
            raise
        finally:
            self._this.pop()
            del self._contexts[len(self._contexts) - isinstance(node, Group) :]

    def _callback(self, name: str, node: Node) -> None:
        if node.knob(name) is not None:
            self._run(node[name].value(), node)

    def _knob_changed(self, node: Node, knob: Knob) -> None:
        text = node["knobChanged"].value() if node.knob("knobChanged") else ""
        if text and knob not in self._running and knob._name not in ("knobChanged", "onCreate"):
            self._running.append(knob)
            by_artist, self._by_artist = self._by_artist, False
            try:
                self._run(text, node, knob)
            finally:
                self._running.pop()
                self._by_artist = by_artist

    def _tcl_values(self, node: Node) -> dict[str, str]:
        root = self._root["name"].value()
        own = {name: knob._text() for name, knob in node._knobs.items()}
        for other in self._root._children:
            for name, knob in other._knobs.items():
                own[f"{other['name'].value()}.{name}"] = knob._text()
        values = {**own, "root.name": "" if root == "Root" else root}
        # What single lines and files hold is evaluated too.
        for name, knob in node._knobs.items():
            if isinstance(knob, EvalString_Knob) and re.search(r"[\[\\$]", own[name]):
                values[name] = nk_script.substitute(own[name], values)
        return values

    def _evaluate(self, expression: str, node: Node) -> float:
        if "[" in expression:
            expression = nk_script.substitute(expression, {}, self._metadata(node))

        gui = self._gui and not self._rendering
        expression = expression.replace("$gui", str(int(gui)))

        def number(found: re.Match[str]) -> str:
            where, _, name = found[0].rpartition(".")
            if found[0] == "frame":
                return str(self._frame)
            if where in ("", "parent"):
                whose = node._parent if where else node
                return repr(float(whose[name].valueAt(self._frame)))  # in Nuke 1/2 is not 0
            other = node.input(0) if where == "input" else node._parent.node(where)
            if name not in ("width", "height"):
                return repr(float(other[name].valueAt(self._frame)))
            picture = self._picture(other, self._frame)["red"]
            return repr(float(picture.shape[{"height": 0, "width": 1}[name]]))

        names = r"([A-Za-z]\w*\.)?[a-z_]\w*(?!\w*\()"
        return nk_script.number(re.sub(names, number, expression))

    def _metadata(self, node: Node | None) -> dict[str, object]:
        """Returns the metadata that reaches a node on the session's frame."""
        while node is not None and node._kind != "Read":
            if node._kind == "Group":
                (node,) = [n for n in node._children if n._kind == "Output"]
            elif node._kind == "Input":
                node = node._parent.input(node["number"].value())
            else:
                which = int(node["which"].value()) if node._kind == "Switch" else 0
                node = node.input(which)
        if node is None or node["disable"].value():
            return {}
        spec = oiio.ImageBuf(str(self._opened(node["file"].evaluate(self._frame)))).spec()
        return {f"exr/{a.name}": a.value for a in spec.extra_attribs}

    # -- pictures

    def _range(self, node: Node) -> tuple[int, int]:
        if node._kind == "Read":
            return node["first"].value(), node["last"].value()
        sources = node._inputs
        if node._kind == "Input":
            sources = [node._parent.input(node["number"].value())]
        elif isinstance(node, Group) and node.knob("reenact_kind") is None:
            sources = [node.output()]
        for source in sources:
            if source is not None:
                return self._range(source)
        return self._root["first_frame"].value(), self._root["last_frame"].value()

    def _execute(self, write: Node, first: int, last: int, increment: int = 1, views=None) -> None:
        assert write._kind == "Write"
        if write["disable"].value():
            raise RuntimeError(f"{write.fullName()} is disabled")
        if not write["file"].value():
            raise RuntimeError(f"{write.fullName()}: no file name")
        context = OutputContext()
        self._view, own = (views or self._views)[0], write["views"].value().split()
        if self._view not in own:
            raise RuntimeError(f"{write.fullName()}: its views are {own}")
        if len(own) > 1 and "%V" not in write["file"].value():
            raise RuntimeError(f"{write.fullName()}: {own} would go into one EXR")
        context.setView(context.viewFromName(self._view))
        before, self._rendering = self._frame, True
        try:
            for frame in range(first, last + 1, increment):
                self._frame, self._drawn = frame, {}
                context.setFrame(frame)
                picture = self._picture(write._inputs[0], frame)
                path = self._opened(write["file"].evaluate(context))
                if not path.parent.is_dir() and not write["create_directories"].value():
                    raise RuntimeError(f"{write.fullName()}: {path.parent} does not exist")
                assert write["file_type"].value() == "exr"
                assert write["raw"].value(), "a colour space would be applied"
                rgb = np.dstack([picture[c] for c in ("red", "green", "blue")])
                if self._root["proxy"].value():
                    rgb = rgb[::2, ::2]
                half = write["datatype"].value() == "16 bit half"
                write_exr(path, np.ascontiguousarray(rgb), half=half)
                if self._gui:
                    self._app.processEvents()  # as for Nuke's progress bar
        finally:
            self._frame, self._drawn, self._rendering = before, None, False
            self._view = self._views[0]

    def _picture(self, node: Node | None, frame: int) -> Picture:
        if node is None:
            raise RuntimeError("nothing is connected")
        if self._drawn is None:
            return self._draw(node, frame)
        if (node, frame) not in self._drawn:
            self._drawn[node, frame] = self._draw(node, frame)
        return self._drawn[node, frame]

    def _draw(self, node: Node, frame: int) -> Picture:
        kind, sources = node._kind, node._inputs
        if kind == "Read":
            if node["disable"].value():
                return dict.fromkeys(("red", "green", "blue", "alpha"), np.zeros(FORMAT))
            return self._read(node, frame)
        if node["disable"].value():
            return self._picture(sources[0], frame)
        if kind == "CheckerBoard2":
            board = (np.indices((90, 160)) // 10).sum(0) % 2 * np.float32(0.5)
            return dict.fromkeys(("red", "green", "blue", "alpha"), board)
        if kind == "Constant":
            grey = np.full((90, 160), float(node["color"]._text()), np.float32)
            return dict.fromkeys(("red", "green", "blue", "alpha"), grey)
        if kind == "Group":
            (output,) = [n for n in node._children if n._kind == "Output"]
            return self._picture(output, frame)
        if kind == "Input":
            source = node._parent.input(node["number"].value())
            return {} if source is None else self._picture(source, frame)  # black
        if kind == "Switch":
            self._frame, before = frame, self._frame
            which = int(node["which"].value())
            self._frame = before
            return self._picture(sources[min(max(which, 0), len(sources) - 1)], frame)
        if kind == "Shuffle" and node["in"].value():
            layer, below = node["in"].value(), self._picture(sources[0], frame)
            if f"{layer}.red" not in below:
                return {c: np.zeros_like(below["red"]) for c in below}
            shuffled = {c: below[f"{layer}.{c}"] for c in ("red", "green", "blue")}
            return {**below, **shuffled, "alpha": np.ones_like(below["red"])}
        if kind in ("Dot", "Output", "NoOp", "TimeClip", "Write"):
            return self._picture(sources[0], frame)
        if kind in nuke_pixels.NODES:
            return nuke_pixels.NODES[kind](node, *(self._picture(s, frame) for s in sources))
        raise NotImplementedError(kind)

    def _read(self, node: Node, frame: int) -> Picture:
        first, last = node["first"].value(), node["last"].value()
        path = node["file"].evaluate(min(max(frame, first), last))
        outside = node["before" if frame < first else "after"].value()
        if not first <= frame <= last and outside == "black":
            return self._black(node)
        path = str(self._opened(path)) if path else path
        if not path or not Path(path).exists():
            if path and node["on_error"].value() == "black":
                return self._black(node)
            raise RuntimeError(f"{node.fullName()}: {path}: No such file or directory")
        buffer = self._part(path)
        spec, full = buffer.spec(), buffer.roi_full
        pixels = np.zeros((full.height, full.width, spec.nchannels), np.float32)
        inside = buffer.roi
        x, y = inside.xbegin - full.xbegin, inside.ybegin - full.ybegin
        pixels[y : y + inside.height, x : x + inside.width] = buffer.get_pixels()
        if not node["raw"].value():
            assert not path.endswith(".exr"), "set raw: no colour space is meant here"
            low = pixels[..., :3]
            pixels[..., :3] = np.where(low <= 0.04045, low / 12.92, ((low + 0.055) / 1.055) ** 2.4)
        short = {"R": "red", "G": "green", "B": "blue", "A": "alpha"}
        channels = {}
        names = [name.removeprefix(f"{self._view}.") for name in spec.channelnames]
        for i, name in enumerate(names):  # those of the view come after the first view's
            layer, _, channel = name.rpartition(".")
            plain = short.get(channel, channel)
            channels[f"{layer}.{plain}" if layer else plain] = pixels[..., i]
        for layer in {name.rpartition(".")[0] for name in channels} - {""}:
            own = " ".join(name for name in channels if name.startswith(f"{layer}."))
            self.layers.setdefault(layer, f"{layer} {own}")
        return channels

    def _part(self, path: str) -> oiio.ImageBuf:
        """Returns what an EXR of several views holds of the one that is drawn, else all of it."""
        for part in range(oiio.ImageBuf(path).nsubimages):
            buffer = oiio.ImageBuf(path, part, 0)
            if buffer.spec().getattribute("view") == self._view:
                return buffer
        return oiio.ImageBuf(path)

    def _black(self, node: Node) -> Picture:
        """Returns an empty picture of the size of a Read's frames."""
        first, last = node["first"].value(), node["last"].value()
        paths = (node["file"].evaluate(number) for number in range(first, last + 1))
        files = (str(self._opened(path)) for path in paths if path)
        existing = next((path for path in files if Path(path).exists()), None)
        full = oiio.ImageBuf(existing).roi_full if existing else None
        shape = (full.height, full.width) if full is not None else FORMAT
        return {c: np.zeros(shape, np.float32) for c in ("red", "green", "blue", "alpha")}


def _all_inside(group: Node) -> Iterator[Node]:
    for node in getattr(group, "_children", ()):
        yield node
        yield from _all_inside(node)


def _knob_classes() -> list[type]:
    found = [Knob]
    for kind in found:
        found += [k for k in kind.__subclasses__() if k not in found]
    return [kind for kind in found if not kind.__name__.startswith("_")]


@contextmanager
def running(gui: bool = True, views: tuple[str, ...] = ("main",)) -> Iterator[Session]:
    """Runs a Nuke with the plugin on its path, as the module `nuke`."""
    session = Session(gui, views)
    nukescripts, panels = (types.ModuleType(f"nukescripts{p}") for p in ("", ".panels"))
    panels.registerWidgetAsPanel = lambda widget, name, id: session.panels.update({id: widget})
    nukescripts.panels = panels
    made = {"nuke": session.module, "nukescripts": nukescripts, "nukescripts.panels": panels}
    sys.modules.update(made)
    try:
        for name in ("init", "menu")[: 1 + gui]:
            script = ROOT / "nuke_plugin" / f"{name}.py"
            exec(compile(script.read_text(), str(script), "exec"), {"__file__": str(script)})
        yield session
        session.module.scriptClear()
        assert session.faults == []
    finally:
        for name in KNOW_NUKE:  # the next session imports them again
            sys.modules.pop(f"reenact.{name}", None)
            vars(reenact).pop(name, None)
        for name in made:
            del sys.modules[name]
