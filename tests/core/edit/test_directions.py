"""Files of directions, foreign ones among them, and directions that are found."""

import io
import os
import pickle
import re
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from small_character import small_character
from small_generators import random_generator

from core.base import container
from core.edit.directions import (
    AMOUNTS,
    FORMAT,
    REACH,
    VERSION,
    Direction,
    Directions,
    DirectionSettings,
    NotDirectionsError,
    NothingFoundError,
    compatibility_notes,
    facts,
    find_in_character,
    find_in_generator,
    load_directions,
    merge_directions,
    sample_p,
    save_directions,
    sheet,
    table,
)
from core.face.identity import proxy_recogniser
from core.face.landmarks import detect_landmarks
from core.face.measures import MEASURES, measure
from core.generator.storage import generator_digest
from core.personalize.character import Character, CharacterInfo
from core.synthetic.base import base_generator
from server.cli.reporting import Report

RNG = np.random.default_rng(0)
FLAT = np.float32(RNG.standard_normal(512))
DEEP = np.float32(RNG.standard_normal((18, 512)))


def made() -> Directions:
    moves = dict.fromkeys(MEASURES, 0.0) | {"smile": 1.02, "yaw": -0.03}
    std = dict.fromkeys(MEASURES, 0.1)
    return Directions(
        {"smile": Direction(FLAT, moves, std, 0.9), "age": Direction(DEEP)},
        "a" * 64,
        "b" * 64,
        dict.fromkeys(MEASURES, 0.05),
        "Ä person",
        ("A note.",),
    )


# -- files ---------------------------------------------------------------------------------------


def test_directions_come_back_as_they_were(tmp_path: Path) -> None:
    save_directions(tmp_path / "me.directions", made())
    found = load_directions(tmp_path / "me.directions")
    assert len(found.hash) == 64
    assert facts(found) == facts(made())
    assert (found.owner, found.base, found.notes) == (made().owner, made().base, made().notes)
    assert [*found.directions] == ["smile", "age"]
    for name, direction in made().directions.items():
        np.testing.assert_array_equal(found.directions[name].vector, direction.vector)
        assert found.directions[name].vector.dtype == np.float32
    shown = table(facts(found)).splitlines()
    moved = [f"{made().directions['smile'].moves[name]:.2f}" for name in MEASURES]
    assert shown[0].split()[2:] == ["R^2", *MEASURES]
    assert shown[2].split() == ["smile", "0.90", *moved]
    assert "[18, 512]" in shown[3]


@pytest.mark.parametrize(
    "vector", [np.zeros(512), np.full(512, np.nan), np.ones((2, 3, 512)), np.ones(1)]
)
def test_what_is_no_direction_is_not_written(tmp_path: Path, vector: np.ndarray) -> None:
    with pytest.raises(ValueError, match="bad"):
        save_directions(tmp_path / "a", Directions({"bad": Direction(np.float32(vector))}))
    assert not list(tmp_path.iterdir())


def test_damaged_and_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "me.directions"
    save_directions(path, made())
    whole = path.read_bytes()
    others = {
        "cut": whole[: len(whole) // 2],
        "flipped": whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:],
        "text": b"# no directions at all\n",
        "empty": b"",
        "large": b"\x80" + bytes(9 << 20),
    }
    for name, content in others.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(NotDirectionsError, match=name):
            load_directions(tmp_path / name)
    container.write(tmp_path / "track", "reenact.latents", 3, {}, {"a": FLAT})
    with pytest.raises(NotDirectionsError, match="not a file of directions"):
        load_directions(tmp_path / "track")
    container.write(tmp_path / "bare", FORMAT, VERSION, {}, {"a": FLAT})
    with pytest.raises(NotDirectionsError, match="damaged"):
        load_directions(tmp_path / "bare")
    with pytest.raises(NotDirectionsError, match="can't be read"):
        load_directions(tmp_path / "nowhere")


UNIT = FLAT / np.linalg.norm(FLAT)


