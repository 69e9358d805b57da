"""Patches and crops against OpenImageIO's own over, and against the plate they were cut from."""

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import OpenEXR
import OpenImageIO as oiio
import pytest
import torch
from reenact import protocol

from core.face.alignment import ffhq_quads, from_square, paste, warp
from core.face.tracking import track_face
from core.generator import Architecture, Generator
from core.media import colour
from core.media.clip import Clip, Window
from core.media.numbering import frame_path
from core.media.pictures import read_attribute
from core.media.read import open_clip, read_frame, read_frames, read_network_frames
from core.media.write import write_exr, write_png
from core.render import grain, layers, matte, preview
from core.render.colour_match import Match
from core.render.drawing import draw_pictures
from core.render.frames import LANDMARKS, FrameFiles, measure_grain, write_frames
from core.render.geometry import FaceGeometry, track_geometry
from core.render.grain import Grain
from core.render.patch import Patch, PatchOptions, over, patch
from core.solve.latent_track import FrameState, LatentTrack
from core.synthetic import performer
from core.synthetic.base import base_generator
from core.synthetic.parameters import neutral
from server.jobs import frame, registry, render
from server.jobs.common import BadOptionError

SIZE = 128


@pytest.fixture(scope="module")
def plate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Clip, np.ndarray, np.ndarray]:
    """A one-frame EXR plate, its network pixels `[H, W, 3]`, and the quad of its face."""
    srgb = performer.render(neutral(), 240).astype(np.float32) / 127.5 - 1
    srgb = np.pad(srgb, ((0, 0), (40, 80), (0, 0)), "edge")
    path = tmp_path_factory.mktemp("plate") / "plate.1001.exr"
    write_exr(path, colour.from_network(srgb, colour.scene_linear_space()), half=False)
    clip = open_clip(str(path).replace("1001", "####"))
    quad = ffhq_quads(track_face([(1001, srgb / 2 + 0.5)]).landmarks)[0]
    return clip, srgb, quad


def crop_of(srgb: np.ndarray, quad: np.ndarray) -> torch.Tensor:
    image = torch.from_numpy(srgb).permute(2, 0, 1)[None]
    return warp(image, torch.from_numpy(quad)[None].float(), SIZE)[0].clamp(-1, 1)


def geometry_of(crop: torch.Tensor, quad: np.ndarray, velocity: float = 0.0) -> FaceGeometry:
    """Where everything is if the crop is all that was ever drawn."""
    seen = matte.segment(crop[None])
    made = seen.landmarks[0].astype(np.float64)
    still = np.full((478, 2), [velocity, 0.0])
    return FaceGeometry(quad, made, made, seen.heads[0] / np.float32(255), still)


def test_a_patch_of_the_plate_itself_changes_nothing_to_see(plate: tuple) -> None:
    clip, srgb, quad = plate
    crop = crop_of(srgb, quad)
    placed = patch(crop, geometry_of(crop, quad), clip)
    assert placed is not None
    merged = over(placed, read_frame(clip, 1001).pixels)
    result, _ = colour.to_network(merged, clip.colour_space)
    error = np.mean(((result - srgb) / 2) ** 2)
    assert -10 * np.log10(error) > 34
    # A patch moved by two pixels would be seen: the test can tell.
    moved, _ = colour.to_network(np.roll(merged, 2, 1), clip.colour_space)
    assert np.mean(((moved - srgb) / 2) ** 2) > 5 * error


def test_over_is_openimageios_over_and_leaves_the_rest_bit_identical(plate: tuple) -> None:
    clip, srgb, quad = plate
    crop = -crop_of(srgb, quad)
    placed = patch(crop, geometry_of(crop, quad), clip)
    assert placed is not None
    pixels = read_frame(clip, 1001).pixels
    merged = over(placed, pixels)
    w = placed.window
    spec = oiio.ImageSpec(w.width, w.height, 4, oiio.FLOAT)
    spec.x, spec.y, spec.full_width, spec.full_height = w.x, w.y, clip.width, clip.height
    above, below = (
        oiio.ImageBuf(spec),
        oiio.ImageBuf(np.dstack([pixels, np.ones(pixels.shape[:2])])),
    )
    above.set_pixels(oiio.ROI(), placed.rgba)
    reference = oiio.ImageBufAlgo.over(above, below).get_pixels()[..., :3]
    np.testing.assert_allclose(merged, reference, atol=1e-6)
    outside = np.ones(pixels.shape[:2], bool)
    outside[w.y : w.y + w.height, w.x : w.x + w.width] = placed.rgba[..., 3] == 0
    assert outside.mean() > 0.5
    assert np.array_equal(merged[outside], pixels[outside])
    assert (np.abs(merged - pixels)[~outside] > 0).any()


