"""Tests the boundary to Nuke: its names, the only file that uses them, and the stand-in."""

import ast
import importlib
import importlib.util
import re
import sys
from pathlib import Path
from unittest.mock import patch

import nuke_standin
import pytest
from repository import ROOT

PLUGIN = ROOT / "nuke_plugin" / "reenact"
GIZMOS = ROOT / "gizmos"

# Names that the stubs of Nuke 13.2 (types-nuke) lack: name -> documentation, first version.
# `host` asks whether Nuke has them.
NEWER: dict[str, tuple[str, str]] = {
    "evaluateGsv": (
        "https://learn.foundry.com/nuke/developers/16.1/pythondevguide/_autosummary/"
        "nuke.evaluateGsv.html",
        "16.1",
    )
}


def stubs() -> dict[str, ast.ClassDef | None]:
    """Returns the top-level names of `nuke` in its stubs, with the definitions of classes."""
    found = importlib.util.find_spec("nuke-stubs")
    assert found is not None
    assert found.submodule_search_locations is not None
    names: dict[str, ast.ClassDef | None] = {}
    for path in Path(found.submodule_search_locations[0]).glob("*.pyi"):
        for line in ast.parse(path.read_text()).body:
            if isinstance(line, ast.ClassDef):
                names[line.name] = line
            elif isinstance(line, ast.FunctionDef):
                names[line.name] = None
            elif isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name):
                names[line.target.id] = None
    return names


def methods(name: str, known: dict[str, ast.ClassDef | None]) -> set[str]:
    """Returns the methods of a class and its bases."""
    body = known[name]
    assert body is not None
    own = {line.name for line in body.body if isinstance(line, ast.FunctionDef)}
    for base in body.bases:
        if isinstance(base, ast.Name) and base.id in known:
            own |= methods(base.id, known)
    return own


def test_one_file_looks_into_nuke() -> None:
    for path in PLUGIN.glob("*.py"):
        imports = re.findall(r"^\s*(?:import|from) nuke\b", path.read_text(), re.M)
        assert bool(imports) == (path.name == "host.py"), path.name


def test_the_stand_in_knows_which_modules_know_nuke() -> None:
    """Those are imported again for each session; runs, files and sockets don't know Nuke."""
    for path in PLUGIN.glob("*.py"):
        imported = set()
        for line in ast.walk(ast.parse(path.read_text())):
            if isinstance(line, ast.ImportFrom) and line.module == "reenact":
                imported |= {name.name for name in line.names}
            elif isinstance(line, ast.ImportFrom) and line.module:
                imported.add(line.module.removeprefix("reenact."))
        if imported & {*nuke_standin.KNOW_NUKE}:
            assert path.stem in nuke_standin.KNOW_NUKE, path.name


def test_text_files_do_not_depend_on_the_system() -> None:
    """Nuke's Python writes cp1252 on Windows and ASCII without a locale unless it is told."""
    for path in (*PLUGIN.glob("*.py"), *PLUGIN.parent.glob("*.py")):
        for call in ast.walk(ast.parse(path.read_text())):
            name = call.func if isinstance(call, ast.Call) else None
            named = getattr(name, "attr", getattr(name, "id", ""))
            if not isinstance(call, ast.Call) or named not in ("open", "read_text", "write_text"):
                continue
            text = ast.unparse(call)
            binary = named == "open" and re.search(r"""['"][rwax]\+?b['"]|^os\.open""", text)
            assert binary or "encoding='utf-8'" in text or "encoding='ascii'" in text, (path, text)


def test_the_boundary_is_small_and_typed() -> None:
    functions = [
        line
        for line in ast.parse((PLUGIN / "host.py").read_text()).body
        if isinstance(line, ast.FunctionDef) and not line.name.startswith("_")
    ]
    assert 10 < len(functions) <= 48
    used = set()
    for path in PLUGIN.glob("*.py"):
        used |= set(re.findall(r"\bhost\.(\w+)", path.read_text()))
    used |= set(re.findall(r"\bhost\.(\w+)", (PLUGIN.parent / "menu.py").read_text()))
    assert {f.name for f in functions} <= used, "a function that nobody needs"


def test_every_name_of_nuke_is_in_its_stubs() -> None:
    known = stubs()
    used = set()
    for line in ast.walk(ast.parse((PLUGIN / "host.py").read_text())):
        if isinstance(line, ast.Attribute) and ast.unparse(line.value) == "nuke":
            used.add(line.attr)
    for path in (*GIZMOS.rglob("*.gizmo"), *GIZMOS.rglob("*.nk")):
        used |= set(re.findall(r"\bnuke\.(\w+)", path.read_text()))
    used |= set(re.findall(r"\bnuke\.(\w+)", (PLUGIN.parent / "menu.py").read_text()))
    assert len(used) > 15
    assert used <= known.keys() | NEWER.keys()


def test_the_stand_in_has_nothing_that_nuke_has_not() -> None:
    known = stubs()
    with nuke_standin.running() as session:
        for name, value in vars(session.module).items():
            if name.startswith("__"):
                continue
            assert name in {*known, *NEWER}, name
            if isinstance(value, type):
                ours = {n for kind in value.__mro__ for n in vars(kind) if not n.startswith("_")}
                assert ours <= methods(name, known), name


