"""Patches and crops against OpenImageIO's own over, and against the plate they were cut from."""

from pathlib import Path

import numpy as np
import OpenImageIO as oiio
import pytest
import torch

from core import colour, frames, rendering
from core.alignment import ffhq_quads, warp
from core.facemesh import track
from core.generator import Architecture, Generator
from core.synthetic import performer
from core.synthetic.parameters import neutral

SIZE = 128


@pytest.fixture(scope="module")
def plate(tmp_path_factory: pytest.TempPathFactory) -> tuple[frames.Clip, np.ndarray, np.ndarray]:
    """A one-frame EXR plate, its network pixels `[H, W, 3]`, and the quad of its face."""
    srgb = performer.render(neutral(), 240).astype(np.float32) / 127.5 - 1
    srgb = np.pad(srgb, ((0, 0), (40, 80), (0, 0)), "edge")
    path = tmp_path_factory.mktemp("plate") / "plate.1001.exr"
    frames.write_exr(path, colour.from_network(srgb, colour.scene_linear_space()), half=False)
    clip = frames.open_clip(str(path).replace("1001", "####"))
    quad = ffhq_quads(track([(1001, srgb / 2 + 0.5)]).landmarks)[0]
    return clip, srgb, quad


def crop_of(srgb: np.ndarray, quad: np.ndarray) -> torch.Tensor:
    image = torch.from_numpy(srgb).permute(2, 0, 1)[None]
    return warp(image, torch.from_numpy(quad)[None].float(), SIZE)[0].clamp(-1, 1)


def test_a_patch_of_the_plate_itself_changes_nothing_to_see(plate: tuple) -> None:
    clip, srgb, quad = plate
    crop = crop_of(srgb, quad)
    placed = rendering.patch(crop, rendering.face_matte(crop), quad, clip)
    assert placed is not None
    merged = rendering.over(placed, frames.read_frame(clip, 1001).pixels)
    result, _ = colour.to_network(merged, clip.colour_space)
    error = np.mean(((result - srgb) / 2) ** 2)
    assert -10 * np.log10(error) > 34
    # A patch moved by two pixels would be seen: the test can tell.
    moved, _ = colour.to_network(np.roll(merged, 2, 1), clip.colour_space)
    assert np.mean(((moved - srgb) / 2) ** 2) > 5 * error


def test_over_is_openimageios_over_and_leaves_the_rest_bit_identical(plate: tuple) -> None:
    clip, srgb, quad = plate
    crop = -crop_of(srgb, quad)
    placed = rendering.patch(crop, rendering.face_matte(crop), quad, clip)
    assert placed is not None
    pixels = frames.read_frame(clip, 1001).pixels
    merged = rendering.over(placed, pixels)
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
    _, srgb, quad = plate
    crop = crop_of(srgb, quad)
    matte = rendering.face_matte(crop)
    found = track([(1, crop.permute(1, 2, 0).numpy() / 2 + 0.5)]).landmarks[0, :, :2]
    inner = found.mean(0) + 0.9 * (found - found.mean(0))
    x, y = np.round(inner).astype(int).T
    assert matte[y, x].min() > 0.8
    border = np.concatenate([matte[0], matte[:, 0], matte[:, -1]])
    assert border.max() == 0
    assert np.abs(np.diff(matte, axis=0)).max() < 0.25  # no hard edge


def test_faceless_and_outlying_frames_are_transparent(plate: tuple) -> None:
    clip, srgb, quad = plate
    crop = crop_of(srgb, quad)
    matte = rendering.face_matte(crop)
    assert rendering.patch(crop, matte, np.full((4, 2), np.nan), clip) is None
    assert rendering.patch(crop, matte, quad + 10_000, clip) is None
    half_out = rendering.patch(crop, matte, quad - [quad[:, 0].mean(), 0], clip)
    assert half_out is not None
    assert half_out.window.x == 0


