"""Hashes of what a computation starts from: they say whether kept work belongs to it."""

import hashlib

import numpy as np
import torch
from torch import Tensor


def digest(*parts: object) -> str:
    """sha256 of all parts, in hexadecimal.

    Args:
        parts: tensors and arrays count by type, shape and numbers, all else by what `repr` gives
            (so no objects whose `repr` is an address, and no sets).

    Example:
        >>> digest("steps", 7) == digest("steps", 7)
        True
        >>> digest(np.zeros(4)) == digest(np.zeros((2, 2)))
        False
    """
    sha = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray):
            part = torch.from_numpy(np.array(part, order="C"))
        if isinstance(part, Tensor):
            sha.update(f"{part.dtype} {[*part.shape]}".encode())
            flat = part.detach().cpu().contiguous().reshape(-1)
            sha.update(flat.view(torch.uint8).numpy().data)
        else:
            sha.update(f"{part!r}\0".encode())
    return sha.hexdigest()
