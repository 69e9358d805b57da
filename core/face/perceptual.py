"""Perceptual metrics: LPIPS, and an embedded metric that needs no download.

Both have the form of LPIPS (Zhang et al. 2018): activation maps are normalised over their channels
and weighted, and their squared differences averaged over space. So a distance is the squared
Euclidean distance of two feature vectors, and many distances are one matrix product
(`core.personalize.selection`).
"""

import logging
import math
import warnings
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.fx
import torch.nn.functional as F
from torch import Tensor, nn

from core.base.errors import ReenactError
from core.face.keypoints import GROUPS, KEYPOINTS
from core.face.landmarks import group_keypoints
from core.face.network import ALIGNED_ROI, CROP, aligned_roi, crop_roi, face_mesh
from core.generator.unpickling import UnreadableCheckpointError, read_pickle

EMBEDDED = "embedded-2"  # characters store the name: another definition needs another number
# Metric -> the lpips library's name of its trunk, and torchvision's file of the weights.
LPIPS = {
    "lpips-vgg": ("vgg", "vgg16-397923af.pth"),
    "lpips-alex": ("alex", "alexnet-owt-7be5be79.pth"),
}
MIN_SIDE, MAX_SIDE = 64, 1024  # px

# The embedded metric has three kinds of features.
# The mesh network's last activations at 48, 24, 12 and 6 px, by their torch.fx names, with their
# typical length on a face; shorter ones are background, where the network responds to grain.
_LAYERS = {"prelu_5": 9.0, "prelu_8": 12.0, "prelu_11": 23.0, "prelu_14": 60.0}
_LAYER_WEIGHT = 1 / 2
# Gradients at the picture's size and every octave below, per pixel of a picture in [-1, 1]; those
# well below the floor are grain.
_GRADIENT_FLOOR = 0.2
_GRADIENT_WEIGHT = 1 / 8
_COARSEST = 16  # side of the last octave, px
# Keypoints of eyes and mouth, px of 192: without them a turned head outweighs any wink.
_KEYPOINT_WEIGHT = 1 / 7200  # per squared px of all points, weighted by part
_POINT_WEIGHTS = {"right_eye": 8.0, "left_eye": 8.0, "mouth": 3.0, "outer_lips": 0.0, "head": 0.0}

log = logging.getLogger(__name__)


class MetricMissingError(ReenactError):
    """The requested metric does not exist, or its weights or library are not on this machine."""


@dataclass(frozen=True)
class Metric:
    """A perceptual metric on square pictures.

    Attributes:
        name: stored in logs and characters; `metric(name)` returns the same metric.
        maps: pictures `[B, 3, R, R]` in [-1, 1] -> weighted activation maps `[B, C, H, W]`,
            whose squared differences, summed over channels, averaged over space and summed over
            maps, are the distance.
        device: of the metric and of its pictures.
    """

    name: str
    maps: Callable[[Tensor], list[Tensor]]
    device: torch.device

    def features(self, pictures: Tensor) -> Tensor:
        """Returns vectors whose squared Euclidean distance is the metric's distance.

        Args:
            pictures: `[B, 3, R, R]` in [-1, 1], R in 64..1024.

        Returns:
            `[B, D]` float32; D depends on the metric and on R (embedded: 264,324 at 128 px,
            LPIPS-VGG: 2,129,920).

        Raises:
            ValueError: pictures of another shape.
        """
        _check(pictures)
        return torch.cat(
            [m.flatten(1) / math.sqrt(m.shape[2] * m.shape[3]) for m in self.maps(pictures)], 1
        )

    def distance(self, a: Tensor, b: Tensor, maps: list[Tensor] | None = None) -> Tensor:
        """Returns the distance of each picture to its counterpart, differentiable in both.

        Args:
            a: `[B, 3, R, R]` in [-1, 1], R in 64..1024.
            b: likewise.
            maps: the maps of `b`, if they were computed already.

        Returns:
            `[B]` float32: 0 for equal pictures, a few tenths for two people, like LPIPS.

        Raises:
            ValueError: pictures of another shape, or of two different shapes.
        """
        _check(a)
        if a.shape != b.shape:
            raise ValueError(f"Pictures of two shapes: {[*a.shape]} and {[*b.shape]}.")
        terms = [
            (x - y).square().sum(1).mean((1, 2))
            for x, y in zip(self.maps(a), maps or self.maps(b), strict=True)
        ]
        return torch.stack(terms).sum(0)


