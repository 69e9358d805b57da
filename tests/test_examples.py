"""The examples in the docstrings of the functions that are used most."""

import doctest
import importlib

import pytest

EXAMPLES = (
    "core.base.digest.digest",
    "core.base.files.atomic_write",
    "core.base.keyframes.at",
    "core.base.keyframes.parse",
    "core.base.sampling.evenly_spaced",
    "core.face.alignment.warp",
    "core.media.colour.from_network",
    "core.media.colour.to_network",
    "core.media.contact_sheet.contact_sheet",
    "core.media.numbering.format_numbers",
    "core.media.numbering.frame_path",
    "core.media.read.read_frames",
    "core.media.write.write_exr",
)


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_example_gives_what_it_says(name: str) -> None:
    module_name, _, function = name.rpartition(".")
    module = importlib.import_module(module_name)
    (found,) = doctest.DocTestFinder(recurse=False).find(
        getattr(module, function), name, module, module.__dict__
    )
    assert found.examples, f"{name} has no example"
    said: list[str] = []
    results = doctest.DocTestRunner().run(found, out=said.append)
    assert results.failed == 0, "".join(said)
