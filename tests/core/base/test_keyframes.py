"""Keyframes: what text means, values between keys, and what is refused."""

import itertools
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.base.keyframes import EASINGS, Key, KeyframeError, as_text, at, from_plain, parse


def test_text() -> None:
    keys = (Key(1001, 0, "smooth"), Key(1010, 1.5, "hold"), Key(1020, -2))
    assert parse("1001:0:smooth,1010:1.5:hold,1020:-2") == keys
    assert parse("1020:-2  1001:0:smooth, 1010:1.5:hold") == keys  # any order, any separator
    assert at(parse("0.25"), [-5, 0, 1001]).tolist() == [0.25] * 3


def test_between_keys() -> None:
    keys = parse("10:0:linear,14:8:smooth,18:0:hold,20:4")
    frames = [0, 10, 11, 13, 14, 15, 16, 17, 18, 19, 20, 99]
    # 3 t^2 - 2 t^3 at a quarter is 5/32.
    wanted = [0, 0, 2, 6, 8, 8 * 27 / 32, 4, 8 * 5 / 32, 0, 0, 4, 4]
    values = at(keys, frames)
    assert values.dtype == np.float32
    assert values.tolist() == wanted
    assert at(keys, frames[::-1]).tolist() == wanted[::-1]


number = st.integers(-100, 1100)
value = st.floats(-1000, 1000, allow_nan=False, width=32)
some_keys = st.lists(
    st.builds(Key, number, value, st.sampled_from(EASINGS)),
    min_size=1,
    max_size=6,
    unique_by=lambda key: key.number,
)


@settings(max_examples=50, deadline=None)
@given(keys=some_keys)
def test_properties(keys: list[Key]) -> None:
    ordered = from_plain(keys)
    assert from_plain(json.loads(json.dumps(ordered))) == ordered
    assert parse(as_text(keys)) == ordered
    places = [key.number for key in ordered]
    assert at(ordered, places).tolist() == [key.value for key in ordered]  # exact at keys
    everywhere = at(ordered, np.arange(-110, 1110))
    assert everywhere[0] == ordered[0].value
    assert everywhere[-1] == ordered[-1].value
    for a, b in itertools.pairwise(ordered):
        part = at(ordered, np.arange(a.number, b.number))
        low, high = sorted([a.value, b.value])
        slack = 1e-6 * (1 + max(abs(low), abs(high)))
        assert (part >= low - slack).all()
        assert (part <= high + slack).all()
        turns = np.sign(np.diff(part.astype(np.float64)))
        assert len({*turns[np.abs(np.diff(part)) > slack].tolist()}) <= 1  # no overshoot


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", "one value at least"),
        ("1001", None),
        ("1001:x", "is no key"),
        ("a:1", "is no key"),
        ("1.5:1", "is no key"),
        ("1,2", "is no key"),
        ("1001:1:2:3", "no keys"),
        ("1001:nan", "finite"),
        ("inf", "finite"),
        ("1e39", "finite"),  # not in float32
        ("9999999999999999999:1", "too far"),
        ("1001:1:bounce", "linear, smooth, hold"),
        ("1001:1,1001:2", "two keys"),
    ],
)
def test_what_is_refused(text: str, what: str | None) -> None:
    if what is None:
        assert parse(text) == (Key(0, 1001.0),)
        return
    with pytest.raises(KeyframeError, match=what):
        parse(text)


@pytest.mark.parametrize("plain", [3, [3], [[1, "x", "linear"]], [[1.0, 1]], [[True, 1]], [[]]])
def test_plain_values_of_another_shape(plain: object) -> None:
    with pytest.raises(KeyframeError):
        from_plain(plain)