@pytest.mark.parametrize(
    ("array", "wanted"),
    [
        (FLAT, FLAT),
        (FLAT[None], FLAT),
        (np.float64(DEEP), DEEP),
        (DEEP[None], DEEP),
        (np.tile(np.float64(UNIT) * 0.4, (18, 1)), np.float32(np.float64(UNIT) * 0.4)),  # STIT
        (np.tile(UNIT, (1, 18, 1)), UNIT),  # e4e
    ],
)
def test_every_shape_that_others_publish(
    tmp_path: Path, array: np.ndarray, wanted: np.ndarray
) -> None:
    np.save(tmp_path / "smile.npy", array)
    torch.save(torch.from_numpy(array), tmp_path / "smile.pt")
    torch.save(torch.from_numpy(array), tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    for file in ("smile.npy", "smile.pt", "old.pt"):
        found = load_directions(tmp_path / file)
        ((name, direction),) = found.directions.items()
        assert name == Path(file).stem
        np.testing.assert_array_equal(direction.vector, wanted)
        assert direction.vector.dtype == np.float32
        assert (found.owner, found.notes) == ("", ())


def test_several_in_one_file(tmp_path: Path) -> None:
    torch.save(
        {"Smiling": torch.from_numpy(FLAT)[None], "Young": torch.from_numpy(DEEP)},
        tmp_path / "boundaries.pt",
    )
    found = load_directions(tmp_path / "boundaries.pt").directions
    assert [*found] == ["Smiling", "Young"]
    np.testing.assert_array_equal(found["Young"].vector, DEEP)


def test_foreign_files_that_hold_no_directions(tmp_path: Path) -> None:
    promising = bytearray(b"\x93NUMPY\x01\x00\x76\x00")
    header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (9000000000, 512), }"
    files = {
        "promises.npy": bytes(promising) + header.ljust(117) + b"\n" + bytes(64),
        "code.pt": pickle.dumps(print),
        "objects.npy": None,
    }
    np.save(tmp_path / "objects.npy", np.array([{}, 1], object), allow_pickle=True)
    for name, content in files.items():
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(NotDirectionsError, match=name):
            load_directions(tmp_path / name)
    for i, array in enumerate(
        (np.arange(512), np.zeros(512), np.full(512, np.inf), np.ones((2, 18, 512)), np.float64(1))
    ):
        np.save(tmp_path / f"{i}.npy", array)
        with pytest.raises(NotDirectionsError, match="holds no directions"):
            load_directions(tmp_path / f"{i}.npy")
    torch.save({"a": 1}, tmp_path / "numbers.pt")
    with pytest.raises(NotDirectionsError, match="no arrays"):
        load_directions(tmp_path / "numbers.pt")


def saved(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=True)
    return file.getvalue()


def archive(content: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as zipped:
        zipped.writestr("smile.npy", content)
    return file.getvalue()


def with_header(text: bytes) -> bytes:
    return b"\x93NUMPY\2\0" + struct.pack("<I", len(text)) + text + bytes(4096)


FINE = saved(FLAT)
HEADER = b"{'descr': '<f8', 'fortran_order': False, 'shape': (%s), }\n"


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (FINE[:-1], "2047 of 2048 bytes.*cut off"),
        (FINE[:60], "header is damaged"),
        (FINE[:9], "header is damaged"),
        (b"", "empty file"),
        (b"hello\n" * 20, "text file"),
        (b"<html><body>404", "web page"),
        (bytes(5000), "zeros"),
        (saved(np.array([{}, 1], object)), "Python objects, which are never run"),
        (saved(np.full(512, np.nan)), "NaN"),
        (saved(np.full(512, 1e300)), "too large"),
        (saved(np.zeros(512)), "0 throughout"),
        (saved(np.float64(1)), "a single number"),
        (saved(np.ones((3, 4, 5))), r"\[3, 4, 5\], not \[512\]"),
        (saved(np.ones((0, 512))), "empty"),
        (saved(np.arange(512)), "int64, not of floats"),
        (with_header(HEADER % b"1, 512" + b" " * 1_000_000), "header is damaged"),
        (with_header(HEADER % b"9000000000, 512"), "of 36864000000000 bytes"),
        (with_header(HEADER % b"-1, 512"), "empty"),
        (with_header(b"(" * 9000), "header is damaged"),
        (b"\x93NUMPY\2\0\xff\xff\xff\xff", "header is damaged"),
        (b"\x93NUMPY\x09\0" + FINE[8:], "header is damaged"),
        (archive(FINE), "numpy.savez"),
        (archive(bytes(50 << 20)), "numpy.savez"),
        (archive(FINE)[:200], "numpy.savez"),
    ],
)
@pytest.mark.parametrize("suffix", ["npy", "npz"])
def test_a_damaged_array_is_told_in_a_sentence(tmp_path: Path, suffix, content, told) -> None:
    (tmp_path / f"smile.{suffix}").write_bytes(content)
    with pytest.raises(NotDirectionsError, match=rf"smile\.{suffix} holds no.*{told}") as caught:
        load_directions(tmp_path / f"smile.{suffix}")
    assert "floats, [512] or [layers, 512]" in str(caught.value)
    assert not re.search("mmap|allow_pickle|EOF|checkpoint", str(caught.value))


