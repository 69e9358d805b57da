"""Widgets of Qt that show a job while it works: its figures as curves, and its newest pictures."""

import math
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Tuple

from reenact import qt

Curve = Dict[str, Any]  # `axis`, `name` and `points` of the server's answer to `figures`

# What a figure is called, its unit, its colour, which can be read on dark and on light, and how
# much its scale spans at least: less is no change to look at. In the order of the legend.
FIGURES = {
    "loss": ("loss", "", "#dc9632", 0.0),
    "psnr": ("held-out PSNR", " dB", "#4f9fe0", 1.0),
    "identity": ("identity", "", "#63b354", 0.05),
    "direction": ("along the direction", "", "#63b354", 0.0),
    "closeness": ("closeness", " dB", "#4f9fe0", 1.0),
    "keypoint_error": ("keypoint error", " px", "#c86ec0", 0.0),
}
OTHER_COLOUR = "#a0a0a0"
MARGIN = 8  # px
FEW = 60  # points, up to which each has a dot
LOG_RATIO = 20  # of the largest to the least value, from which a scale is logarithmic


class Graph(qt.QtWidgets.QWidget):  # type: ignore[misc]  # Qt has no types here
    """Draws curves over one axis; each has a scale of its own, from its least to its largest."""

    def __init__(self) -> None:
        super().__init__()
        self.setMinimumHeight(120)
        self._curves: List[Curve] = []
        self._total = 0.0
        self._empty = ""

    def show_curves(self, curves: List[Curve], total: float, empty: str) -> None:
        """Shows other curves.

        Args:
            curves: of one stage and axis.
            total: end of the axis of steps; the curves' own where that is further.
            empty: what is said where there are none.
        """
        names = [*FIGURES]
        curves = sorted(
            curves, key=lambda c: names.index(c["name"]) if c["name"] in names else len(names)
        )
        if (curves, total, empty) != (self._curves, self._total, self._empty):
            self._curves, self._total, self._empty = curves, total, empty
            self.update()

    def sizeHint(self) -> Any:
        """Qt: the size that the widget would like."""
        return qt.QtCore.QSize(360, 180)

    def paintEvent(self, event: Any) -> None:
        """Qt: draws the graph."""
        painter = qt.QtGui.QPainter(self)
        painter.setRenderHint(qt.QtGui.QPainter.Antialiasing)
        palette = self.palette()
        painter.fillRect(self.rect(), palette.base())
        ink = palette.text().color()
        curves = [curve for curve in self._curves if curve["points"]]
        if not curves:
            painter.setPen(ink)
            painter.drawText(self.rect(), qt.QtCore.Qt.AlignCenter, self._empty)
            painter.end()
            return
        line = painter.fontMetrics().height()
        legend = self._draw_legend(painter, curves, line)
        plot = qt.QtCore.QRectF(
            MARGIN,
            legend + MARGIN,
            self.width() - 2 * MARGIN,
            max(self.height() - legend - line - 3 * MARGIN, 1),
        )
        first, last = self._axis(curves)
        self._draw_grid(painter, plot, ink, first, last)
        for curve in curves:
            _draw_curve(painter, plot, curve, first, last)
        painter.end()

    def _axis(self, curves: List[Curve]) -> Tuple[float, float]:
        """Returns where the axis begins and ends."""
        xs = [x for curve in curves for x, _ in curve["points"]]
        if curves[0]["axis"] == "step":
            return 0.0, max(*xs, self._total, 1.0)
        return min(xs), max(*xs, min(xs) + 1)

    def _draw_legend(self, painter: Any, curves: List[Curve], line: int) -> float:
        """Draws names, last values and scales, in as many lines as it needs; returns their end."""
        x, y = float(MARGIN), float(MARGIN)
        metrics = painter.fontMetrics()
        for curve in curves:
            title, unit, colour, _ = _looks(curve["name"])
            values = [value for _, value in curve["points"]]
            text = f"{title} {_number(values[-1])}{unit}"
            scale = f" ({_number(min(values))} to {_number(max(values))})"
            width = metrics.boundingRect(text + scale).width() + 3 * MARGIN
            if x > MARGIN and x + width > self.width():
                x, y = float(MARGIN), y + line
            painter.setPen(qt.QtGui.QColor(colour))
            painter.drawText(qt.QtCore.QPointF(x, y + metrics.ascent()), text + scale)
            x += width
        return y + line

    def _draw_grid(self, painter: Any, plot: Any, ink: Any, first: float, last: float) -> None:
        """Draws lines at round steps or frames, with their numbers below."""
        faint = qt.QtGui.QColor(ink)
        faint.setAlpha(45)
        metrics, below = painter.fontMetrics(), plot.bottom() + MARGIN / 2
        name = "steps" if self._curves[0]["axis"] == "step" else "frames"
        end = plot.right() - metrics.boundingRect(name).width() - 2 * MARGIN
        painter.setPen(ink)
        baseline = below + metrics.ascent()
        painter.drawText(qt.QtCore.QPointF(end + 2 * MARGIN, baseline), name)
        for value in _round_numbers(first, last):
            x = plot.left() + plot.width() * (value - first) / (last - first)
            painter.setPen(faint)
            painter.drawLine(qt.QtCore.QPointF(x, plot.top()), qt.QtCore.QPointF(x, plot.bottom()))
            text = f"{value:g}"
            left = max(x - metrics.boundingRect(text).width() / 2, plot.left())
            if left + metrics.boundingRect(text).width() < end:
                painter.setPen(ink)
                painter.drawText(qt.QtCore.QPointF(left, baseline), text)
        painter.setPen(faint)
        painter.drawRect(plot)


