"""Draws the nodes' icons into gizmos/: 26 px, and 52 px for fine screens."""

from pathlib import Path

import cv2
import numpy as np

SCALE = 16  # drawn larger, then averaged
FACE, DARK, LIGHT = (140, 180, 214), (35, 45, 60), (240, 245, 250)  # BGR


def face(
    picture: np.ndarray, x: float, y: float, size: float, colour: tuple[int, int, int]
) -> None:
    """A head with eyes and an open mouth, in a 26 x 26 square."""

    def oval(dx: float, dy: float, w: float, h: float, shade: tuple[int, int, int]) -> None:
        centre = (int((x + dx * size) * SCALE), int((y + dy * size) * SCALE))
        axes = (int(w * size * SCALE), int(h * size * SCALE))
        cv2.ellipse(picture, centre, axes, 0, 0, 360, (*shade, 255), -1)

    oval(0, 0, 0.78, 1.0, colour)
    for side in (-1, 1):
        oval(side * 0.32, -0.2, 0.13, 0.13, DARK)
    oval(0, 0.42, 0.28, 0.2, DARK)


def personalize() -> np.ndarray:
    """A face in the corners of a viewfinder."""
    picture = np.zeros((26 * SCALE, 26 * SCALE, 4), np.uint8)
    for x in (2, 24):
        for y in (2, 24):
            for dx, dy in ((6, 0), (0, 6)):
                end = (x + (dx if x < 13 else -dx), y + (dy if y < 13 else -dy))
                cv2.line(
                    picture,
                    (x * SCALE, y * SCALE),
                    (end[0] * SCALE, end[1] * SCALE),
                    (*LIGHT, 255),
                    2 * SCALE,
                )
    face(picture, 13, 13, 8.5, FACE)
    return picture


def reenact() -> np.ndarray:
    """A face that moves another one."""
    picture = np.zeros((26 * SCALE, 26 * SCALE, 4), np.uint8)
    face(picture, 7, 9, 7, (150, 150, 150))
    face(picture, 18, 16, 8.5, FACE)
    return picture


def edit() -> np.ndarray:
    """A face over two sliders."""
    picture = np.zeros((26 * SCALE, 26 * SCALE, 4), np.uint8)
    face(picture, 13, 8.5, 7.5, FACE)
    for y, knob in ((19, 18), (23.5, 8)):
        ends = [(int(x * SCALE), int(y * SCALE)) for x in (2, 24)]
        cv2.line(picture, ends[0], ends[1], (150, 150, 150, 255), int(1.2 * SCALE))
        cv2.circle(picture, (knob * SCALE, int(y * SCALE)), int(2.2 * SCALE), (*LIGHT, 255), -1)
    return picture


def style() -> np.ndarray:
    """A face that is a drawing on one side."""
    picture = np.zeros((26 * SCALE, 26 * SCALE, 4), np.uint8)
    face(picture, 13, 13, 11.5, FACE)
    drawn = np.zeros_like(picture)
    face(drawn, 13, 13, 11.5, LIGHT)
    hatch = np.indices(drawn.shape[:2]).sum(0) % (4 * SCALE) < SCALE
    drawn[hatch & (drawn[..., 3] > 0)] = (*DARK, 255)
    picture[:, 13 * SCALE :] = drawn[:, 13 * SCALE :]
    return picture


def repair() -> np.ndarray:
    """A face with a plaster on its forehead."""
    picture = np.zeros((26 * SCALE, 26 * SCALE, 4), np.uint8)
    face(picture, 12, 14, 11, FACE)
    for width, shade in ((6, DARK), (4.5, LIGHT)):
        ends = [(int(x * SCALE), int(y * SCALE)) for x, y in ((12.5, 7), (20.5, 3.5))]
        cv2.line(picture, ends[0], ends[1], (*shade, 255), int(width * SCALE))
    cv2.line(
        picture,
        (15 * SCALE, 6 * SCALE),
        (18 * SCALE, int(4.6 * SCALE)),
        (*DARK, 255),
        int(1.5 * SCALE),
    )
    return picture


def comp() -> np.ndarray:
    """A face in the frame of a plate."""
    picture = np.zeros((26 * SCALE, 26 * SCALE, 4), np.uint8)
    for corner, end, shade, width in (
        ((2, 4), (24, 22), (110, 110, 110), -1),
        ((2, 4), (24, 22), LIGHT, 2 * SCALE),
    ):
        points = [(x * SCALE, y * SCALE) for x, y in (corner, end)]
        cv2.rectangle(picture, *points, (*shade, 255), width)
    face(picture, 13, 13, 7.5, FACE)
    return picture


if __name__ == "__main__":
    folder = Path(__file__).parents[1] / "gizmos"
    for name, picture in (
        ("ReenactPersonalize", personalize()),
        ("Reenact", reenact()),
        ("ReenactEdit", edit()),
        ("ReenactStyle", style()),
        ("ReenactRepair", repair()),
        ("ReenactComp", comp()),
    ):
        premultiplied = picture.astype(np.float32)
        premultiplied[..., :3] *= premultiplied[..., 3:] / 255
        for suffix, size in (("", 26), ("@2x", 52)):
            small = cv2.resize(premultiplied, (size, size), interpolation=cv2.INTER_AREA)
            small[..., :3] /= np.maximum(small[..., 3:], 1e-3) / 255
            small = small.round().clip(0, 255).astype(np.uint8)
            cv2.imwrite(str(folder / f"{name}{suffix}.png"), small)