def metric(name: str | None = None, device: torch.device | str = "cpu") -> Metric:
    """Returns a metric; nothing is ever downloaded.

    Args:
        name: "lpips-vgg", "lpips-alex", "embedded-2", or "embedded" for its newest version.
            By default LPIPS-VGG if its trunk's weights are on this machine, else embedded.
        device: torch device.

    Raises:
        MetricMissingError: no metric has this name, or lpips or its trunk's weights are missing.
    """
    if name is None:
        name = "lpips-vgg" if trunk_file("lpips-vgg").is_file() else EMBEDDED
    if name in ("embedded", EMBEDDED):
        chosen = embedded_metric(device)
    elif name in LPIPS:
        chosen = lpips_metric(_lpips_network(name), name, device)
    else:
        raise MetricMissingError(
            f"There is no perceptual metric {name!r}: choose {', '.join([*LPIPS, EMBEDDED])}."
        )
    log.info("Perceptual metric: %s", chosen.name)
    return chosen


def _check(pictures: Tensor) -> None:
    shape = [*pictures.shape]
    if len(shape) != 4 or shape[1] != 3 or shape[2] != shape[3]:
        raise ValueError(f"The metric needs pictures [B, 3, R, R], not {shape}.")
    if not MIN_SIDE <= shape[2] <= MAX_SIDE:
        raise ValueError(f"The metric takes {MIN_SIDE} to {MAX_SIDE} px, not {shape[2]}.")


# -- embedded ----------------------------------------------------------------------------------


def embedded_metric(device: torch.device | str = "cpu") -> Metric:
    """Returns the embedded metric.

    Its features are activations of the face-landmark network, its keypoints, and multi-scale
    gradients. The network responds to eyes, lips and the shape of a face at 192 px; gradients cover
    the whole picture at every scale. Both are normalised like LPIPS' features, so contrast and
    exposure count little. The keypoints of eyes and mouth, each part about its own middle,
    represent the expression.

    Args:
        device: torch device.
    """
    network = face_mesh(device=str(device))
    layers = mesh_layers(network.net)
    counts = [_POINT_WEIGHTS[name] for name, points in GROUPS.items() for _ in points]
    point_weights = (torch.tensor(counts, device=device) * _KEYPOINT_WEIGHT).sqrt()[:, None]
    # At this size the ROI samples every pixel; it would skip pixels of a larger picture.
    size = round(CROP / ALIGNED_ROI[2])

    def maps(pictures: Tensor) -> list[Tensor]:
        pictures = pictures.float()
        sized = F.interpolate(pictures, (size, size), mode="bilinear", antialias=True)
        roi = aligned_roi(size, len(pictures), device=pictures.device)
        activations, outputs = layers(crop_roi(sized / 2 + 0.5, roi))
        weighted = [
            _unit(x, floor) * math.sqrt(_LAYER_WEIGHT)
            for x, floor in zip(activations, _LAYERS.values(), strict=True)
        ]
        octave = pictures
        while octave.shape[-1] >= _COARSEST:
            gradient = _unit(_gradient(octave), _GRADIENT_FLOOR)
            weighted.append(gradient * math.sqrt(_GRADIENT_WEIGHT))
            octave = F.avg_pool2d(octave, 2)
        keypoints = (
            group_keypoints(network.assemble(outputs).landmarks[:, KEYPOINTS, :2]) * point_weights
        )
        return [*weighted, keypoints.flatten(1)[:, :, None, None]]

    return Metric(EMBEDDED, maps, torch.device(device))