def test_the_matte_holds_the_face_and_fades_out_before_the_edge(plate: tuple) -> None:
    clip, srgb, quad = plate
    crop = crop_of(srgb, quad)
    placed = patch(crop, geometry_of(crop, quad), clip)
    assert placed is not None
    alpha, w = placed.rgba[..., 3], placed.window
    found = from_square(geometry_of(crop, quad).generated, quad)[:468] - [w.x, w.y]
    x, y = (found.mean(0) + 0.9 * (found - found.mean(0))).astype(int).T
    assert alpha[y, x].min() > 0.8
    border = np.concatenate([alpha[0], alpha[-1], alpha[:, 0], alpha[:, -1]])
    assert border.max() < 0.05
    # No hard edge within the head; its own is as sharp as the picture.
    head = placed.layers["matte.head"] > 0.99
    steps = np.abs(np.diff(alpha, axis=0))[head[1:] & head[:-1]]
    assert len(steps) > 5000
    assert steps.max() < 0.25


def test_faceless_and_outlying_frames_are_transparent(plate: tuple) -> None:
    clip, srgb, quad = plate
    crop = crop_of(srgb, quad)
    geometry = geometry_of(crop, quad)

    def placed(at: np.ndarray) -> Patch | None:
        return patch(crop, replace(geometry, quad=at), clip)

    assert placed(np.full((4, 2), np.nan)) is None
    assert placed(quad + 10_000) is None
    half_out = placed(quad - [quad[:, 0].mean(), 0])
    assert half_out is not None
    assert half_out.window.x == 0


# -- layers --------------------------------------------------------------------------------------


def drawn(plate: tuple, path: Path, options: PatchOptions, **more: object) -> Any:
    """A patch of the plate's own face, written; by OpenEXR's own reader."""
    clip, srgb, quad = plate
    crop = crop_of(srgb, quad)
    placed = patch(crop, geometry_of(crop, quad, velocity=6.0), clip, options=options, **more)
    assert placed is not None
    write_exr(
        path,
        placed.rgba,
        window=placed.window,
        display=(clip.width, clip.height),
        layers=layers.named(placed.layers),
    )
    return placed, OpenEXR.File(str(path), separate_channels=True)


def test_another_reader_finds_the_layers_by_name_and_type(plate: tuple, tmp_path: Path) -> None:
    placed, file = drawn(plate, tmp_path / "a.exr", PatchOptions(), grain=some_grain())
    header, channels = file.header(), file.channels()
    assert header["compression"] == OpenEXR.ZIP_COMPRESSION
    assert header["type"] == OpenEXR.scanlineimage
    low, high = header["dataWindow"]
    w = placed.window
    assert (*low, *(high + 1 - low)) == (w.x, w.y, w.width, w.height)
    assert tuple(header["displayWindow"][1] + 1) == (360, 240)
    types = {name: c.pixels.dtype for name, c in channels.items()}
    assert types == {
        **dict.fromkeys("RGBA", np.float16),
        **{
            stored(f"{layer}.{channel}"): np.float32 if layer == "stmap" else np.float16
            for layer, several in layers.CHANNELS.items()
            for channel in several
        },
    }

    def layer(*names: str) -> np.ndarray:
        found = [channels[n if n in "RGBA" else stored(n)] for n in names]
        return np.stack([channel.pixels.astype(np.float32) for channel in found], -1)

    alpha = layer("A")
    np.testing.assert_array_equal(alpha, layer("matte.face"))
    # Where the head is opaque and pure, the face is the render.
    inside = layer("parts.eyes")[..., 0] > 0.99
    rgb, render = layer(*"RGB"), layer("render.red", "render.green", "render.blue")
    np.testing.assert_allclose(rgb[inside], render[inside], atol=2e-3)
    assert layer("forward.u") == pytest.approx(6, abs=0.01)
    assert np.abs(layer("forward.v")).max() < 0.01
    assert not layer("grain.red", "grain.green", "grain.blue")[alpha[..., 0] == 0].any()
    basic = drawn(plate, tmp_path / "b.exr", PatchOptions("basic"))[1].channels()
    render_names = {stored(f"render.{c}") for c in ("red", "green", "blue")}
    assert set(basic) == {*"RGBA", *render_names}


