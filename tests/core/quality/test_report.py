"""The report as a browser gets it, and in one where Chromium is installed."""

import base64
import hashlib
import json
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import cv2
import numpy as np
import pytest

from core.quality import report
from core.quality.cards import CARD, jpeg
from core.quality.definitions import MEASURES, SIGNALS, Mark, Quality
from core.quality.marks import mark
from core.solve.latent_track import FrameState

HOSTILE = """<script>document.title="hacked"</script><img src=x onerror=alert(1)>'"&</title>"""
CHROMIUM = next(
    (p for n in ("chromium", "chromium-browser", "google-chrome") if (p := shutil.which(n))), None
)


def made_up(count: int = 40, first: int = 1001) -> Quality:
    """Measures by formula, with a mouth that is wrong in one frame, a jump, and a lost face."""
    t = np.arange(count)
    numbers = first + t + 3 * (t > count // 2)  # with a gap
    rng = np.random.default_rng(1)
    measures = {
        name: (1.0 if m.bad == "low" else 0.3 * m.least)
        + 0.1 * m.least * rng.standard_normal(count)
        for name, m in MEASURES.items()
    }
    measures["mouth"][7] = -20.0
    measures["jitter"][[0, -1]] = np.nan
    measures["jitter"][20] = 5.0
    measures["gaze"][12:15] = np.nan
    state = np.full(count, FrameState.SOLVED, np.uint8)
    state[30] = FrameState.HELD
    signals = {
        name: (np.sin(t / 5) * 10, np.sin(t / 5 + 0.1) * 9 + 0.1 * i)
        for i, name in enumerate(SIGNALS)
    }
    bounds, marks = mark(numbers, state, np.ones(count), measures)
    cards = []
    for i in range(count):
        card = np.full((CARD[1], CARD[0], 3), 90, np.uint8)
        cv2.circle(card, (60 + 8 * i % 300, 110), 40, (200, 160, 120), -1)
        card += rng.integers(0, 20, card.shape, np.uint8)  # pictures do not pack as flats do
        cards.append(jpeg(card, 88))
    metrics = {
        "identity": "proxy: none",
        "pose_distance": HOSTILE,
        "expression_distance": "x",
        "niqe": "y",
    }
    return Quality(
        numbers,
        state,
        t == 0,
        measures,
        signals,
        bounds,
        marks,
        metrics,
        (1.0, 1.2),
        (f"A note {HOSTILE}",),
        cards,
    )


@pytest.fixture(scope="module")
def found() -> Quality:
    return made_up()


@pytest.fixture(scope="module")
def page(found: Quality) -> str:
    facts = [("Consent", [("who agreed", HOSTILE), ("when", "2030-01-01")])]
    return report.page(HOSTILE, found, facts)


class Reader(HTMLParser):
    """What a page consists of."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []  # every tag is closed, in order

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "link", "br"):
            self._open.append(tag)
        if tag == "script":
            self.scripts.append((dict(attrs), ""))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] == "script":
            self.scripts[-1] = (self.scripts[-1][0], self.scripts[-1][1] + data)
        else:
            self.text.append(data)


def test_the_page_holds_everything_and_loads_nothing(page: str, found: Quality) -> None:
    read = Reader(page)
    for tag, attributes in read.tags:
        assert tag not in ("link", "iframe", "object", "base", "form")
        for name in ("src", "href", "srcset", "data", "action"):
            assert (attributes.get(name) or "data:").startswith("data:"), (tag, attributes)
    assert not re.search(r"url\(|@import", page)
    data, script = read.scripts
    assert data[0] == {"type": "application/json", "id": "data"}
    facts = json.loads(data[1])
    assert facts["frames"] == found.numbers.tolist()
    assert len(facts["curves"]) == len(MEASURES) + len(SIGNALS)
    assert all(len(v) == len(found.numbers) for both in facts["curves"].values() for v in both)
    digest = base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode()
    (policy,) = [a["content"] for t, a in read.tags if t == "meta" and "http-equiv" in a]
    assert policy is not None
    assert f"script-src 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none'")
    said = " ".join(" ".join(read.text).split())
    for number in found.numbers:
        assert f" {number} " in said
    for one in found.marks:
        assert one.reason in said
    for m in MEASURES.values():
        assert m.title in said
        assert m.meaning in said
    charts = [a for t, a in read.tags if t == "figure" and a.get("class") == "chart"]
    assert {c["data-chart"] for c in charts} == set(facts["curves"])


def test_names_are_words_and_nothing_else(page: str) -> None:
    read = Reader(page)
    assert not any("onerror" in a or a.get("src") == "x" for _, a in read.tags)
    assert len(read.scripts) == 2
    said = " ".join(read.text)
    assert said.count(HOSTILE) >= 5  # title, heading, note, metric, consent


def test_curves_are_broken_where_there_is_nothing(found: Quality) -> None:
    chart = report._chart(found, "gaze", "Gaze", "%", "", {"result": found.measures["gaze"]})
    ((_, path),) = chart["lines"]
    steps = re.findall(r"([ML])([\d.]+) (-?[\d.]+)", path)
    assert len(steps) == len(found.numbers) - 3
    # A start, one after the blank, and one after the gap in the numbers.
    assert [kind for kind, *_ in steps].count("M") == 3
    x = np.array([float(step[1]) for step in steps])
    known = np.isfinite(found.measures["gaze"])
    n = found.numbers[known]
    np.testing.assert_allclose(x, (n - n[0]) / (found.numbers[-1] - n[0]) * 640, atol=0.01)


def test_worst_frames_first_and_a_sane_size() -> None:
    long = made_up(200)
    many = replace(
        long,
        marks=tuple(
            Mark(int(n), "lips", 9.0, 4.0, f"bad {n}", float(i)) for i, n in enumerate(long.numbers)
        ),
    )
    text = report.page("long", many, [])
    assert len(text) < 10e6
    ids = re.findall(r'id="frame-(\d+)"', text)
    assert ids == [str(n) for n in long.numbers[::-1][: report.MOST_CARDS]]
    assert "24 worst of 200" in text


@pytest.mark.parametrize("count", [1, 2])
def test_a_very_short_shot_has_a_report(count: int) -> None:
    short = made_up(40)
    cut = slice(5, 5 + count)
    few = replace(
        short,
        numbers=short.numbers[cut],
        state=short.state[cut],
        cut=short.cut[cut],
        measures={n: v[cut] for n, v in short.measures.items()},
        marks=(),
        signals={n: (a[cut], b[cut]) for n, (a, b) in short.signals.items()},
        cards=short.cards[cut],
    )
    read = Reader(report.page("short", few, []))
    assert "No frame is marked." in " ".join(read.text)


# -- in a browser --------------------------------------------------------------------------------


def browse(page: str, folder: Path, *options: str) -> tuple[str, str]:
    """What Chromium writes to its output of a page, and what that said in its console."""
    assert CHROMIUM is not None
    path = folder / "report.html"
    path.write_text(page, encoding="utf-8")
    command = [
        CHROMIUM,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        f"--user-data-dir={folder / 'profile'}",
        "--enable-logging=stderr",
        "--virtual-time-budget=3000",
        *options,
        path.as_uri(),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout, "\n".join(e for e in done.stderr.splitlines() if "CONSOLE" in e)


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
def test_a_browser_draws_it_without_a_complaint(page: str, found: Quality, tmp_path: Path) -> None:
    shot = tmp_path / "shot.png"
    options = (f"--screenshot={shot}", "--window-size=1400,2400")
    _, complaints = browse(page, tmp_path, *options)
    dom, more = browse(page, tmp_path, "--dump-dom")
    assert complaints + more == ""
    assert f'data-ready="{len(found.numbers)}"' in dom  # the script ran to its end
    title = re.search("<title>(.*?)</title>", dom, re.DOTALL)
    assert title is not None
    assert "quality report" in title[1]  # and no other did
    picture = cv2.imread(str(shot))
    assert picture.shape[:2] == (2400, 1400)
    rows = picture.std((1, 2))
    assert (rows > 5).mean() > 0.5  # there is something nearly everywhere


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
def test_pointing_at_a_curve_shows_the_frame_and_a_heading_sorts(
    page: str, found: Quality, tmp_path: Path
) -> None:
    # The page's own policy lets no other script run: for this it is taken out.
    acts = """<script>
      const chart = document.querySelector('[data-chart="mouth"]');
      const box = chart.querySelector("svg").getBoundingClientRect();
      const point = {clientX: box.left + box.width * SHARE, clientY: box.top + 9, bubbles: true};
      chart.dispatchEvent(new PointerEvent("pointermove", point));
      document.querySelectorAll("#frames thead button")[COLUMN].click();
    </script></body>"""
    row = 7
    share = (found.numbers[row] - found.numbers[0]) / (found.numbers[-1] - found.numbers[0])
    column = 2 + list(MEASURES).index("jitter")
    acts = acts.replace("SHARE", str(share)).replace("COLUMN", str(column))
    open_page = re.sub(r"<meta http-equiv[^>]*>", "", page).replace("</body>", acts)
    dom, complaints = browse(open_page, tmp_path, "--dump-dom", "--window-size=1400,900")
    assert "Uncaught" not in complaints
    peek = re.search(r'<div id="peek"([^>]*)>(.*?)</div>', dom, re.DOTALL)
    assert peek is not None
    assert "hidden" not in peek[1]
    assert f"{found.numbers[row]}, solved" in peek[2]
    assert "less open than the driver" in peek[2]
    assert "data:image/jpeg;base64," in peek[2]
    body = re.search(r'id="frames".*?<tbody>(.*?)</tbody>', dom, re.DOTALL)
    assert body is not None
    order = [int(n) for n in re.findall(r'<th scope="row">(\d+)</th>', body[1])]
    jitter = np.array([found.measures["jitter"][list(found.numbers).index(n)] for n in order])
    assert sorted(order) == found.numbers.tolist()
    assert np.isnan(jitter[-2:]).all()  # what is not known comes last
    assert (np.diff(np.round(jitter[:-2], 2)) <= 0).all()