class Sheet(qt.QtWidgets.QWidget):  # type: ignore[misc]  # Qt has no types here
    """Shows a picture as large as there is room; a click opens its file.

    Args:
        open_file: opens a file in the desktop's viewer, where it is seen 1:1.
    """

    def __init__(self, open_file: Callable[[Path], None]) -> None:
        super().__init__()
        self.setMinimumHeight(120)
        self._open = open_file
        self._path: Optional[Path] = None
        self._image: Any = None
        self._scaled: Any = None  # the image in the widget's size

    def show_image(self, path: Optional[Path], image: Any) -> None:
        """Shows another picture; None for none."""
        if path == self._path and image is self._image:
            return
        self._path, self._image, self._scaled = path, image, None
        if path is None:
            self.unsetCursor()
            self.setToolTip("")
        else:
            self.setCursor(qt.QtCore.Qt.PointingHandCursor)
            self.setToolTip("Click to open it in full size.")
        self.update()

    def sizeHint(self) -> Any:
        """Qt: the size that the widget would like."""
        return qt.QtCore.QSize(360, 180)

    def paintEvent(self, event: Any) -> None:
        """Qt: draws the picture."""
        painter = qt.QtGui.QPainter(self)
        painter.fillRect(self.rect(), self.palette().base())
        if self._image is None:
            painter.setPen(self.palette().text().color())
            painter.drawText(self.rect(), qt.QtCore.Qt.AlignCenter, "No pictures yet.")
        else:
            size = self._image.size()
            if size.width() > self.width() or size.height() > self.height():
                size = size.scaled(self.size(), qt.QtCore.Qt.KeepAspectRatio)
            if self._scaled is None or self._scaled.size() != size:
                self._scaled = self._image.scaled(
                    size, qt.QtCore.Qt.IgnoreAspectRatio, qt.QtCore.Qt.SmoothTransformation
                )
            left, top = (self.width() - size.width()) // 2, (self.height() - size.height()) // 2
            painter.drawImage(left, top, self._scaled)
        painter.end()

    def mouseReleaseEvent(self, event: Any) -> None:
        """Qt: a click; opens the picture's file."""
        if self._path is not None:
            self._open(self._path)


def _looks(name: str) -> Tuple[str, str, str, float]:
    """Returns the title, the unit, the colour and the least span of a figure."""
    return FIGURES.get(name, (name.replace("_", " "), "", OTHER_COLOUR, 0.0))


def _number(value: float) -> str:
    return f"{value:.3g}"


def _draw_curve(painter: Any, plot: Any, curve: Curve, first: float, last: float) -> None:
    values = [value for _, value in curve["points"]]
    _, _, colour, span = _looks(curve["name"])
    least, largest = min(values), max(values)
    spare = max(span - (largest - least), 0.0) / 2
    least, largest = least - spare, largest + spare
    logarithmic = least > 0 and largest > LOG_RATIO * least

    def place(x: float, y: float) -> Any:
        share = 0.5
        if largest > least:
            share = (y - least) / (largest - least)
            if logarithmic:
                share = math.log(y / least) / math.log(largest / least)
        across = plot.left() + plot.width() * (x - first) / (last - first)
        return qt.QtCore.QPointF(across, plot.bottom() - plot.height() * (0.04 + 0.92 * share))

    points = [place(x, y) for x, y in curve["points"]]
    ink = qt.QtGui.QColor(colour)
    painter.setPen(qt.QtGui.QPen(ink, 1.5))
    painter.drawPolyline(qt.QtGui.QPolygonF(points))
    painter.setBrush(ink)
    for point in points if len(points) <= FEW else points[-1:]:
        painter.drawEllipse(point, 2.0, 2.0)
    painter.setBrush(qt.QtCore.Qt.NoBrush)


def _round_numbers(first: float, last: float) -> List[float]:
    """Returns about five round whole numbers in a range."""
    rough = max((last - first) / 5, 1.0)
    scale = 10.0 ** math.floor(math.log10(rough))
    step = next(m * scale for m in (1, 2, 5, 10) if m * scale >= rough)
    return [n * step for n in range(math.ceil(first / step), math.floor(last / step) + 1)]
