"""Makes `import lpips` work beside a torch without torchvision's compiled operations.

torchvision then fails to import, for want of the names of operations that LPIPS never calls.
"""

import torch

try:
    import torchvision  # noqa: F401
except RuntimeError:
    LIBRARY = torch.library.Library("torchvision", "DEF")  # lives as long as this module
    for name in ("nms", "qnms"):
        LIBRARY.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