def stored(name: str, names: int = layers.NEWEST) -> str:
    """The name that OpenEXR has for a channel."""
    layer, _, channel = layers.in_file(name, names).rpartition(".")
    return f"{layer}.{dict(red='R', green='G', blue='B').get(channel, channel)}"


def test_the_stmap_draws_the_render_out_of_the_crop(plate: tuple, tmp_path: Path) -> None:
    clip, srgb, quad = plate
    placed, _ = drawn(plate, tmp_path / "a.exr", PatchOptions())
    crop = crop_of(srgb, quad).permute(1, 2, 0).contiguous().numpy()
    w = placed.window
    warped = oiio.ImageBuf(oiio.ImageSpec(w.width, w.height, 3, oiio.FLOAT))
    stmap = oiio.ImageBuf(np.ascontiguousarray(placed.layers["stmap"]))
    assert oiio.ImageBufAlgo.st_warp(
        warped, oiio.ImageBuf(crop), stmap, "triangle", 0.0, 0, 1, False, True
    ), warped.geterror()
    expected, _ = colour.to_network(placed.layers["render"].astype(np.float32), clip.colour_space)
    error = np.abs(warped.get_pixels() - expected) / 2
    assert error.mean() < 0.01
    assert np.quantile(error, 0.99) < 0.06


def some_grain(sigma: float = 0.01) -> Grain:
    spatial = np.zeros((3, 2 * grain.REACH + 1, 2 * grain.REACH + 1))
    spatial[:, grain.REACH, grain.REACH] = 1
    node = (np.array([0.0, 1.0]),) * 3
    return Grain(node, (np.full(2, sigma),) * 3, spatial, np.eye(3))


def test_grain_can_be_taken_out_and_keeps_the_plates_variance(plate: tuple) -> None:
    clip, srgb, quad = plate
    crop = crop_of(srgb, quad)
    geometry = geometry_of(crop, quad)
    clean, grainy = (
        patch(crop, geometry, clip, 0.6, PatchOptions(grain=g), some_grain(), 1001)
        for g in (0.0, 1.0)
    )
    assert clean is not None
    assert grainy is not None
    noise = clean.layers["grain"].astype(np.float32)
    np.testing.assert_array_equal(noise, grainy.layers["grain"].astype(np.float32))
    np.testing.assert_allclose(grainy.rgba[..., :3] - noise, clean.rgba[..., :3], atol=2e-5)
    np.testing.assert_array_equal(grainy.rgba[..., 3], clean.rgba[..., 3])
    alpha = clean.rgba[..., 3]
    solid = alpha > 0.59
    # A plate of the same grain under it: what is left of that and what is added are one grain.
    rng = np.random.default_rng(0)
    below = rng.normal(0, 0.01, noise.shape) * (1 - alpha[..., None])
    assert (below + noise)[solid].std() == pytest.approx(0.01, rel=0.05)
    assert below[solid].std() == pytest.approx(0.004, rel=0.05)


def test_a_match_grades_the_face_and_not_the_render(plate: tuple) -> None:
    clip, srgb, quad = plate
    crop = crop_of(srgb, quad)
    match = Match(np.array([0.5, 0.8, 1.5]), np.array([0.02, 0.0, -0.01]))
    geometry = replace(geometry_of(crop, quad), match=match)
    plain, graded = (patch(crop, geometry, clip, options=PatchOptions(match=m)) for m in (0.0, 0.5))
    assert plain is not None
    assert graded is not None
    np.testing.assert_array_equal(graded.layers["render"], plain.layers["render"])
    alpha = plain.rgba[..., 3:]
    gain, offset = 1 + 0.5 * (match.gain - 1), 0.5 * match.offset
    expected = plain.rgba[..., :3] * gain + offset * alpha
    np.testing.assert_allclose(graded.rgba[..., :3], expected, atol=1e-5)