def test_content_decides_and_not_the_suffix(tmp_path: Path) -> None:
    torch.save(torch.from_numpy(FLAT), tmp_path / "a.npy")
    np.save(tmp_path / "b", np.asfortranarray(DEEP))
    os.replace(tmp_path / "b.npy", tmp_path / "b.pt")
    for name, wanted in (("a.npy", FLAT), ("b.pt", DEEP)):
        (direction,) = load_directions(tmp_path / name).directions.values()
        np.testing.assert_array_equal(direction.vector, wanted)


def test_a_pickle_is_read_and_never_run(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple:
            return Path.touch, (tmp_path / "run",)

    (tmp_path / "age.pt").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(NotDirectionsError, match="refused"):
        load_directions(tmp_path / "age.pt")
    assert not (tmp_path / "run").exists()


def someone(base: str) -> Character:
    info = CharacterInfo("Someone", {}, base_hash=base, selected=[0])
    picture = np.zeros((8, 8, 3), np.uint8)
    return Character(
        random_generator(), torch.ones(1, 512), torch.zeros(1, 86, 3), picture, info, "c" * 64
    )


def test_directions_of_another_family_are_warned_of(tmp_path: Path) -> None:
    embedded = someone(generator_digest(base_generator()))
    ffhq = someone("f" * 64)
    names = {"age.pt": 1, "stylegan_ffhq_smile_w_boundary.npy": 2, "boundary.npy": 2}
    for name, count in names.items():
        if name.endswith(".npy"):
            np.save(tmp_path / name, np.float64(FLAT)[None])
        else:
            torch.save(torch.from_numpy(FLAT)[None], tmp_path / name)
        found = load_directions(tmp_path / name)
        said = compatibility_notes(found, embedded)
        assert len(said) == count
        assert "the embedded one: there they mean nothing" in said[-1]
        assert len(compatibility_notes(found, ffhq)) == count - 1
    assert "StyleGAN1" in said[0]
    own = Directions(found.directions, owner="c" * 64)
    of_base = Directions(found.directions, owner="f" * 64)
    of_sibling = Directions(found.directions, owner="d" * 64, base="f" * 64)
    stranger = Directions(found.directions, owner="d" * 64, base="e" * 64)
    assert [len(compatibility_notes(d, ffhq)) for d in (own, of_base, of_sibling, stranger)] == [
        0,
        0,
        0,
        1,
    ]


def test_one_name_for_two_directions_is_refused() -> None:
    a, b = Directions({"x": Direction(FLAT)}), Directions({"y": Direction(DEEP)})
    assert [*merge_directions([a, b, a])] == ["x", "y"]
    with pytest.raises(NotDirectionsError, match="two directions called x"):
        merge_directions([a, Directions({"x": Direction(-FLAT)})])


# -- finding -------------------------------------------------------------------------------------


def test_codes_of_p_add_up_and_reach_a_little_beyond_the_hull() -> None:
    anchors = torch.randn(12, 512, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    codes = sample_p(anchors, 200, torch.Generator().manual_seed(1)).numpy()
    gamma = (codes - anchors.numpy().mean(0)) @ np.linalg.pinv(
        anchors.numpy() - anchors.numpy().mean(0), rcond=1e-9
    )
    weights = 1 / 12 + gamma  # unique: the anchors are independent
    np.testing.assert_allclose(weights @ anchors.numpy(), codes, atol=1e-6)
    lowest = -weights.min(1)
    assert lowest.min() >= -1e-6
    assert 0.8 * (REACH - 1) / 12 < lowest.max() <= (REACH - 1) / 12 + 1e-6
    assert ((weights > -lowest[:, None] + 1e-6).sum(1) == 3).all()


def actual(
    generator: torch.nn.Module, codes: torch.Tensor
) -> tuple[dict[str, np.ndarray], torch.Tensor, torch.Tensor]:
    """What pictures of codes do, the pictures, and their landmarks."""
    pictures, meshes = [], []
    with torch.no_grad():
        for part in codes.split(8):
            pictures.append(generator.synthesis(part).clamp(-1, 1))
            meshes.append(detect_landmarks(pictures[-1]).landmarks)
    return measure(torch.cat(meshes).numpy()), torch.cat(pictures), torch.cat(meshes)


def test_directions_of_the_embedded_generator_move_what_they_are_called_after() -> None:
    generator = base_generator()
    found = find_in_generator(generator, Report(True), DirectionSettings(96, 3, 1), "embedded")
    assert found.owner == generator_digest(generator)
    assert {"smile", "jaw", "lids", "yaw", "pitch", "gaze_x", "brow"} <= found.directions.keys()
    with torch.no_grad():
        w = generator.mapping(torch.randn(6, 512, generator=torch.Generator().manual_seed(99)), 0.7)
    for name in ("smile", "jaw", "yaw"):
        vector = torch.from_numpy(found.directions[name].vector)
        moved, *drawn = actual(generator, torch.cat([w + a * vector for a in AMOUNTS]))
        shown = {m: v.reshape(5, 6) / found.units[m] for m, v in moved.items()}
        low, _, rest, _, high = shown[name]
        assert (low < rest).all()
        assert (rest < high).all()
        assert (np.diff(shown[name].mean(1)) > 0).all()
        assert 2.5 < (high - low).mean() < 5.5
        for other in {"smile", "jaw", "yaw", "pitch"} - {name}:
            low, *_, high = shown[other]
            assert abs((high - low).mean()) < 0.8, (name, other)  # of 4
        if name == "smile":  # all are who they were; of turned heads the proxy knows less
            with torch.no_grad():
                faces = proxy_recogniser().embed(*drawn).reshape(5, 6, -1)
            assert ((faces @ faces[2].T).argmax(-1) == torch.arange(6)).all()
    assert found.directions["yaw"].fit is not None
    assert found.directions["yaw"].fit > 0.5
    assert 0.5 < found.directions["smile"].moves["smile"] < 1.5


def test_directions_of_a_character_stay_in_its_plane_and_what_it_can_t_do_is_said() -> None:
    who = small_character()
    found = find_in_character(who, Report(True), DirectionSettings(64, 2, 2))
    assert (found.owner, found.source) == (who.hash, "Small")
    anchors = who.anchors.double().numpy()
    centred = anchors - anchors.mean(0)
    for direction in found.directions.values():
        inside = direction.vector @ np.linalg.pinv(centred, rcond=1e-6) @ centred
        np.testing.assert_allclose(inside, direction.vector, atol=1e-3)
    scan, *_ = actual(who.generator, who.anchors)
    assert found.units["yaw"] == pytest.approx(scan["yaw"].std(), rel=1e-3)
    yaw = torch.from_numpy(found.directions["yaw"].vector)
    turned, *_ = actual(who.generator, who.anchors.mean(0) + torch.tensor([[-1.0], [1.0]]) * yaw)
    assert turned["yaw"][1] - turned["yaw"][0] > found.units["yaw"] / 2
    drawn = sheet(who.generator, who.anchors.mean(0), found, 32)
    assert drawn.shape[1] == 2 * len(AMOUNTS) * 32
    assert {*MEASURES} == {*found.directions} | {
        note.split()[3].rstrip(":") for note in found.notes
    }


def test_pictures_that_show_nothing_have_no_directions() -> None:
    generator = random_generator()
    for parameter in generator.synthesis.parameters():
        parameter.data.zero_()
    with pytest.raises(NothingFoundError, match="generator of faces"):
        find_in_generator(generator, Report(True), DirectionSettings(8, 2, 2))
