"""Contact sheets."""

import numpy as np
import pytest

from core.base.sampling import evenly_spaced
from core.face.sheets import draw_face
from core.media.contact_sheet import LABEL_HEIGHT, contact_sheet


def test_pictures_stand_where_they_should() -> None:
    pictures = [np.full((8, 10, 3), 10 * i, np.uint8) for i in range(5)]
    sheet = contact_sheet(pictures, columns=3)
    assert sheet.shape == (16, 30, 3)
    for i, picture in enumerate(pictures):
        y, x = i // 3 * 8, i % 3 * 10
        np.testing.assert_array_equal(sheet[y : y + 8, x : x + 10], picture)
    labelled = contact_sheet(pictures, ["a"] * 5, columns=3)
    assert labelled.shape == (2 * (8 + LABEL_HEIGHT), 30, 3)
    assert (labelled[8 : 8 + LABEL_HEIGHT] > 100).any()  # there is writing under the first row


def test_sheets_need_pictures_of_one_size() -> None:
    with pytest.raises(ValueError, match="one size"):
        contact_sheet([])
    with pytest.raises(ValueError, match="one size"):
        contact_sheet([np.zeros((4, 4, 3), np.uint8), np.zeros((5, 4, 3), np.uint8)])


def test_drawing_leaves_the_picture_and_absent_faces_alone() -> None:
    picture = np.zeros((32, 32, 3), np.uint8)
    nothing = draw_face(picture, np.full((478, 2), np.nan), np.full((4, 2), np.nan))
    np.testing.assert_array_equal(nothing, picture)
    quad = np.array([[4, 4], [4, 28], [28, 28], [28, 4]], float)
    drawn = draw_face(picture, np.full((478, 2), np.nan), quad)
    assert drawn[4, 16, 0] > 200  # the top edge is red
    assert not picture.any()


def test_spread_keeps_the_ends() -> None:
    assert evenly_spaced(100, 3) == [0, 50, 99]
    assert evenly_spaced(2, 24) == [0, 1]
