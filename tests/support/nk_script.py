"""Reads and writes Nuke scripts with a real Tcl interpreter, as Nuke does.

A script is a Tcl program whose commands are node classes. It runs in a safe interpreter without
files, sockets or processes. Apart from node classes only listed commands are allowed; an unknown
command without a body in braces is an error.
"""

from __future__ import annotations

import tkinter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

GROUPS = ("Group", "Root")
IGNORED = ("version", "define_window_layout_xml")


class BadScript(ValueError):
    """The text is not a script; the message says where."""


@dataclass(eq=False)
class Statement:
    """A node of a script: its knobs in order, its inputs, and the children of a group."""

    kind: str
    knobs: list[tuple[str, str]]
    inputs: list[Statement | None] = field(default_factory=list)
    children: list[Statement] = field(default_factory=list)
    clone_of: Statement | None = None

    def knob(self, name: str, default: str = "") -> str:
        return dict(self.knobs).get(name, default)


def words(text: str) -> list[str]:
    """Returns the elements of a Tcl list."""
    try:
        return [str(word) for word in _lists().splitlist(text)]
    except tkinter.TclError as error:
        raise BadScript(f"{error}: {text[:80]!r}") from None


def quote(text: str) -> str:
    """Quotes a text as one element of a Tcl list, which `words` returns."""
    return str(_lists().call("list", text))


@lru_cache(maxsize=1)
def _lists() -> Any:
    return _tcl()


def _tcl() -> Any:
    app = tkinter.Tcl().tk
    app.wantobjects(False)
    return app


def parse(
    text: str, pasted_under: Statement | None = None, layers: dict[str, str] | None = None
) -> list[Statement]:
    """Parses a script; returns its nodes in order.

    Args:
        text: of a .nk or .gizmo file, or of the clipboard.
        pasted_under: the value of `$cut_paste_input`.
        layers: receives the layers that the text declares: name -> text.

    Raises:
        BadScript: invalid Tcl, a group without an end, or a node with too few nodes on the stack.
    """
    app = _tcl()
    app.eval("interp create -safe script")
    made: dict[str, Statement] = {}
    if pasted_under is not None:
        made["pasted"] = pasted_under
    root = Statement("Root", [])
    open_groups, stacks = [root], [["pasted"] if pasted_under is not None else []]
    trouble: list[Exception] = []

    def guarded(call: Callable[..., str | None]) -> Callable[..., str]:
        def run(*words: str) -> str:
            try:
                return call(*words) or ""
            except Exception as error:
                trouble.append(error)
                raise

        return run

    def node(kind: str, *rest: str) -> str:
        if len(rest) != 1 or not kind[:1].isupper():
            raise BadScript(f"no node: {kind} {' '.join(rest)[:60]}")
        flat = words(rest[0])
        if len(flat) % 2:
            raise BadScript(f"{kind}: knobs and values don't pair up, near {flat[-1][:60]!r}")
        one = Statement(kind, list(zip(flat[::2], flat[1::2], strict=True)))
        if kind == "Root":
            root.knobs = one.knobs
            return ""
        take(one)
        if kind in GROUPS:
            open_groups.append(one)
            stacks.append([])
        return ""

    def clone(key: str, knobs: str) -> str:
        first, flat = made[key], words(knobs)
        one = Statement(first.kind, list(zip(flat[::2], flat[1::2], strict=True)), clone_of=first)
        take(one)
        return ""

    def take(one: Statement) -> None:
        count = sum(int(n) for n in one.knob("inputs", "1").split("+"))
        stack, kind = stacks[-1], one.kind
        if count > len(stack) and "inputs" in dict(one.knobs):
            raise BadScript(
                f"{kind} {one.knob('name')} takes {count} inputs, the stack has {len(stack)}"
            )
        for _ in range(min(count, len(stack))):
            one.inputs.append(made.get(stack.pop()))
        key = f"N{len(made)}"
        made[key] = one
        stack.append(key)
        open_groups[-1].children.append(one)

    def end_group() -> str:
        if len(open_groups) == 1:
            raise BadScript("end_group without a group")
        open_groups.pop()
        stacks.pop()
        return ""

    def stack(index: str) -> str:
        if int(index) >= len(stacks[-1]):
            if index == "0":  # the beginning of what is pasted, where nothing is selected
                return "0"
            raise BadScript(f"the stack has no {index}")
        return stacks[-1][-1 - int(index)]

    def push(key: str) -> str:
        if key != "0" and key not in made:
            raise BadScript(f"push of an unknown {key}")
        stacks[-1].append(key)
        return ""

    def add_layer(layer: str) -> str:
        if layers is not None:
            layers.setdefault(words(layer)[0], layer)
        return ""

    commands = {
        "unknown": node,
        "end_group": end_group,
        "push": push,
        "stack": stack,
        "add_layer": add_layer,
        "clone": clone,
        **{name: lambda *_: "" for name in IGNORED},
    }
    app.eval("interp eval script {catch {rename unknown {}}}")
    for name, call in commands.items():
        app.createcommand(f"nk_{name}", guarded(call))
        app.eval(f"interp alias script {name} {{}} nk_{name}")
    top = "pasted" if pasted_under is not None else "0"
    app.eval(f"interp eval script {{set cut_paste_input {top}}}")
    try:
        app.call("interp", "eval", "script", text)
    except tkinter.TclError as error:
        raise BadScript(str(trouble[0] if trouble else error)) from None
    if len(open_groups) > 1:
        raise BadScript(f"{open_groups[-1].knob('name')} has no end_group")
    return [root] * bool(root.knobs) + root.children