def mesh_layers(net: torch.fx.GraphModule) -> nn.Module:
    """Returns the mesh network with `_LAYERS`: 192 px crops in 0..1 -> (activations, outputs)."""
    graph = deepcopy(net.graph)
    nodes = {node.name: node for node in graph.nodes}
    nodes["output"].args = (([nodes[name] for name in _LAYERS], nodes["output"].args[0]),)
    return torch.fx.GraphModule(net, graph)


def _gradient(pictures: Tensor) -> Tensor:
    """Returns differences to the right and lower neighbours, `[B, 3, R, R]` -> `[B, 6, R, R]`."""
    x = F.pad(pictures[..., :, 1:] - pictures[..., :, :-1], (0, 1))
    y = F.pad(pictures[..., 1:, :] - pictures[..., :-1, :], (0, 0, 0, 1))
    return torch.cat([x, y], 1)


def _unit(maps: Tensor, floor: float) -> Tensor:
    """Normalises vectors over the channels; those much shorter than `floor` stay near 0."""
    return maps * (maps.square().sum(1, keepdim=True) + floor**2).rsqrt()


# -- LPIPS -------------------------------------------------------------------------------------


def lpips_metric(network: Any, name: str, device: torch.device | str = "cpu") -> Metric:
    """Wraps a network of the `lpips` library as a metric.

    Args:
        network: `lpips.LPIPS`, version 0.1, with its linear layers. It is frozen.
        name: the metric's name.
        device: torch device.
    """
    network = network.eval().requires_grad_(False).to(device)
    scales = [linear.model[-1].weight.sqrt() for linear in network.lins]  # none is negative

    def maps(pictures: Tensor) -> list[Tensor]:
        activations = network.net(network.scaling_layer(pictures.float()))
        # The library's own normalisation has NaN gradients where all channels are 0.
        return [
            F.normalize(x, dim=1, eps=1e-10) * s for x, s in zip(activations, scales, strict=True)
        ]

    return Metric(name, maps, torch.device(device))


def trunk_file(name: str) -> Path:
    """Returns where torchvision keeps the weights of an LPIPS metric's trunk; it may not exist."""
    return Path(torch.hub.get_dir()) / "checkpoints" / LPIPS[name][1]


def _lpips_network(name: str) -> Any:
    """Loads `lpips.LPIPS` with the trunk's weights from this machine."""
    trunk, path = LPIPS[name][0], trunk_file(name)
    if not path.is_file():
        raise MetricMissingError(
            f"{name} needs torchvision's weights {path.name} in {path.parent}, and they are not "
            f"there. Put the file there, or choose {EMBEDDED}."
        )
    try:
        # Imported late: it is slow, and fails with a torchvision built for another torch.
        import lpips
    except (ImportError, RuntimeError) as error:
        raise MetricMissingError(
            f"lpips does not load ({error}). Install the torchvision made for torch "
            f"{torch.__version__}, or choose {EMBEDDED}."
        ) from error
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # lpips uses deprecated arguments of torchvision
        # A random trunk, because the library would download a trained one.
        network = lpips.LPIPS(net=trunk, pnet_rand=True, verbose=False)
    try:
        stored: Any = read_pickle(path)
        weights = {}
        for key in network.net.state_dict():
            _slice, layer, kind = key.split(".")
            weights[key] = stored[f"features.{layer}.{kind}"].load()
        network.net.load_state_dict(weights)
    except (KeyError, TypeError, AttributeError, RuntimeError, UnreadableCheckpointError) as error:
        raise MetricMissingError(
            f"{path} is damaged or does not hold torchvision's weights for {name}. Replace it, or "
            f"choose {EMBEDDED}."
        ) from error
    return network
