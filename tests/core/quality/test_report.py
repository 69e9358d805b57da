"""The report as a browser gets it, and as a real one shows it."""

import base64
import contextlib
import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import cv2
import numpy as np
import pytest
from browser import NoBrowserError, Page, browser
from repository import SUPPORT

from core.quality import report
from core.quality.cards import CARD, jpeg
from core.quality.definitions import MEASURES, SIGNALS, Mark, Quality
from core.quality.marks import mark
from core.solve.latent_track import FrameState

HOSTILE = """<script>document.title="hacked"</script><img src=x onerror=alert(1)>'"&</title>"""
PAGE_FAULTS = (SUPPORT / "page_faults.js").read_text(encoding="utf-8")


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
    facts = [
        ("Consent", [("who agreed", HOSTILE), ("when", "2030-01-01")]),
        (
            "Latent track",
            [
                ("hash", "0f" * 32),
                ("driving clip", "/jobs/show/shot_0010/a_long_name_without_a_space_v012.%04d.exr"),
                ("a_setting_with_a_very_long_name", "1"),
            ],
        ),
    ]
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
        if tag not in ("meta", "img", "link", "br", "input"):
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
    assert not any(a.get("id") == "only-marked" for _, a in read.tags)


# -- in a browser --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """A browser's page, which the tests of this module share."""
    with contextlib.ExitStack() as stack:
        try:
            opened = stack.enter_context(browser(tmp_path_factory.mktemp("browser")))
        except NoBrowserError as error:
            pytest.skip(str(error))
        yield opened


