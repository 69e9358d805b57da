"""Draws every node's properties, all tabs side by side, from gizmos/ into docs/nodes/.

Nuke's own panel looks like it, roughly. The parser is the tests' (`tests/support/nk_script.py`).
With `panel`, only the panel "Reenact jobs" is drawn, while a server of its own trains a character
for a node in the tests' stand-in for Nuke; that takes ten minutes.
"""

import importlib
import os
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).parents[1]
os.environ["QT_QPA_PLATFORM"] = "offscreen"
os.environ.pop("QT_QPA_PLATFORM_PLUGIN_PATH", None)  # cv2's, for its own Qt
sys.path.insert(0, str(ROOT / "tests" / "support"))

import nk_script  # noqa: E402
from nk_script import Statement  # noqa: E402
from PySide6.QtCore import QSize, Qt  # noqa: E402
from PySide6.QtGui import QColor, QImage, QPainter, QPalette  # noqa: E402
from PySide6.QtWidgets import (  # noqa: E402
    QApplication,
    QCheckBox,
    QComboBox,
    QFrame,
    QGridLayout,
    QHBoxLayout,
    QLabel,
    QLineEdit,
    QPlainTextEdit,
    QPushButton,
    QSlider,
    QTabWidget,
    QVBoxLayout,
    QWidget,
)

WIDTH, LABELS = 480, 110  # px of a panel, and of its labels' column
STYLE = """
QWidget { background: #323232; color: #c8c8c8; font: 11px "DejaVu Sans"; }
QLineEdit, QPlainTextEdit, QComboBox {
  background: #232323; border: 1px solid #1b1b1b; padding: 1px 4px; }
QLineEdit:disabled { color: #909090; background: #2a2a2a; }
QPushButton { background: #4a4a4a; border: 1px solid #1f1f1f; border-radius: 3px;
              padding: 2px 10px; }
QCheckBox::indicator { width: 11px; height: 11px; background: #232323; border: 1px solid #777; }
QCheckBox::indicator:checked { background: #b0b0b0; }
QTabWidget::pane { border-top: 1px solid #1f1f1f; }
QTabBar::tab { background: #282828; padding: 3px 10px; }
QTabBar::tab:selected { background: #3c3c3c; color: #ffffff; }
QSlider::groove:horizontal { height: 2px; background: #191919; }
QSlider::handle:horizontal { width: 5px; margin: -6px 0; background: #9a9a9a; }
"""


Shown = tuple[str, str, dict[str, str], set[str]]  # what `words` finds


def words(definition: str) -> Shown:
    """Of `addUserKnob`: type, name, options (`l`, `t`, `T`, `M`, `R`), flags with their signs."""
    kind, name, *rest = nk_script.words(definition)
    options, flags = {}, set()
    while rest:
        word = rest.pop(0)
        if word[0] in "+-":
            flags.add(word)
        elif word == "R":
            options[word] = f"{rest.pop(0)} {rest.pop(0)}"
        else:
            options[word] = rest.pop(0)
    return kind, name, options, flags


def shown(node: Statement) -> dict[str, list[Shown]]:
    """The knobs that the artist sees, by tab."""
    tabs: dict[str, list[Shown]] = {}
    for key, definition in node.knobs:
        if key == "addUserKnob":
            kind, name, options, flags = words(definition)
            if kind == "20":
                tabs[options.get("l", name)] = []
            elif not {"+INVISIBLE", "+HIDDEN"} & set(flags) and (kind != "26" or options.get("T")):
                tabs[list(tabs)[-1]].append((kind, name, options, flags))
    return tabs


def widget(kind: str, options: dict[str, str], value: str) -> QWidget:
    """One knob."""
    if kind in ("6", "22"):
        made = QCheckBox(options["l"]) if kind == "6" else QPushButton(options["l"])
        if isinstance(made, QCheckBox):
            made.setChecked(value == "true")
        return made
    if kind == "4":
        menu = QComboBox()
        menu.addItems(nk_script.words(options["M"]))
        menu.setCurrentText(value)
        return menu
    if kind == "26":
        text = QLabel(options["T"])
        text.setWordWrap(True)
        return text
    if kind in ("7", "41"):  # with a slider
        low, high = map(float, options.get("R", "0 4").split())
        row = QWidget()
        layout = QHBoxLayout(row)
        layout.setContentsMargins(0, 0, 0, 0)
        number, slider = QLineEdit(value), QSlider(Qt.Orientation.Horizontal)
        number.setFixedWidth(52)
        slider.setRange(0, 1000)
        slider.setValue(round(1000 * (float(value or 0) - low) / (high - low)))
        layout.addWidget(number)
        layout.addWidget(slider)
        return row
    if kind == "43":
        lines = QPlainTextEdit(value)
        lines.setFixedHeight(52)
        return lines
    text = QLineEdit(value)
    if kind in ("3", "12"):
        text.setFixedWidth(70)
    return text


def panel(node: Statement, tab: str) -> QWidget:
    """A node's properties with one of its tabs in front."""
    tabs = shown(node)
    whole = QWidget()
    whole.setFixedWidth(WIDTH)
    column = QVBoxLayout(whole)
    column.setContentsMargins(4, 4, 4, 4)
    title = QLabel(f"  {node.knob('name')}1")
    title.setStyleSheet("background: #5b6d92; color: white; font-weight: bold; padding: 3px;")
    column.addWidget(title)
    bar = QTabWidget()
    column.addWidget(bar)
    for name in (*tabs, "Node"):  # Nuke's own comes last
        page = QWidget()
        bar.addTab(page, name)
        if name == tab:
            bar.setCurrentWidget(page)
            fill(page, node, tabs[name])
    return whole


