"""Pictures of a shot while it is solved: the newest frames below the driver's."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch

from core.base.sampling import evenly_spaced
from core.media.contact_sheet import contact_sheet
from core.media.write import to_bytes, write_png
from core.personalize.character import Character
from core.solve.driving import Driving

SHARE = 0.02  # of a solve's time that pictures may take
FIRST_SECONDS = 0.5  # that the first sheet is taken to need, until one was measured
COLUMNS = 6  # frames of a batch that are shown
SIDE = 160  # of a picture in the sheet, px


class SolvePreview:
    """Writes a sheet of a batch's frames, as often as `SHARE` allows.

    Args:
        character: on the device that draws.
        driving: the driver's frames.
        path: of the PNG, which is replaced each time.
        on_written: called whenever it was written.
    """

    def __init__(
        self, character: Character, driving: Driving, path: Path, on_written: Callable[[], None]
    ) -> None:
        self._character, self._driving = character, driving
        self._path, self._on_written = path, on_written
        self._started = time.monotonic()
        self._last, self.spent = FIRST_SECONDS, 0.0

    def __call__(self, numbers: np.ndarray, codes: np.ndarray) -> None:
        """Takes frames that were solved.

        Args:
            numbers: `[K]`, frame numbers.
            codes: `[K, L, w_dim]`.
        """
        now = time.monotonic()
        if self.spent + self._last > SHARE * (now - self._started):
            return
        few = evenly_spaced(len(numbers), COLUMNS)
        write_png(self._path, self._sheet(numbers[few], codes[few]))
        self._on_written()
        self._last = time.monotonic() - now
        self.spent += self._last

    @torch.no_grad()
    def _sheet(self, numbers: np.ndarray, codes: np.ndarray) -> np.ndarray:
        anchors = self._character.anchors
        generator = self._character.generator
        size = self._driving.pictures.shape[-1]
        drawn = generator.synthesis(torch.from_numpy(codes).to(anchors), stop_at=size)
        places = np.searchsorted(self._driving.numbers, numbers)
        shown = self._driving.pictures[torch.from_numpy(places)]
        tiles = []
        for picture in (*shown.float(), *drawn.float().cpu()):
            rgb = picture.permute(1, 2, 0).numpy() / 2 + 0.5
            tiles.append(to_bytes(cv2.resize(rgb, (SIDE, SIDE), interpolation=cv2.INTER_AREA)))
        labels = [str(number) for number in numbers] + ["solved"] * len(numbers)
        return contact_sheet(tiles, labels, len(numbers))