@pytest.fixture(scope="module")
def generator() -> Generator:
    torch.manual_seed(3)
    return Generator(Architecture(32, dict.fromkeys((4, 8, 16, 32), 8))).eval()


def codes_of(generator: Generator, count: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    shape = (count, generator.architecture.num_ws, 512)
    return rng.standard_normal(shape).astype(np.float32)


def test_frames_of_the_task_are_kept_and_those_of_another_replaced(
    generator: Generator, plate: tuple, tmp_path: Path
) -> None:
    clip, _, quad = plate
    codes, numbers = codes_of(generator, 5), [1001, 1002, 1003, 1010, 1011]
    quads = np.repeat(quad[None], 5, 0)
    quads[3] = np.nan
    pattern = str(tmp_path / "deep" / "out.####.exr")

    def write(count: int, task: str) -> list[int]:
        return rendering.write_frames(
            generator, codes[:count], quads[:count], np.ones(count), numbers[:count], pattern,
            task, {"reenact:character": "abc"}, clip,
        )  # fmt: skip

    assert write(2, "first") == []
    stamps = [Path(frames.frame_path(pattern, n)).stat().st_mtime_ns for n in numbers[:2]]
    assert write(5, "first") == [1010]
    assert write(5, "first") == [1010]
    assert stamps == [Path(frames.frame_path(pattern, n)).stat().st_mtime_ns for n in numbers[:2]]
    written = frames.open_clip(pattern)
    assert written.numbers == tuple(numbers)
    assert (written.width, written.height) == (clip.width, clip.height)
    frame = frames.read_frame(written, 1001)
    assert frame.metadata["reenact:character"] == "abc"
    assert frame.data_window != frames.Window(0, 0, clip.width, clip.height)
    assert frames.read_frame(written, 1010).alpha.max() == 0
    write(1, "second")
    assert frames.read_frame(written, 1001).metadata["reenact:task"] == "second"
    assert frames.read_frame(written, 1002).metadata["reenact:task"] == "first"


def test_an_amount_fades_the_patch_and_leaves_the_render(
    generator: Generator, plate: tuple, tmp_path: Path
) -> None:
    clip, _, quad = plate
    codes = codes_of(generator, 1).repeat(3, 0)
    pattern = str(tmp_path / "fade.####.exr")
    amounts = np.array([1, 0.25, 0], np.float32)
    empty = rendering.write_frames(
        generator, codes, np.repeat(quad[None], 3, 0), amounts, [1, 2, 3], pattern, "t", {}, clip
    )
    clip = frames.open_clip(pattern)
    whole, faint, none = (frames.read_frame(clip, n) for n in (1, 2, 3))
    assert whole.alpha is not None
    assert faint.alpha is not None
    np.testing.assert_allclose(faint.alpha, whole.alpha / 4, atol=1e-3)
    np.testing.assert_allclose(faint.pixels, whole.pixels / 4, atol=2e-3)
    assert none.alpha is not None
    assert none.alpha.max() == 0
    assert empty == [3]


def test_crops_are_the_generators_pictures(generator: Generator, tmp_path: Path) -> None:
    codes = codes_of(generator, 3)
    pattern = str(tmp_path / "crop.####.exr")
    rendering.write_frames(
        generator, codes, np.full((3, 4, 2), np.nan), np.ones(3), [7, 8, 9], pattern, "t", {}
    )
    clip = frames.open_clip(pattern)
    for number, code in zip([7, 8, 9], codes, strict=True):
        pixels = next(frames.read_network_frames(clip, [number])).srgb * 2 - 1
        expected = generator.synthesis(torch.from_numpy(code[None])).clamp(-1, 1)[0]
        error = np.abs(pixels - expected.detach().permute(1, 2, 0).numpy())
        # Half floats of a wide gamut: dark channels of saturated colours are the coarsest.
        assert error.mean() < 1e-3
        assert error.max() < 0.02