@pytest.fixture(scope="module")
def file(page: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report") / "report.html"
    path.write_text(page, encoding="utf-8")
    return path


PEEK = "document.getElementById('peek')"


def peek(shown: Page) -> str:
    """Waits for the picture beside the pointer, checks its place, and returns what it says."""
    shown.wait(f"!{PEEK}.hidden && {PEEK}.querySelector('img').naturalWidth > 0")
    assert shown.evaluate(f"{PEEK}.querySelector('img').src").startswith("data:image/jpeg;base64,")
    box = shown.evaluate(f"{PEEK}.getBoundingClientRect().toJSON()")
    assert box["left"] >= 0
    assert box["top"] >= 0
    assert box["right"] <= shown.evaluate("innerWidth")
    assert box["bottom"] <= shown.evaluate("innerHeight")
    return shown.evaluate(f"{PEEK}.querySelector('p').textContent")


def order(shown: Page) -> list[int]:
    """The frames of the table's visible rows, from the top."""
    texts = shown.evaluate(
        "[...document.querySelectorAll('#frames tbody tr')].filter(row => row.checkVisibility())"
        ".map(row => row.cells[0].textContent)"
    )
    return [int(text) for text in texts]


def heading(name: str) -> str:
    """The selector of the button that sorts by a measure, "Frame" or "State"."""
    column = ["Frame", "State", *MEASURES].index(name) + 1
    return f"#frames thead th:nth-child({column}) button"


@pytest.mark.parametrize(
    ("width", "scheme", "media"),
    [
        (375, "light", "screen"),
        (800, "light", "screen"),
        (1280, "light", "screen"),
        (1920, "light", "screen"),
        (1280, "dark", "screen"),
        (1032, "light", "print"),  # A4, landscape, without its margins
    ],
)
def test_a_browser_draws_it_without_a_fault(
    shown: Page,
    file: Path,
    found: Quality,
    tmp_path: Path,
    width: int,
    scheme: str,
    media: str,
) -> None:
    shown.open(file, width, 900, scheme=scheme, media=media)
    # The script ran to its end, and no other did.
    ready = shown.evaluate("document.documentElement.dataset.ready")
    assert ready == str(len(found.numbers))
    assert "quality report" in shown.evaluate("document.title")
    assert shown.evaluate(PAGE_FAULTS) == []
    picture = shown.screenshot(tmp_path / f"{width}_{scheme}_{media}.png")
    assert picture.shape[:2] == (shown.evaluate("document.body.scrollHeight"), width)
    rows = picture.std((1, 2))
    assert (rows[:2400] > 5).mean() > 0.5  # there is something nearly everywhere
    filled = np.flatnonzero(rows > 1)
    assert np.diff(filled, prepend=0, append=len(rows)).max() < 120  # px: no large gaps
    paper = picture[2, 2].mean()
    assert paper < 50 if scheme == "dark" else paper > 250
    assert shown.complaints() == []
    assert [r for r in shown.requests() if not r.startswith("data:")] == [file.as_uri()]


def test_faults_of_the_layout_would_be_seen(shown: Page, file: Path) -> None:
    shown.open(file, 1280, 900)
    shown.evaluate("document.head.append(document.createElement('style'))")
    for style, fault in {
        ".figures { width: 1400px }": "the page is",
        "h1 { margin-left: -50px }": "reaches from",
        ".chart figcaption { margin-bottom: -20px }": "covers",
        ".tick { width: 20px }": "is cut by its SPAN.tick",
        ".cards figure { height: 100px }": "is cut by its FIGURE",
        ".cards img { height: 200px }": "the picture of",
        ".plot { width: 100px }": "the plot of",
        ".plot path { transform: translateY(60px) }": "leaves its plot",
        ".small { font-size: 9px }": "is written in 9px",
        ":root { --quiet: #aaa }": "has a contrast of",
    }.items():
        shown.evaluate(f"document.head.lastElementChild.textContent = {style!r}")
        assert any(fault in said for said in shown.evaluate(PAGE_FAULTS)), style


@pytest.mark.parametrize("width", [800, 1280])
def test_pointing_at_a_curve_shows_the_frame(
    shown: Page, file: Path, found: Quality, width: int
) -> None:
    shown.open(file, width, 900)
    height = shown.evaluate("document.body.scrollHeight")
    row = 7
    share = (found.numbers[row] - found.numbers[0]) / (found.numbers[-1] - found.numbers[0])
    x, y = shown.centre('[data-chart="mouth"] svg', share)
    shown.move(x, y)
    said = peek(shown)
    assert f"{found.numbers[row]}, solved" in said
    assert "less open than the driver" in said
    values = shown.evaluate(
        "Object.fromEntries([...document.querySelectorAll('.chart')]"
        ".map(chart => [chart.dataset.chart, chart.querySelector('output').textContent]))"
    )
    assert values["mouth"] == "-20"
    for name, of in found.measures.items():
        assert float(values[name]) == pytest.approx(of[row], rel=0.01)
    for name, both in found.signals.items():
        parts = [float(part) for part in values[f"both {name}"].split(" / ")]
        assert parts == pytest.approx([of[row] for of in both], rel=0.01)
    (cursor,) = shown.evaluate(
        "[document.querySelector('[data-chart=\"mouth\"] .cursor').getBoundingClientRect().left]"
    )
    assert cursor == pytest.approx(x, abs=1)
    assert shown.evaluate(PAGE_FAULTS) == []  # with the values beside the titles
    assert shown.evaluate("document.body.scrollHeight") == height

    shown.move(*shown.centre('[data-chart="mouth"] svg', 0.999))
    shown.wait(f"{PEEK}.textContent.includes('{found.numbers[-1]}, ')")
    peek(shown)
    shown.move(2, 2)
    shown.wait(f"{PEEK}.hidden")
    assert shown.evaluate(
        "[...document.querySelectorAll('output')].every(shown => shown.textContent === '')"
    )
    assert shown.complaints() == []


def test_a_finger_shows_a_frame_until_it_touches_elsewhere(shown: Page, file: Path) -> None:
    shown.open(file, 375, 800)
    shown.tap(*shown.centre('[data-chart="jitter"] svg', 0.001))
    assert peek(shown).startswith("1001, solved")
    shown.tap(*shown.centre("#frames h2"))
    shown.wait(f"{PEEK}.hidden")
    shown.tap(*shown.centre("#frames tbody tr:nth-child(3) th"))
    assert peek(shown).startswith("1003, solved")


def test_a_heading_sorts(shown: Page, file: Path, found: Quality) -> None:
    shown.open(file, 1400, 900)
    assert order(shown) == found.numbers.tolist()
    index = {int(n): i for i, n in enumerate(found.numbers)}
    button = heading("jitter")
    height = shown.evaluate("document.body.scrollHeight")
    for direction in (-1, 1):
        shown.click(*shown.centre(button))
        frames = order(shown)
        assert sorted(frames) == found.numbers.tolist()
        jitter = found.measures["jitter"][[index[n] for n in frames]]
        assert np.isnan(jitter[-2:]).all()  # what is not known comes last
        assert (np.diff(np.round(jitter[:-2], 2)) * direction >= 0).all()
        said = shown.evaluate(f"document.querySelector({button!r}).parentElement.ariaSort")
        assert said == ("descending" if direction < 0 else "ascending")
        assert shown.evaluate("document.body.scrollHeight") == height
    shown.evaluate("document.querySelector('.scroll').scrollLeft = 0")
    assert shown.evaluate(PAGE_FAULTS) == []
    shown.click(*shown.centre(heading("State")))
    assert order(shown)[-1] == found.numbers[30]  # the one that is held
    # A row that has moved shows its own frame.
    shown.move(*shown.centre("#frames tbody tr:last-child th"))
    assert peek(shown).startswith(f"{found.numbers[30]}, held")
    assert shown.complaints() == []


def test_marked_frames_alone_are_listed(shown: Page, file: Path, found: Quality) -> None:
    shown.open(file, 1280, 900)
    shown.click(*shown.centre("#only-marked"))
    assert order(shown) == sorted(found.marked)
    shown.click(*shown.centre(heading("Frame")))
    assert order(shown) == sorted(found.marked, reverse=True)
    assert shown.evaluate(PAGE_FAULTS) == []
    shown.click(*shown.centre("#frames label"))
    assert order(shown) == found.numbers.tolist()[::-1]


def test_the_keyboard_reaches_everything(shown: Page, file: Path, found: Quality) -> None:
    shown.open(file, 1280, 900)
    first, second = (f"{n}, solved" for n in found.numbers[:2])
    shown.press("Tab")
    focused = "document.activeElement"
    assert shown.evaluate(f"{focused}.dataset.chart") == f"both {next(iter(SIGNALS))}"
    assert shown.evaluate(f"getComputedStyle({focused}).outlineStyle") != "none"
    for key, said in (("ArrowRight", first), ("ArrowRight", second), ("ArrowLeft", first)):
        shown.press(key)
        assert peek(shown) == said
    reached = []
    name = f"{focused}.dataset.chart ?? {focused}.id + {focused}.textContent.trim()"
    for _ in range(len(SIGNALS) + 2 * len(MEASURES) + 4):
        reached.append(shown.evaluate(name))
        if reached[-1].startswith("Jitter"):
            shown.press("Enter")
        if reached[-1] == "only-marked":
            shown.press(" ")
        shown.press("Tab")
    assert shown.evaluate(f"{PEEK}.hidden")
    wanted = shown.evaluate(
        "[...document.querySelectorAll('.chart')].map(chart => chart.dataset.chart).concat("
        "'only-marked', [...document.querySelectorAll('thead button')]"
        ".map(button => button.textContent.trim()))"
    )
    assert [name for name in reached if name in wanted] == wanted
    assert set(order(shown)) == set(found.marked)
    assert order(shown)[0] == found.numbers[20]  # the jump