def test_motion_blur_follows_the_shutter_and_keeps_the_plate_outside(plate: tuple) -> None:
    clip, srgb, quad = plate
    crop = crop_of(srgb, quad)
    geometry = geometry_of(crop, quad, velocity=12.0)
    sharp, blurred = (
        patch(crop, geometry, clip, options=PatchOptions(motion_blur=m)) for m in (0, 360)
    )
    assert sharp is not None
    assert blurred is not None
    assert blurred.window.width - sharp.window.width == pytest.approx(12, abs=2)
    assert blurred.window.height == sharp.window.height
    assert blurred.rgba[..., 3].sum() == pytest.approx(sharp.rgba[..., 3].sum(), rel=0.01)
    pixels = read_frame(clip, 1001).pixels
    merged = over(blurred, pixels)
    w = blurred.window
    outside = np.ones(pixels.shape[:2], bool)
    outside[w.y : w.y + w.height, w.x : w.x + w.width] = blurred.rgba[..., 3] == 0
    assert np.array_equal(merged[outside], pixels[outside])


# -- tracks --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def generator() -> Generator:
    torch.manual_seed(3)
    return Generator(Architecture(32, dict.fromkeys((4, 8, 16, 32), 8))).eval()


def track_of(generator: Generator, numbers: list[int], quad: np.ndarray) -> LatentTrack:
    """A track whose codes are random and whose driver stands still."""
    rng = np.random.default_rng(0)
    count, rows = len(numbers), generator.architecture.num_ws
    codes = rng.standard_normal((count, rows, 512)).astype(np.float32)
    points = from_square(rng.uniform(0.3, 0.7, (478, 2)), np.nan_to_num(quad))
    return LatentTrack(
        character="ab" * 32,
        numbers=np.array(numbers),
        state=np.full(count, FrameState.SOLVED, np.uint8),
        cut=np.zeros(count, bool),
        alpha=np.ones((count, 1), np.float32),
        delta=np.zeros((count, rows, 1), np.float32),
        codes=codes,
        smooth=codes,
        neutral_offset=np.zeros((86, 3), np.float32),
        landmarks=np.repeat(np.pad(points, ((0, 0), (0, 1)))[None], count, 0).astype(np.float32),
        quads=np.repeat(quad[None], count, 0),
        amount=np.ones(count, np.float32),
        losses={},
        quality={},
        settings={},
        plate=(360, 240),
    )


def test_frames_of_the_task_are_kept_and_those_of_another_replaced(
    generator: Generator, plate: tuple, tmp_path: Path
) -> None:
    clip, _, quad = plate
    numbers = [1001, 1002, 1003, 1010, 1011]
    track = track_of(generator, numbers, quad)
    track.quads[3] = np.nan
    pattern = str(tmp_path / "deep" / "out.####.exr")

    def write(count: int, task: str) -> list[int]:
        return write_frames(
            generator,
            track,
            np.arange(count),
            FrameFiles(pattern, task, {"reenact:character": "abc"}),
            clip,
        )

    assert write(2, "first") == []
    stamps = [Path(frame_path(pattern, n)).stat().st_mtime_ns for n in numbers[:2]]
    assert write(5, "first") == [1010]
    assert write(5, "first") == [1010]
    assert stamps == [Path(frame_path(pattern, n)).stat().st_mtime_ns for n in numbers[:2]]
    written = open_clip(pattern)
    assert written.numbers == tuple(numbers)
    assert (written.width, written.height) == (clip.width, clip.height)
    frame = read_frame(written, 1001)
    assert frame.metadata["reenact:character"] == "abc"
    assert frame.data_window != Window(0, 0, clip.width, clip.height)
    assert read_frame(written, 1010).alpha.max() == 0
    tasks = [read_frame(written, n).metadata["reenact:task"] for n in numbers]
    assert len(set(tasks)) == 5
    write(1, "second")
    again = [read_frame(written, n).metadata["reenact:task"] for n in numbers]
    assert again[0] not in tasks
    assert again[1:] == tasks[1:]


