import hashlib
from dataclasses import dataclass, make_dataclass, replace
from enum import Enum, IntEnum
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest
import torch

from core.base.digest import digest


def test_everything_about_a_part_counts():
    numbers = torch.arange(6.0)
    parts = [
        (numbers,),
        (numbers + 1e-6,),
        (numbers.reshape(2, 3),),
        (numbers.double(),),
        (numbers.bfloat16(),),
        (numbers, 1),
        (numbers, 1.0),
        (numbers, "1"),
        (1, numbers),
        (numbers[:3], numbers[3:]),
        ("ab", "c"),
        ("a", "bc"),
    ]
    assert len({digest(*some) for some in parts}) == len(parts)


def test_where_numbers_lie_does_not_count():
    numbers = torch.arange(6.0).reshape(2, 3)
    assert digest(numbers.T.contiguous().T) == digest(numbers) == digest(numbers.numpy())
    assert digest(torch.tensor(2)) == digest(np.array(2))


def test_digests_in_files_stay_what_they_were():
    """Characters and styles hold those of tensors; strings and numbers count by their `repr`."""
    numbers = torch.arange(3, dtype=torch.float32)
    plain = (1, 0.5, "it's", None, True, (1,), ("a", [2.5, None]), {"b": (), "a": []}, ())
    expected = hashlib.sha256(b"torch.float32 [3]" + numbers.numpy().tobytes())
    assert digest(numbers) == expected.hexdigest()
    for value in plain:
        expected.update(f"{value!r}\0".encode())
    assert digest(numbers, *plain) == expected.hexdigest()


@dataclass(frozen=True)
class Inner:
    weight: float = 0.5


@dataclass(frozen=True)
class Outer:
    steps: int = 3
    inner: Inner = Inner()
    kinds: tuple[Inner, ...] = (Inner(), Inner(2.0))


def test_a_class_may_be_renamed_and_its_fields_reordered():
    renamed = make_dataclass("Renamed", [("weight", float)])
    other = make_dataclass("Other", [("kinds", tuple), ("inner", object), ("steps", int)])
    again = other((renamed(0.5), renamed(2.0)), renamed(0.5), 3)
    assert digest(again) == digest(Outer())
    assert digest([again]) == digest([Outer()])


def test_fields_count_by_name_and_value():
    same_values = make_dataclass("Outer", [("stages", int), ("inner", object), ("kinds", tuple)])
    some = [
        Outer(),
        Outer(steps=4),
        Outer(inner=Inner(0.25)),
        Outer(kinds=(Inner(),)),
        same_values(3, Inner(), Outer().kinds),
        {"steps": 3, "inner": Inner(), "kinds": Outer().kinds},
    ]
    assert len({digest(one) for one in some}) == len(some)


def test_arrays_inside_count_by_all_their_numbers():
    long = np.zeros(5000)  # their text would leave the middle out
    changed = long.copy()
    changed[2500] = 1
    holder = make_dataclass("Holder", [("values", np.ndarray)])
    assert digest(holder(long)) != digest(holder(changed))
    assert digest([long]) != digest([changed])
    assert digest(holder(long)) == digest(holder(torch.from_numpy(long)))
    assert digest([long]) != digest(long)


def test_enums_paths_numbers_and_mappings_count_by_value():
    first, second = (Enum(name, {member: "on"}) for name, member in (("A", "X"), ("B", "Y")))
    assert digest(first.X) == digest(second.Y) == digest("on")
    assert digest(IntEnum("C", {"Z": 5}).Z) == digest(5)
    assert digest(Path("a/b")) == digest("a/b")
    assert digest(np.int64(3), np.float64(0.1), np.bool_(True)) == digest(3, 0.1, True)
    assert digest(MappingProxyType({"a": 1})) == digest({"a": 1}) != digest({"a": 2})
    assert digest(b"a") != digest("a")


@pytest.mark.parametrize(
    "unknown", [object(), {1, 2}, lambda: 1, Inner, torch.float32, iter([]), replace]
)
def test_what_has_no_stable_text_is_refused(unknown):
    for part in (unknown, [unknown], {"a": unknown}, make_dataclass("Holder", ["x"])(unknown)):
        with pytest.raises(TypeError, match="digest"):
            digest(part)
