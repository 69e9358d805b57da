import json
import struct
import subprocess
import sys
from dataclasses import asdict, fields, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file
from solve_shots import random_track

from core.base import container
from core.base.errors import ReenactError
from core.solve.latent_track import (
    VERSION,
    CharacterMismatchError,
    LatentTrack,
    NotATrackError,
    Phase,
    TrackNotWrittenError,
    load_track,
    save_track,
)
from core.solve.settings import SolveSettings


def same(a, b):
    for f in fields(LatentTrack):
        if f.name == "hash":
            continue  # of the file
        x, y = getattr(a, f.name), getattr(b, f.name)
        if isinstance(x, np.ndarray):
            assert x.dtype == y.dtype, f.name
            assert x.tobytes() == y.tobytes(), f.name
        elif f.name in ("losses", "quality"):
            assert x.keys() == y.keys()
            assert all(np.array_equal(x[k], y[k], equal_nan=True) for k in x)
        else:
            assert x == y, f.name


@pytest.fixture
def path(tmp_path):
    save_track(tmp_path / "shot.latents", random_track())
    return tmp_path / "shot.latents"


def test_a_track_comes_back_as_it_was(path):
    same(load_track(path), random_track())


def test_the_hash_is_that_of_the_contents(path, tmp_path):
    first = load_track(path).hash
    save_track(tmp_path / "copy.latents", load_track(path))
    assert load_track(tmp_path / "copy.latents").hash == first
    save_track(path, replace(random_track(), parent=first))
    assert load_track(path).hash not in ("", first)


@given(st.integers(0, 4), st.integers(1, 6), st.integers(1, 4), st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_tracks_of_any_size_come_back(tmp_path_factory, frames, anchors, layers, seed):
    track = random_track(frames, anchors, layers, seed)
    path = tmp_path_factory.mktemp("size") / "t.latents"
    save_track(path, track)
    same(load_track(path), track)


def test_views_into_other_arrays_are_stored_as_they_look(tmp_path):
    track = random_track()
    turned = replace(track, delta=np.asfortranarray(track.delta), alpha=track.alpha[:, ::-1])
    save_track(tmp_path / "t.latents", turned)
    same(load_track(tmp_path / "t.latents"), turned)


def test_weights_and_places():
    track = random_track()
    assert np.array_equal(track.weights[2, 3], track.alpha[2] + track.delta[2, 3])
    assert [track.index(n) for n in (1001, 1009)] == [0, 4]
    for absent in (1000, 1002, 1010):
        with pytest.raises(KeyError):
            track.index(absent)


def test_a_frame_without_its_final_code_makes_a_track_partial():
    track = random_track()
    assert track.complete
    smooth = track.smooth.copy()
    smooth[3] = np.nan
    assert not replace(track, smooth=smooth).complete


def test_reading_needs_no_torch(path):
    code = (
        "import sys; sys.modules.update(torch=None, cv2=None, mediapipe=None, scipy=None)\n"
        "from core.solve.latent_track import load_track, save_track\n"
        "track = load_track(sys.argv[1]); save_track(sys.argv[1] + '2', track)\n"
        "print(track.codes.shape)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=False
    )
    assert run.stdout == "(5, 4, 512)\n", run.stderr
    same(load_track(str(path) + "2"), random_track())


def test_another_character_is_refused_unless_told(path):
    with pytest.raises(CharacterMismatchError, match="abababababab"):
        load_track(path, "ef" * 32)
    load_track(path, "ab" * 32)
    load_track(path, None)


# -- files of version 4 --------------------------------------------------------------------------


def write_version_4(path, track, **settings):
    """Writes a track as version 4 did: under other names, and with NaN for the phase."""
    arrays, plain = {}, {"settings": settings}
    for f in fields(LatentTrack):
        value = getattr(track, f.name)
        if f.name in ("losses", "quality"):
            arrays |= {f"{f.name}.{name}": values for name, values in value.items()}
        elif f.name == "neutral_offset":
            arrays["rest"] = value if track.phase is Phase.SOLVE else np.full_like(value, np.nan)
        elif isinstance(value, np.ndarray):
            arrays[f.name] = value
        elif f.name not in ("phase", "settings", "hash"):
            plain[f.name] = value
    container.write(path, "reenact.latents", 4, {"track": json.dumps(plain)}, arrays)


@pytest.mark.parametrize("phase", Phase)
def test_a_track_of_version_4_opens(tmp_path, phase):
    path = tmp_path / "old.latents"
    plain = json.loads(json.dumps(asdict(SolveSettings(neutral_steps=9, steps=3))))
    old = {"rest_steps" if n == "neutral_steps" else n: value for n, value in plain.items()}
    offset = (
        random_track().neutral_offset if phase is Phase.SOLVE else np.zeros((86, 3), np.float32)
    )
    expected = replace(random_track(), phase=phase, neutral_offset=offset, settings=plain)
    write_version_4(path, expected, **old)
    track = load_track(path)
    same(track, expected)
    assert SolveSettings.of(track) == SolveSettings(neutral_steps=9, steps=3)
    assert track.hash == header(path)["sha256"]  # by which other files know it
    save_track(tmp_path / "new.latents", track)
    same(load_track(tmp_path / "new.latents"), expected)


def test_a_damaged_track_of_version_4_is_refused(tmp_path):
    path = tmp_path / "old.latents"
    short = random_track().neutral_offset[1:].astype(float)
    write_version_4(path, replace(random_track(), phase=Phase.SOLVE, neutral_offset=short))
    with pytest.raises(NotATrackError, match="damaged"):
        load_track(path)


def test_an_older_version_says_what_to_do(path):
    save_file(load_file(path), path, {**header(path), "version": "3"})
    with pytest.raises(NotATrackError, match=r"older Reenact\. Make it anew"):
        load_track(path)


# -- files that are no track ---------------------------------------------------------------------


@pytest.mark.parametrize("keep", [0, 7, 8, 200, -4096, -1])
def test_truncated(path, keep):
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(NotATrackError):
        load_track(path)


@given(st.integers(0, 2**31), st.integers(0, 7))
@settings(max_examples=60, deadline=None)
def test_any_flipped_bit_is_noticed(tmp_path_factory, at, bit):
    path = tmp_path_factory.getbasetemp() / "flip.latents"
    if not path.exists():
        save_track(path.with_suffix(".good"), random_track())
        path.touch()
    data = bytearray(path.with_suffix(".good").read_bytes())
    # Half of the flips in the header, which is a small part of the file.
    length = 8 + struct.unpack("<Q", data[:8])[0]
    data[at % (length if at % 2 else len(data))] ^= 1 << bit
    path.write_bytes(data)
    try:
        track = load_track(path)
    except ReenactError:
        return
    same(track, random_track())  # a space inside the JSON may be a tab


@pytest.mark.parametrize(
    "content", [b"", b"PK\x03\x04" + bytes(100), b"\x80\x04." * 20, bytes(1000), b"\xff" * 64]
)
def test_foreign_bytes(tmp_path, content):
    (tmp_path / "x.latents").write_bytes(content)
    with pytest.raises(NotATrackError, match="can't be read"):
        load_track(tmp_path / "x.latents")


def test_foreign_safetensors(tmp_path):
    save_file({"a": np.zeros(3)}, tmp_path / "x.latents", {"format": "reenact.generator"})
    with pytest.raises(NotATrackError, match="not a latent track"):
        load_track(tmp_path / "x.latents")


def test_missing_file_and_folder(tmp_path):
    for path in (tmp_path / "none.latents", tmp_path):
        with pytest.raises(NotATrackError):
            load_track(path)


def header(path):
    data = path.read_bytes()
    return json.loads(data[8 : 8 + struct.unpack("<Q", data[:8])[0]])["__metadata__"]


def test_a_newer_version_says_so(path):
    save_file(load_file(path), path, {**header(path), "version": str(VERSION + 1)})
    with pytest.raises(NotATrackError, match="newer"):
        load_track(path)


@pytest.mark.parametrize("field", ["character", "settings", "source", "task"])
def test_an_edited_header_is_noticed(path, field):
    entries = header(path)
    plain = json.loads(entries["track"])
    plain[field] = "x"
    save_file(load_file(path), path, {**entries, "track": json.dumps(plain)})
    with pytest.raises(NotATrackError, match="damaged"):
        load_track(path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"alpha": np.zeros((5, 6), np.float32)}, "delta"),  # N is that of alpha
        ({"codes": np.zeros((5, 4, 512))}, "codes"),
        ({"smooth": np.zeros((5, 3, 512), np.float32)}, "smooth"),
        ({"numbers": np.array([1, 2, 3, 3, 4])}, "increase"),
        ({"state": np.full(5, 9, np.uint8)}, "states"),
        ({"losses": {"mouth": np.zeros(4, np.float32)}}, "losses.mouth"),
        ({"landmarks": np.zeros((5, 478, 2), np.float32)}, "landmarks"),
        ({"amount": np.full(5, 1.1, np.float32)}, "amounts"),
        ({"amount": np.full(5, np.nan, np.float32)}, "amounts"),
    ],
)
def test_arrays_that_do_not_fit_are_not_written(path, change, words):
    before = path.read_bytes()
    with pytest.raises(ValueError, match=words):
        save_track(path, replace(random_track(), **change))
    assert path.read_bytes() == before


