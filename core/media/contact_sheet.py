"""Contact sheets: pictures of one size in rows, with labels."""

from collections.abc import Sequence

import cv2
import numpy as np

LABEL_HEIGHT = 18  # px


def contact_sheet(
    pictures: Sequence[np.ndarray], labels: Sequence[str] | None = None, columns: int = 6
) -> np.ndarray:
    """Lays pictures of one size out in rows, each with a label beneath.

    Args:
        pictures: `[H, W, 3]` uint8 each, all of one size.
        labels: one per picture; None leaves them out.
        columns: pictures per row.

    Returns:
        `[rows * (H + LABEL_HEIGHT), columns * W, 3]` uint8; without labels `[rows * H, ...]`.

    Raises:
        ValueError: no pictures, or pictures of several sizes.

    Example:
        >>> grey = np.full((64, 96, 3), 128, np.uint8)
        >>> contact_sheet([grey] * 5, columns=3).shape
        (128, 288, 3)
    """
    if not len(pictures) or len({p.shape for p in pictures}) != 1:
        raise ValueError("A contact sheet needs pictures, all of one size.")
    height, width = pictures[0].shape[:2]
    columns = min(columns, len(pictures))
    strip = LABEL_HEIGHT if labels else 0
    rows = -(-len(pictures) // columns)
    sheet = np.full((rows * (height + strip), columns * width, 3), 24, np.uint8)
    for i, picture in enumerate(pictures):
        y, x = i // columns * (height + strip), i % columns * width
        sheet[y : y + height, x : x + width] = picture
        if labels:
            at = (x + 5, y + height + strip - 5)
            cv2.putText(
                sheet, labels[i], at, cv2.FONT_HERSHEY_SIMPLEX, 0.42, (230,) * 3, 1, cv2.LINE_AA
            )
    return sheet