def test_frames_of_other_code_are_drawn_again(
    generator: Generator, plate: tuple, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip, _, quad = plate
    track = track_of(generator, [1001], quad)
    pattern = str(tmp_path / "out.####.exr")

    def write() -> object:
        write_frames(generator, track, np.arange(1), FrameFiles(pattern, "t"), clip)
        return read_attribute(frame_path(pattern, 1001), "reenact:task")

    with monkeypatch.context() as older:
        older.setattr("core.render.frames.revision", lambda: "of yesterday")
        before = write()
    now = write()
    assert now != before
    assert write() == now
    text = read_attribute(frame_path(pattern, 1001), LANDMARKS)
    assert len(str(text).split()) == 2 * 478


def test_only_frames_that_look_otherwise_after_a_repair_are_drawn_again(
    generator: Generator, plate: tuple, tmp_path: Path
) -> None:
    """The others are copied, and are what drawing them would give."""
    clip, _, quad = plate
    numbers = list(range(1001, 1009))
    before = replace(track_of(generator, numbers, quad), fps=4.0)
    codes = before.smooth.copy()
    codes[3] = codes[3] + 1
    amount = before.amount.copy()
    amount[7] = 0.5
    after = replace(before, smooth=codes, amount=amount)

    def write(name: str, track: LatentTrack, task: str, *earlier: str) -> list[int]:
        """The frames that were drawn: a copy keeps the mark that its source was given."""
        pattern = str(tmp_path / name / "out.####.exr")
        existing = {
            n: [Path(frame_path(str(tmp_path / e / "out.####.exr"), n)) for e in earlier]
            for n in numbers
        }
        write_frames(
            generator,
            track,
            np.arange(8),
            FrameFiles(
                pattern,
                task,
                {"reenact:track": name} | ({} if earlier else {"made": "here"}),
                earlier=existing,
            ),
            clip,
            PatchOptions(match=0.5, grain=0.5),
            batch=1,
        )
        made = open_clip(pattern)
        return [n for n in numbers if ("made" in read_frame(made, n).metadata) != bool(earlier)]

    assert write("first", before, "t") == numbers
    assert write("fresh", after, "t") == numbers
    damaged = tmp_path / "bad" / "out.1001.exr"
    damaged.parent.mkdir()
    content = (tmp_path / "first" / "out.1001.exr").read_bytes()
    damaged.write_bytes(content[: len(content) // 2])
    # Match and outlines are steadied over so many frames; the amount is one frame's alone.
    assert write("second", after, "t", "bad", "first") == [1003, 1004, 1005, 1008]
    assert write("other", before, "u", "first") == numbers  # another plate, style, finish
    for number in numbers:
        ours, theirs = (
            oiio.ImageBuf(str(tmp_path / n / f"out.{number}.exr")) for n in ("second", "fresh")
        )
        assert ours.spec().channelformats == theirs.spec().channelformats
        assert ours.roi_full == theirs.roi_full
        assert (ours.roi.xbegin, ours.roi.ybegin) == (theirs.roi.xbegin, theirs.roi.ybegin)
        np.testing.assert_array_equal(ours.get_pixels(), theirs.get_pixels())
        facts = [{a.name: a.value for a in b.spec().extra_attribs} for b in (ours, theirs)]
        assert facts[0].pop("reenact:track") == "second"
        assert facts[1].pop("reenact:track") == "fresh"
        assert facts[1].pop("made") == "here"
        assert facts[0].keys() - {"made"} == facts[1].keys()
        assert facts[0]["reenact:task"] == facts[1]["reenact:task"]


@pytest.mark.parametrize("space", [None, "lin_rec709", "ACES2065-1", "sRGB - Texture"])
def test_frames_are_scene_linear_or_in_the_space_that_is_asked_for(
    generator: Generator, plate: tuple, tmp_path: Path, space: str | None
) -> None:
    """Over an sRGB plate, whose own values are not what a compositing program merges."""
    _, srgb, quad = plate
    write_png(tmp_path / "plate.1001.png", srgb / 2 + 0.5)
    clip = open_clip(str(tmp_path / "plate.####.png"))
    track = track_of(generator, [1001], quad)
    pattern = str(tmp_path / "out.####.exr")
    write_frames(generator, track, np.arange(1), FrameFiles(pattern, "t", colour_space=space), clip)
    written = open_clip(pattern)  # the files say what they are
    wanted = colour.scene_linear_space() if space is None else colour.resolve(space)
    assert written.colour_space == wanted
    buffer = oiio.ImageBuf(str(tmp_path / "out.1001.exr"))
    values = dict(
        zip(buffer.spec().channelnames, buffer.get_pixels().transpose(2, 0, 1), strict=True)
    )
    (picture,) = draw_pictures(generator, track.smooth)
    drawn = paste(picture / 2 + 0.5, torch.from_numpy(quad), (clip.width, clip.height))
    assert drawn is not None
    x, y = buffer.roi.xbegin - drawn.window.x, buffer.roi.ybegin - drawn.window.y
    inside = np.s_[y : y + buffer.roi.height, x : x + buffer.roi.width]
    expected = drawn.pixels.permute(1, 2, 0).numpy()[inside].clip(0, 1) * 2 - 1
    # Half floats are coarse where a strong colour leaves little of another one.
    render = np.dstack([values[stored(f"render.{c}")] for c in ("red", "green", "blue")])
    np.testing.assert_allclose(colour.to_network(render, wanted)[0], expected, atol=0.03)
    solid = np.dstack([values[c] for c in "RGB"])[values["A"] > 0.99]
    there = expected[values["A"] > 0.99]
    assert np.median(np.abs(colour.to_network(solid[None], wanted)[0][0] - there)) < 0.01
    movie = tmp_path / "preview.mp4"
    preview.movie(pattern, clip, [1001], movie)
    left, right = np.split(read_frame(open_clip(str(movie)), 1).pixels, 2, 1)
    outside = np.ones(left.shape[:2], bool)
    w = drawn.window
    outside[w.y : w.y + w.height, w.x : w.x + w.width] = False
    assert np.abs(left - right)[outside].mean() < 0.01
    assert np.abs(left - (srgb / 2 + 0.5))[outside].mean() < 0.03


def test_drawing_two_tracks_at_once_leaves_gradients_as_they_were(generator: Generator) -> None:
    codes = np.zeros((3, generator.architecture.num_ws, 512), np.float32)
    one, other = (draw_pictures(generator, codes[:n], 2) for n in (2, 3))
    for drawn in zip(one, other, strict=False):
        assert len(drawn) == 2
        assert torch.is_grad_enabled()
    assert len(list(other)) == 1
    assert torch.is_grad_enabled()


def test_an_amount_fades_the_patch_and_leaves_the_render(
    generator: Generator, plate: tuple, tmp_path: Path
) -> None:
    clip, _, quad = plate
    track = track_of(generator, [1, 2, 3], quad)
    track.smooth[:] = track.smooth[0]
    track.amount[:] = [1, 0.25, 0]
    pattern = str(tmp_path / "fade.####.exr")
    empty = write_frames(generator, track, np.arange(3), FrameFiles(pattern, "t"), clip)
    clip = open_clip(pattern)
    whole, faint, none = (read_frame(clip, n) for n in (1, 2, 3))
    assert whole.alpha is not None
    assert faint.alpha is not None
    np.testing.assert_allclose(faint.alpha, whole.alpha / 4, atol=1e-3)
    np.testing.assert_allclose(faint.pixels, whole.pixels / 4, atol=2e-3)
    assert none.alpha is not None
    assert none.alpha.max() == 0
    assert empty == [3]


@pytest.mark.parametrize("crops", [False, True])
def test_frames_have_the_names_that_are_asked_for(
    generator: Generator, plate: tuple, tmp_path: Path, crops: bool
) -> None:
    """Frames with other names are not taken for finished ones."""
    track, pattern = track_of(generator, [7], plate[2]), str(tmp_path / "out.####.exr")
    found: list[dict[str, np.ndarray]] = []
    for names, header in ((layers.PLAIN, None), (layers.NEWEST, layers.NEWEST)):
        files = FrameFiles(pattern, "t", layer_names=names)
        write_frames(generator, track, np.arange(1), files, None if crops else plate[0])
        path = frame_path(pattern, 7)
        assert read_attribute(path, layers.ATTRIBUTE) == header
        channels = OpenEXR.File(path, separate_channels=True).channels()
        found.append({name: channel.pixels for name, channel in channels.items()})
    plain, newest = found
    several = [f"{layer}.{c}" for layer, names in layers.CHANNELS.items() for c in names]
    renamed = {stored(name, layers.PLAIN): stored(name) for name in several}
    assert {renamed.get(name, name) for name in plain} == set(newest)
    assert len(set(plain) & set(newest)) == (3 if crops else 6)  # RGBA and forward
    for name, pixels in plain.items():
        np.testing.assert_array_equal(newest[renamed.get(name, name)], pixels)


def test_there_are_no_other_names() -> None:
    with pytest.raises(ValueError, match="no layer or channel"):
        layers.in_file("matte.nose")
    with pytest.raises(ValueError, match="no version 3"):
        layers.in_file("matte.face", 3)


def test_crops_are_the_generators_pictures(
    generator: Generator, plate: tuple, tmp_path: Path
) -> None:
    track = track_of(generator, [7, 8, 9], plate[2])
    track.quads[2] = np.nan
    pattern = str(tmp_path / "crop.####.exr")
    write_frames(generator, track, np.arange(3), FrameFiles(pattern, "t"))
    clip = open_clip(pattern)
    for number, code in zip([7, 8, 9], track.smooth, strict=True):
        pixels = next(read_network_frames(clip, [number])).srgb * 2 - 1
        expected = generator.synthesis(torch.from_numpy(code[None])).clamp(-1, 1)[0]
        error = np.abs(pixels - expected.detach().permute(1, 2, 0).numpy())
        # Half floats of a wide gamut: dark channels of saturated colours are the coarsest.
        assert error.mean() < 1e-3
        assert error.max() < 0.02
        channels = OpenEXR.File(clip.file(number), separate_channels=True).channels()
        stmap = np.stack([channels[stored(f"stmap.{c}")].pixels for c in "uv"], -1)
        if number == 9:
            assert (stmap == -1).all()
        else:
            corner = plate[2][0] + (plate[2][3] - plate[2][0] + plate[2][1] - plate[2][0]) / 64
            assert stmap[0, 0] == pytest.approx([corner[0] / 360, 1 - corner[1] / 240], abs=1e-5)


def test_a_frame_is_the_same_whatever_else_is_drawn(
    generator: Generator, plate: tuple, tmp_path: Path
) -> None:
    track = track_of(generator, list(range(1, 9)), plate[2])
    track.cut[5] = True
    every = list(track_geometry(generator, track, np.arange(8), batch=3, plate=plate[0]))
    for row in (0, 4, 5, 7):
        (alone,) = track_geometry(generator, track, np.array([row]), plate=plate[0])
        for name in ("generated", "driving", "head", "velocity"):
            np.testing.assert_allclose(getattr(alone, name), getattr(every[row], name), atol=1e-4)
    # Nothing comes over the cut.
    before = LatentTrack(
        **{
            f.name: value[:5]
            if isinstance(value := getattr(track, f.name), np.ndarray)
            and f.name != "neutral_offset"
            else value
            for f in fields(track)
        }
    )
    *_, last = track_geometry(generator, before, np.arange(5))
    np.testing.assert_allclose(last.generated, every[4].generated, atol=1e-4)
    np.testing.assert_allclose(last.velocity, every[4].velocity, atol=1e-2)


def test_mattes_and_matches_follow_what_moves_and_do_not_flicker(tmp_path: Path) -> None:
    """A face that turns slowly and trembles, under a lamp that grows brighter and flickers."""
    count, corner = 12, np.array([20, 14])
    base, random = base_generator(), torch.Generator().manual_seed(2)
    with torch.no_grad():
        ends = base.mapping(torch.randn(2, 512, generator=random), 0.5)
    share = torch.linspace(0, 0.4, count)[:, None]
    codes = (1 - share) * ends[0] + share * ends[1]
    codes += 0.06 * codes.std() * torch.randn(codes.shape, generator=random)
    smooth = codes[:, None].repeat(1, base.architecture.num_ws, 1).numpy()
    drawn = torch.stack([*draw_pictures(base, smooth)])
    steady = 1 + 0.02 * np.arange(count)
    for i, picture in enumerate(drawn):
        pixels = np.full((SIZE + 30, SIZE + 40, 3), 0.2, np.float32)
        inside = np.s_[corner[1] : corner[1] + SIZE, corner[0] : corner[0] + SIZE]
        space = colour.scene_linear_space()
        pixels[inside] = colour.from_network(picture.permute(1, 2, 0).numpy(), space)
        lit = pixels * np.float32(steady[i] * (1 + 0.15 * (-1) ** i))
        write_exr(tmp_path / f"plate.{1001 + i}.exr", lit, half=False)
    plate = open_clip(str(tmp_path / "plate.####.exr"))
    quad = corner + SIZE * np.array([[0.0, 0], [0, 1], [1, 1], [1, 0]])
    seen = [geometry_of(picture, quad) for picture in drawn]
    mesh = np.stack([from_square(geometry.generated, quad) for geometry in seen])
    track = replace(
        track_of(base, list(range(1001, 1001 + count)), quad),
        smooth=smooth,
        codes=smooth,
        landmarks=np.pad(mesh - 0.5, ((0, 0), (0, 0), (0, 1))).astype(np.float32),
        fps=24.0,
    )
    pattern = str(tmp_path / "out.####.exr")
    write_frames(base, track, np.arange(count), FrameFiles(pattern, "t"), plate)
    written = [*read_frames(open_clip(pattern))]
    alpha = np.stack([frame.alpha for frame in written])
    alone = np.zeros_like(alpha)  # by what its own picture says
    for matte_of, picture, geometry in zip(alone, drawn, seen, strict=True):
        placed = patch(picture, geometry, plate)
        assert placed is not None
        w = placed.window
        matte_of[w.y : w.y + w.height, w.x : w.x + w.width] = placed.rgba[..., 3]
    flicker = [float(np.abs(np.diff(values, 2, axis=0)).sum()) for values in (alpha, alone)]
    assert flicker[0] < 0.5 * flicker[1]
    assert np.abs(alpha - alone).mean() < 0.1 * alpha.mean()  # it is where it was
    gains = np.stack([np.array(f.metadata["reenact:matchGain"], float) for f in written])
    np.testing.assert_allclose(gains, steady[:, None] * np.ones(3), rtol=0.1)  # ends lag
    assert np.abs(np.diff(gains, 2, axis=0)).max() < 0.03  # the lamp's own are .6


def test_what_the_plates_grain_is_comes_from_the_plate(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for number in (1, 2):
        pixels = np.float32(0.3) + rng.normal(0, 0.02, (200, 260, 3)).astype(np.float32)
        write_exr(tmp_path / f"p.{number:04d}.exr", pixels, half=False)
    clip = open_clip(tmp_path / "p.####.exr")
    found = measure_grain(clip, clip.colour_space)
    assert found is not None
    assert found.strength(np.full((1, 3), 0.3)) == pytest.approx(0.02, rel=0.06)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"layers": "some"}, "layers must be all or basic"),
        ({"match": 1.5}, "match must be 0 to 1, not 1.5"),
        ({"grain": float("nan")}, "grain must be 0 to 1"),
        ({"layer_names": 3}, "layer names must be 1 or 2, not 3"),
        ({"motion_blur": -180.0}, "0 to 720 degrees, not -180"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], said: str) -> None:
    file = protocol.File(path="/a")
    with pytest.raises(BadOptionError, match=said):
        registry.check_task(protocol.Render(file, file, **options))
    assert render.patch_options(protocol.Render(file, file)) == PatchOptions()
    assert frame.patch_options().layers == "basic"