def write(
    nodes: Iterable[Statement],
    root: Statement | None = None,
    indent: str = "",
    layers: Mapping[str, str] | None = None,
) -> str:
    """Writes nodes as text that `parse` reads. Inputs come before the nodes that use them."""
    lines = []
    if root is not None:
        lines.append(_statement(root, indent))
    lines += [f"add_layer {{{layer}}}" for layer in (layers or {}).values()]
    for one in ordered(nodes):
        for source in reversed(one.inputs):
            lines.append(f"{indent}push {'0' if source is None else '$' + _label(source)}")
        lines.append(_statement(one, indent))
        if one.kind in GROUPS and one.clone_of is None:
            lines.append(write(one.children, indent=indent + " ") + f"{indent}end_group")
        lines.append(f"{indent}set {_label(one)} [stack 0]")
    return "\n".join(lines) + "\n"


def ordered(nodes: Iterable[Statement]) -> list[Statement]:
    """Sorts nodes, each after its inputs."""
    done: dict[int, Statement] = {}
    inside = list(nodes)

    def visit(one: Statement) -> None:
        if id(one) in done:
            return
        for source in (*one.inputs, one.clone_of):
            if source is not None and any(source is n for n in inside):
                visit(source)
        done[id(one)] = one

    for one in inside:
        visit(one)
    return list(done.values())


def _label(one: Statement) -> str:
    return f"N{id(one):x}"


def _statement(one: Statement, indent: str) -> str:
    knobs = [("inputs", str(len(one.inputs)))] if one.kind != "Root" else []
    knobs += [(name, value) for name, value in one.knobs if name != "inputs"]
    body = "\n".join(f"{indent} {name} {quote(value)}" for name, value in knobs)
    command = one.kind if one.clone_of is None else f"clone ${_label(one.clone_of)}"
    return f"{indent}{command} {{\n{body}\n{indent}}}"


def command(name: str, *arguments: str) -> str:
    """Runs a command of Tcl on texts, as `nuke.tcl` does."""
    return str(_lists().call(name, *arguments))


def substitute(
    text: str, value: Mapping[str, str], metadata: Mapping[str, object] | None = None
) -> str:
    """Evaluates Tcl in a file name, label or expression: `[value KNOB]`, `[file dirname ...]`,
    `[metadata KEY]` (empty if it is missing), and commands of a safe interpreter."""
    app = _lists()
    app.eval("interp create -safe label")

    def look_up(name: str) -> str:
        if name not in value:
            raise BadScript(f"[value {name}]")
        return value[name]

    def file(part: str, path: str) -> str:
        if part not in ("dirname", "tail", "rootname", "extension"):
            raise BadScript(f"[file {part}]")
        return str(app.call("file", part, path))

    def fact(key: str) -> str:
        found = (metadata or {}).get(key, "")
        return " ".join(map(str, found)) if isinstance(found, tuple) else str(found)

    app.createcommand("fact", fact)
    app.eval("interp alias label metadata {} fact")
    app.createcommand("look_up", look_up)
    app.createcommand("file_part", file)
    app.eval("interp alias label value {} look_up")
    app.eval("interp alias label file {} file_part")
    try:
        return str(app.call("interp", "eval", "label", app.call("list", "subst", text)))
    except tkinter.TclError as error:
        raise BadScript(f"{error}: {text}") from None
    finally:
        app.eval("interp delete label")


def number(expression: str) -> float:
    """Evaluates a numeric expression with Tcl's `expr`."""
    app = _lists()
    app.eval("interp create -safe numbers")
    try:
        return float(app.call("interp", "eval", "numbers", app.call("list", "expr", expression)))
    except tkinter.TclError as error:
        raise BadScript(f"{error}: {expression}") from None
    finally:
        app.eval("interp delete numbers")
