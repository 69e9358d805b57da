"""STMaps and corner pins, against OpenImageIO's st_warp and OpenCV's perspective."""

import cv2
import numpy as np
import OpenImageIO as oiio
import pytest
import torch
from quads import SQUARE, turned_square

from core.face import alignment, stmap
from core.media.clip import Window


def buffer(pixels: np.ndarray) -> oiio.ImageBuf:
    return oiio.ImageBuf(np.ascontiguousarray(pixels, np.float32))


def smooth_picture(width: int, height: int) -> np.ndarray:
    y, x = np.mgrid[:height, :width] + 0.5
    return np.stack([np.sin(x / 19), np.cos(y / 23), np.sin((x + y) / 31)], -1) * 0.4 + 0.5


def test_stmaps_are_what_openimageio_reads_with_nukes_origin() -> None:
    """OpenImageIO's st_warp, with t from the bottom, does with the maps what our warps do."""
    quad, plate, size = turned_square(150.3, 120.7, 160, 0.2), (320, 240), 160
    picture = smooth_picture(*plate)
    image = torch.tensor(picture).permute(2, 0, 1)[None]
    crop = alignment.warp(image, torch.tensor(quad)[None], size)

    def st_warp(source: np.ndarray, uv: np.ndarray) -> np.ndarray:
        height, width = uv.shape[:2]
        result = oiio.ImageBuf(oiio.ImageSpec(width, height, 3, oiio.FLOAT))
        assert oiio.ImageBufAlgo.st_warp(
            result, buffer(source), buffer(uv), "triangle", 0.0, 0, 1, False, True
        ), result.geterror()
        return result.get_pixels(oiio.FLOAT)

    cut_out = st_warp(picture, stmap.stmap_to_crop(quad, plate, size))
    np.testing.assert_allclose(cut_out, crop[0].permute(1, 2, 0), atol=4e-3)

    placed = alignment.paste(crop[0], torch.tensor(quad), plate)
    assert placed is not None
    w = placed.window
    put_back = st_warp(cut_out, stmap.stmap_to_plate(quad, Window(0, 0, *plate)))
    put_back = put_back[w.y : w.y + w.height, w.x : w.x + w.width]
    inside = placed.coverage.numpy() > 0.999
    inside = cv2.erode(inside.astype(np.uint8), np.ones((5, 5))) > 0
    np.testing.assert_allclose(
        put_back[inside], placed.pixels.permute(1, 2, 0).numpy()[inside], atol=8e-3
    )


def test_identity_stmap_samples_pixel_centres() -> None:
    uv = stmap.stmap_to_crop(SQUARE * 8, (8, 8), 8)
    assert uv[0, 0].tolist() == [0.5 / 8, 7.5 / 8]  # the top row is the largest v
    assert uv[7, 0].tolist() == [0.5 / 8, 0.5 / 8]


def test_stmaps_leave_the_unit_square_outside_the_quad() -> None:
    uv = stmap.stmap_to_plate(turned_square(60, 40, 30, 0.4), Window(0, 0, 120, 80))
    inside = ((uv >= 0) & (uv <= 1)).all(-1)
    assert inside.sum() == pytest.approx(900, rel=0.02)


def test_corner_pin_maps_the_square_onto_the_face() -> None:
    """OpenCV's perspective through the pins agrees with the warp, in Nuke's y-up pixels."""
    quad, size = turned_square(150.3, 120.7, 160, 0.2), 256
    to = stmap.corner_pin(quad, 240)
    origin = np.array([[0, 0], [size, 0], [size, size], [0, size]])
    pin = cv2.getPerspectiveTransform(origin.astype(np.float32), to.astype(np.float32))
    nose = pin @ [0.5 * size, 0.4 * size, 1]  # 40 % up from the bottom of the square
    x, y = nose[:2] / nose[2]
    expected = quad[0] + 0.5 * (quad[3] - quad[0]) + 0.6 * (quad[1] - quad[0])
    np.testing.assert_allclose([x, 240 - y], expected, atol=1e-4)