def test_the_stand_in_is_strict() -> None:
    import threading

    with nuke_standin.running() as session:
        nuke = session.module
        with pytest.raises(AttributeError):
            nuke.exceuteInMainThread  # noqa: B018
        node = nuke.createNode("Reenact")
        with pytest.raises(NameError):
            node["characte"]
        with pytest.raises(RuntimeError, match="no such knob"):
            session._read_text("Read {\n inputs 0\n flie a\n}\n")
        session.layers.clear()
        with pytest.raises(RuntimeError, match="there is no layer reenact_render"):
            session._read_text("Shuffle {\n inputs 0\n in reenact_render\n}\n")
        with pytest.raises(RuntimeError, match="Unknown command"):
            nuke.createNode("Raed")
        with pytest.raises(RuntimeError, match="would hang"):
            nuke.executeInMainThreadWithResult(nuke.root)
        caught: list[str] = []

        def elsewhere() -> None:
            for call in (nuke.root, lambda: node.name(), lambda: node["first"].value(), nuke.undo):
                try:
                    call()
                except RuntimeError as error:
                    caught.append(str(error))

        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
        assert len(caught) == 4
        assert all("off the main thread" in text for text in caught)
        results: list[object] = []
        thread = threading.Thread(
            target=lambda: results.append(nuke.executeInMainThreadWithResult(lambda: node.name()))
        )
        thread.start()
        session.pump(lambda: results, 10, "the call")
        thread.join()
        assert results == ["Reenact1"]
        nuke.delete(node)
        with pytest.raises(ValueError, match="not attached"):
            node.name()
    with nuke_standin.running(gui=False) as session:
        for call in (
            lambda: session.module.message("x"),
            lambda: session.module.menu("Nodes"),
            lambda: session.module.executeInMainThread(print),
        ):
            with pytest.raises(RuntimeError):
                call()


@pytest.mark.parametrize("gui", [True, False])
def test_the_acceptance_script_runs(
    gui: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The script would run in Nuke, and the stand-in does what the script asks of Nuke."""
    script, report = Path(__file__).with_name("nuke_acceptance.py"), tmp_path / "report.json"
    monkeypatch.setattr("sys.argv", ["nuke", str(report)])
    with nuke_standin.running(gui):
        exec(compile(script.read_text(), str(script), "exec"), {"__name__": "__main__"})
    assert "REENACT_ACCEPTANCE_OK" in capsys.readouterr().out, report.read_text()


def test_the_menu_makes_the_nodes() -> None:
    with nuke_standin.running() as session:
        exec(compile((PLUGIN.parent / "menu.py").read_text(), "menu.py", "exec"), {})
        assert eval(session.panels["reenact.jobs"]).__name__ == "Jobs"
        commands = session.menus["Nodes"]._commands
        assert sorted(commands) == [
            "Reenact/Comp",
            "Reenact/Edit",
            "Reenact/Personalize",
            "Reenact/Reenact",
            "Reenact/Repair",
            "Reenact/Style",
            "Reenact/Update selected nodes",
        ]
        for name, (script, icon) in commands.items():
            if name.endswith("nodes"):
                continue
            exec(script, {"nuke": session.module})
            assert (GIZMOS / icon).exists()
            assert (GIZMOS / icon.replace(".png", "@2x.png")).exists()
        names = [n.name() for n in session.module.allNodes()]
        assert names == [
            "ReenactPersonalize1",
            "Reenact1",
            "ReenactRepair1",
            "ReenactEdit1",
            "ReenactStyle1",
            "ReenactComp1",
        ]


def test_the_start_leaves_no_names_and_takes_none() -> None:
    """Nuke runs the init.py and the menu.py of all plugins with the same names, and menus' texts
    call what they find there."""
    theirs = {
        name: object() for name in ("sys", "error", "text", "node", "NODES", "_fill", "_start")
    }
    with nuke_standin.running():
        for file in (PLUGIN.parent / "init.py", PLUGIN.parent / "menu.py"):
            for broken in ({}, {"reenact": None}):
                names = {**theirs, "__file__": str(file), "__builtins__": __builtins__}
                before = dict(names)
                with patch.dict(sys.modules, broken):
                    exec(compile(file.read_text(), str(file), "exec"), names)
                changed = {name for name in names if names[name] is not before.get(name)}
                assert changed <= {"__doc__"}, (file, changed)
                assert before.keys() <= names.keys()


def test_nuke_starts_whatever_is_wrong_with_the_plugin(capsys: pytest.CaptureFixture[str]) -> None:
    """It prints a line in the terminal, and has no menu."""
    script = compile((PLUGIN.parent / "menu.py").read_text(), "menu.py", "exec")
    with nuke_standin.running() as session:
        session.panels.clear()
        for broken in ("reenact", "nukescripts"):
            with patch.dict(sys.modules, {broken: None}):
                exec(script, {})
            said = capsys.readouterr().err
            assert said.startswith("Reenact has no menu: ModuleNotFoundError: ")
            assert said.count("\n") == 1
        nodes = importlib.import_module("reenact.nodes")
        with patch.object(nodes, "register", side_effect=RuntimeError("two\nlines")):
            exec(script, {})
        assert capsys.readouterr().err == "Reenact has no menu: RuntimeError: two lines\n"
        assert session.panels == {}