def fill(page: QWidget, node: Statement, knobs: list[Shown]) -> None:
    """Rows of knobs: a label on the left, and on the right what begins no line of its own."""
    grid = QGridLayout(page)
    grid.setColumnMinimumWidth(0, LABELS)
    grid.setColumnStretch(1, 1)
    grid.setVerticalSpacing(3)
    row, line = -1, None
    for kind, name, options, flags in knobs:
        label = options.get("l", name)
        rule = kind == "26" and not options["T"].strip()
        begins = "+STARTLINE" in flags or ("-STARTLINE" not in flags and kind not in ("6", "22"))
        if rule or begins or line is None:
            row += 1
            line = QHBoxLayout()
            line.setSpacing(6)
            grid.addLayout(line, row, 1)
            if rule or (kind not in ("6", "22") and label):
                named = QLabel(f"<b>{label}</b>" if rule else label)
                named.setAlignment(Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter)
                grid.addWidget(named, row, 0)
        elif kind not in ("6", "22") and label:
            line.addWidget(QLabel(label))
        if rule:
            edge = QFrame()
            edge.setFrameShape(QFrame.Shape.HLine)
            edge.setProperty("wide", True)
            line.addWidget(edge)
            continue
        one = widget(kind, options, value(node, name, kind, options))
        one.setEnabled("+DISABLED" not in flags)
        one.setProperty("wide", kind in ("1", "2", "7", "26", "41", "43"))
        line.addWidget(one)
    for i in range(row + 1):  # what is narrow stays on the left
        last = grid.itemAtPosition(i, 1).layout()
        if not any(last.itemAt(k).widget().property("wide") for k in range(last.count())):
            last.addStretch(1)
    grid.setRowStretch(row + 1, 1)


def value(node: Statement, name: str, kind: str, options: dict[str, str]) -> str:
    if kind == "41":
        return {"multiply": "1", "add": "0"}.get(options["T"].partition(".")[2], "")
    text = node.knob(name)
    return ", ".join(text.split()) if kind == "12" else text


def picture(node: Statement) -> QImage:
    """All tabs side by side."""
    panels = [panel(node, tab) for tab in shown(node)]
    for one in panels:
        one.setStyleSheet(STYLE)
        one.ensurePolished()
    height = max(one.sizeHint().height() for one in panels)
    image = QImage(QSize((WIDTH + 8) * len(panels) - 8, height), QImage.Format.Format_RGB32)
    image.fill(QColor("white"))
    painter = QPainter(image)
    for i, one in enumerate(panels):
        one.resize(WIDTH, height)
        painter.drawPixmap((WIDTH + 8) * i, 0, one.grab())
    painter.end()
    return image


def draw_panel(path: Path) -> None:
    """The panel, two thirds through a training."""
    for name in ("tests/support", "nuke_plugin", "."):
        sys.path.insert(0, str(ROOT / name))
    import nuke_standin
    from nuke_session import read_node, under
    from running_server import Server

    from core.media.write import write_png
    from core.synthetic import performer

    app = QApplication.instance() or QApplication([])
    app.setStyle("Fusion")
    palette = QPalette(QColor("#323232"))
    palette.setColor(QPalette.ColorRole.Base, QColor("#232323"))
    palette.setColor(QPalette.ColorRole.Text, QColor("#c8c8c8"))
    app.setPalette(palette)
    with TemporaryDirectory() as folder, nuke_standin.running() as session:
        os.environ["REENACT_HOME"] = f"{folder}/home"
        server = Server(Path(folder) / "home").start()
        panel = importlib.import_module("reenact.panel").Jobs()
        panel.setStyleSheet(STYLE)
        panel.resize(920, 560)
        panel.show()
        session.module.scriptSaveAs(f"{folder}/scan.nk", True)
        for person, who in ((6, "Anna"), (3, "Ben")):
            motion = performer.self_scan(performer.random_identity(person), 72, seed=person)
            for i, parameters in enumerate(motion):
                picture = performer.render(parameters, 320)
                write_png(f"{folder}/{who}.{i + 1:04d}.png", picture)
            scan = read_node(session, f"{folder}/{who}.####.png", 1, len(motion))
            node = under(session, "ReenactPersonalize", scan)
            knobs = {"who": "nobody: synthetic", "agreed": True, "result_name": who}
            knobs |= {"name": f"{who}_scan", "count": 40, "refine": 5, "steps": 240}
            for knob, value in knobs.items():
                session.set(node, knob, value)
            session.press(node, "submit")

        def evaluations() -> int:
            return sum(len(c["points"]) for c in panel._detail.curves if c["name"] == "psnr")

        session.pump(lambda: panel.table.rowCount() == 2, 60, "the jobs")
        panel.table.selectRow(1)
        panel.table.resizeColumnsToContents()
        session.pump(lambda: evaluations() > 3, 1800, "two thirds of a training")
        panel.grab().save(str(path), "PNG", 0)
        panel.close()
        server.kill()


def main(folder: Path) -> None:
    app = QApplication.instance() or QApplication([])
    app.setStyle("Fusion")
    folder.mkdir(exist_ok=True)
    for gizmo in sorted((ROOT / "gizmos").glob("*.gizmo")):
        (node,) = nk_script.parse(gizmo.read_text())
        picture(node).save(str(folder / f"{gizmo.stem}.png"), "PNG", 0)  # 0: the smallest file


if __name__ == "__main__":
    if sys.argv[1:] == ["panel"]:
        draw_panel(ROOT / "docs" / "nodes" / "panel.png")
    else:
        main(ROOT / "docs" / "nodes")