@pytest.mark.parametrize("value", [np.inf, -np.inf, 1e30, np.nan])
@pytest.mark.parametrize("name", ["alpha", "delta", "codes", "smooth", "landmarks", "quads"])
def test_values_that_draw_nothing_are_told(path, name, value):
    """A script's division by zero; a whole row of NaN has a meaning."""
    track = random_track()
    array = getattr(track, name).copy()
    array[2].flat[0] = value
    save_track(path, replace(track, **{name: array}))
    with pytest.raises(NotATrackError, match=f"{name} of frame {track.numbers[2]} are not finite"):
        load_track(path)
    array[2] = np.nan
    save_track(path, replace(track, **{name: array}))
    load_track(path)


@pytest.mark.parametrize("name", ["landmarks", "quads"])
def test_a_face_without_size_is_told(path, name):
    track = random_track()
    array = getattr(track, name).copy()
    array[2] = array[2, :1]
    save_track(path, replace(track, **{name: array}))
    with pytest.raises(NotATrackError, match=f"of frame {track.numbers[2]} has no size"):
        load_track(path)


def test_a_failed_write_leaves_the_old_track(path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("core.base.container.save", full)
    with pytest.raises(TrackNotWrittenError, match="No space"):
        save_track(path, replace(random_track(), task=""))
    same(load_track(path), random_track())
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_a_full_disk_is_an_error_with_advice(path):
    """A real one: a limit on the size of files, in a process of its own."""
    code = (
        "import resource, signal, sys\n"
        "from core.solve.latent_track import TrackNotWrittenError, load_track, save_track\n"
        "track = load_track(sys.argv[1])\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (10000, 10000))\n"
        "try:\n    save_track(sys.argv[1], track)\n"
        "except TrackNotWrittenError as error:\n    print(error)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=False
    )
    assert "Check the free space" in run.stdout, run.stderr
    same(load_track(path), random_track())
    assert [p.name for p in path.parent.iterdir()] == [path.name]
