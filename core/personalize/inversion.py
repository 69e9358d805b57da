"""Inversion: finds the code in W from which a generator draws a given picture.

By an encoder and a short optimisation, or by optimisation alone (projection), with the
distribution of W as prior. Codes are optimised in whitened coordinates, of zero mean, unit variance
and no correlation over random draws of the generator. There a learning rate means the same for
every generator, and the squared length is the squared Mahalanobis distance from the mean.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from core.base import cpu
from core.base.adam import Adam
from core.base.progress import Progress
from core.base.training import cosine
from core.face.perceptual import Metric
from core.generator import Generator, half_precision

Encoder = Callable[[Tensor], Tensor]  # pictures [B, 3, R, R] in [-1, 1] -> w [B, D] or w+ [B, L, D]

_SAMPLES = 8192  # draws of z from which mean and covariance of W are estimated
_LEAST_STD = 1e-3  # of a direction, as a share of the largest one
_EPSILON = 1e-10  # under the square root, for a finite gradient at the target


class Inversion(NamedTuple):
    """Codes of N pictures."""

    w: Tensor  # [N, w_dim] float32, on the CPU
    losses: Tensor  # [N] float32, `reconstruction_loss` of each picture at its code


class Whitening(NamedTuple):
    """The distribution of W: its mean, and the principal axes of its covariance."""

    mean: Tensor  # [D]
    axes: Tensor  # [D, D], columns, orthonormal
    sigma: Tensor  # [D], standard deviation along each

    def whiten(self, w: Tensor) -> Tensor:
        """Converts w `[B, D]` to coordinates of zero mean and unit variance, `[B, D]`."""
        return (w - self.mean) @ self.axes / self.sigma

    def colour(self, v: Tensor) -> Tensor:
        """Converts whitened coordinates `[B, D]` to w; the inverse of `whiten`."""
        return self.mean + (v * self.sigma) @ self.axes.T


@torch.no_grad()
def fit_whitening(generator: Generator) -> Whitening:
    """Estimates mean and covariance of W from seeded draws of z.

    Directions of almost no variance get a least standard deviation, so that every code has
    coordinates.
    """
    rng = torch.Generator().manual_seed(0)
    z = torch.randn(_SAMPLES, generator.architecture.z_dim, generator=rng)
    device = next(generator.parameters()).device
    w = torch.cat([generator.mapping(part.to(device)) for part in z.split(1024)]).double()
    mean = w.mean(0)
    variance, axes = torch.linalg.eigh((w - mean).T @ (w - mean) / (len(w) - 1))
    sigma = variance.clamp(min=0).sqrt()
    sigma = sigma.clamp(min=max(_LEAST_STD * float(sigma.max()), 1e-6))
    return Whitening(mean.float(), axes.float(), sigma.float())


def reconstruction_loss(
    generated: Tensor,
    target: Tensor,
    metric: Metric,
    lambda_pixel: float = 10.0,
    weight: Tensor | None = None,
    target_maps: list[Tensor] | None = None,
) -> Tensor:
    """Computes the terms of eq. 1 for each picture.

    The paper's norm grows with the resolution; here it is divided by the square root of the
    number of values, so that lambda means the same at every size.

    Args:
        generated: `[B, 3, R, R]` in [-1, 1], drawn by the generator.
        target: the same shape.
        metric: perceptual metric.
        lambda_pixel: weight of the root-mean-square error of pixels in [0, 1].
        weight: `[B, 1, M, M]`, any M, weights of pixels; normalised to a mean of 1 per picture.
            Where it is below 1 the metric, too, sees only that share of the difference.
        target_maps: the metric's feature maps of `target`, if they are known already.

    Returns:
        `[B]`.
    """
    squares = ((generated - target) / 2).square()
    if weight is not None:
        weight = F.interpolate(weight, generated.shape[2:], mode="bilinear", antialias=True)
        squares = squares * (weight / weight.mean((1, 2, 3), keepdim=True))
        generated = torch.lerp(target, generated, weight.clamp(max=1))
    pixels = (squares.mean((1, 2, 3)) + _EPSILON).sqrt()
    return metric.distance(generated, target, target_maps) + lambda_pixel * pixels


@cpu.training()
def invert(
    generator: Generator,
    pictures: Tensor,
    encoder: Encoder | None = None,
    *,
    metric: Metric,
    steps: int | None = None,
    rate: float | None = None,
    pull: float = 0.02,
    lambda_pixel: float = 10.0,
    weights: Tensor | None = None,
    batch: int = 8,
    progress: Progress | None = None,
) -> Inversion:
    """Finds the codes of pictures in W. The same call gives the same codes.

    Args:
        generator: on any device; it stays as it is.
        pictures: `[N, 3, R, R]` in [-1, 1], aligned, of the generator's resolution, any float
            type, on any device; the generator's device gets one batch at a time.
        encoder: gives the initial codes, on the generator's device; a w+ is averaged over its
            layers. Without one the codes start at the mean of W.
        metric: perceptual metric on the generator's device.
        steps: of Adam; by default 60 with an encoder and 150 without. 0 gives the encoder's codes.
        rate: Adam's peak, in standard deviations of W; it falls to zero along a cosine. By default
            .05 with an encoder, .1 without.
        pull: weight of the mean square of the whitened coordinates: how much a likely code is
            preferred to a slightly better picture.
        lambda_pixel: as in `reconstruction_loss`.
        weights: `[N, 1, M, M]` of pixels, such as `core.personalize.tuning.face_weights` makes.
        batch: pictures at once; fewer need less memory.
        progress: called with steps done and to do, over all batches.

    Returns:
        Of each picture the code of least total loss among all steps, and its loss without the pull.

    Raises:
        ValueError: pictures of another shape or resolution, or an encoder for another W.
    """
    a = generator.architecture
    if pictures.ndim != 4 or pictures.shape[1:] != (3, a.resolution, a.resolution):
        raise ValueError(
            f"Pictures must be [N, 3, {a.resolution}, {a.resolution}], not {[*pictures.shape]}."
        )
    device = next(generator.parameters()).device
    steps = steps if steps is not None else (60 if encoder else 150)
    rate = rate if rate is not None else (0.05 if encoder else 0.1)
    whitening = fit_whitening(generator)
    parts = torch.arange(len(pictures)).split(batch)
    found = []
    for i, part in enumerate(parts):
        target = pictures[part.to(pictures.device)].to(device, torch.float32)
        weight = None if weights is None else weights[part].to(device, torch.float32)
        with torch.no_grad():
            maps = metric.maps(target)
        start = torch.zeros(len(part), a.w_dim, device=device)
        if encoder is not None:
            with torch.no_grad():
                w = encoder(target)
            w = w.mean(1) if w.ndim == 3 else w
            if w.shape != start.shape:
                raise ValueError(f"The encoder gives {[*w.shape]}, not {[*start.shape]}.")
            start = whitening.whiten(w)

        def loss(
            v: Tensor,
            half: torch.dtype | None,
            target: Tensor = target,
            weight: Tensor | None = weight,
            maps: list[Tensor] = maps,
        ) -> Tensor:
            generated = generator.synthesis(whitening.colour(v), half=half)
            return reconstruction_loss(generated, target, metric, lambda_pixel, weight, maps)

        def after_step(done: int, i: int = i) -> None:
            if progress is not None:
                progress(i * steps + done, len(parts) * steps)

        v, losses = _descend(loss, start, steps, rate, pull, after_step, half_precision(device))
        if progress is not None and not steps:
            progress(i + 1, len(parts))
        found.append((whitening.colour(v).cpu(), losses.cpu()))
    if not found:
        return Inversion(torch.zeros(0, a.w_dim), torch.zeros(0))
    w, losses = (torch.cat(values) for values in zip(*found, strict=True))
    return Inversion(w, losses)


def _descend(
    loss: Callable[[Tensor, torch.dtype | None], Tensor],
    start: Tensor,
    steps: int,
    rate: float,
    pull: float,
    after_step: Callable[[int], None],
    half: torch.dtype | None,
) -> tuple[Tensor, Tensor]:
    """Minimises a loss by Adam from `start` `[B, D]`.

    Returns:
        Of each row the best iterate `[B, D]`, and its loss `[B]` in full precision; the search
        itself may be in half.
    """
    if steps == 0:
        with torch.no_grad():
            return start, loss(start, None)
    v = start.clone().requires_grad_()
    optimiser = Adam([v], (0.9, 0.99))
    best = start.clone()
    lowest = start.new_full((len(start),), math.inf)
    for step in range(steps + 1):
        with torch.set_grad_enabled(step < steps):  # the last one is only evaluated
            total = loss(v, half) + pull * v.square().mean(1)
        better = total.detach() < lowest
        best = torch.where(better[:, None], v.detach(), best)
        lowest = torch.where(better, total.detach(), lowest)
        if step == steps:
            break
        # With respect to v alone: the generator's weights need no gradients.
        gradients = torch.autograd.grad(total.sum(), [v])
        ramp = min(1.0, (step + 1) / 5)  # Adam's first steps are all of full length
        optimiser.step(gradients, [rate * ramp * cosine(step, steps)])
        after_step(step + 1)
    with torch.no_grad():
        return best, loss(best, None)
