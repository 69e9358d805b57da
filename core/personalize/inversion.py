"""Pictures to W: the code of which a generator draws a picture most like the one given.

By an encoder and a short optimisation, or by optimisation alone (projection) with W's mean and
spread as prior. Codes are optimised in whitened coordinates: of unit variance, and uncorrelated
over the generator's own people. There a learning rate means the same for every generator, and
the squared length is the Mahalanobis distance from the mean.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from core.base import cpu
from core.base.progress import Progress
from core.face.perceptual import Metric
from core.generator import Generator, half_precision

Encoder = Callable[[Tensor], Tensor]  # pictures [B, 3, R, R] in [-1, 1] -> w [B, D] or w+ [B, L, D]

_SAMPLES = 8192  # draws of z from which W's mean and spread are taken
_NARROWEST = 1e-3  # least spread of a direction, as a share of the widest one
_EPSILON = 1e-10


class Inversion(NamedTuple):
    """Codes of N pictures."""

    w: Tensor  # [N, w_dim] float32, on the CPU
    losses: Tensor  # [N] float32, `reconstruction_loss` of each picture at its code


class Whitening(NamedTuple):
    """How W is distributed: mean, and the axes of its covariance."""

    mean: Tensor  # [D]
    axes: Tensor  # [D, D], columns, orthonormal
    sigma: Tensor  # [D], standard deviation along each

    def whiten(self, w: Tensor) -> Tensor:
        """w `[B, D]` -> coordinates of unit variance, `[B, D]`."""
        return (w - self.mean) @ self.axes / self.sigma

    def colour(self, v: Tensor) -> Tensor:
        """The inverse of `whiten`."""
        return self.mean + (v * self.sigma) @ self.axes.T


@torch.no_grad()
def spread_of(generator: Generator) -> Whitening:
    """Mean and covariance of W, from seeded draws of z.

    Directions along which W hardly spreads get a least width, so that every code has coordinates.
    """
    rng = torch.Generator().manual_seed(0)
    z = torch.randn(_SAMPLES, generator.architecture.z_dim, generator=rng)
    device = next(generator.parameters()).device
    w = torch.cat([generator.mapping(part.to(device)) for part in z.split(1024)]).double()
    mean = w.mean(0)
    variance, axes = torch.linalg.eigh((w - mean).T @ (w - mean) / (len(w) - 1))
    sigma = variance.clamp(min=0).sqrt()
    sigma = sigma.clamp(min=max(_NARROWEST * float(sigma.max()), 1e-6))
    return Whitening(mean.float(), axes.float(), sigma.float())


def reconstruction_loss(
    made: Tensor,
    target: Tensor,
    metric: Metric,
    lambda_pixel: float = 10.0,
    weight: Tensor | None = None,
    target_maps: list[Tensor] | None = None,
) -> Tensor:
    """The terms of eq. 1, one per picture.

    The paper's norm grows with the resolution; here it is divided by the square root of the
    number of values, so that lambda means the same at every size.

    Args:
        made: `[B, 3, R, R]` in [-1, 1], the generator's.
        target: the same shape.
        metric: the perceptual one.
        lambda_pixel: weight of the root-mean-square error of pixels in [0, 1].
        weight: `[B, 1, M, M]`, any M, what each pixel counts (on the average of a picture: 1).
            Where it is below 1 the metric, too, sees only that share of the difference.
        target_maps: the metric's of `target`, where they are known already.

    Returns:
        `[B]`.
    """
    squares = ((made - target) / 2).square()
    if weight is not None:
        weight = F.interpolate(weight, made.shape[2:], mode="bilinear", antialias=True)
        squares = squares * (weight / weight.mean((1, 2, 3), keepdim=True))
        made = torch.lerp(target, made, weight.clamp(max=1))
    pixels = (squares.mean((1, 2, 3)) + _EPSILON).sqrt()
    return metric.distance(made, target, target_maps) + lambda_pixel * pixels


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
            type, on any device; the generator's gets one batch at a time.
        encoder: where codes start, on the generator's device; of the rows of a w+ the mean is
            taken. Without one they start at the mean of W.
        metric: perceptual metric on the generator's device.
        steps: of Adam, cosine to zero; by default 60 with an encoder and 150 without. 0 gives
            the encoder's codes.
        rate: Adam's, in standard deviations of W; by default .05 with an encoder, .1 without.
        pull: weight of the mean square of the whitened coordinates: how much a likely code is
            preferred to a slightly better picture.
        lambda_pixel: as in `reconstruction_loss`.
        weights: `[N, 1, M, M]` of pixels, such as `core.personalize.tuning.face_weights` makes.
        batch: pictures at once; fewer need less memory.
        progress: called with steps done and to do, over all batches.

    Returns:
        The codes with the least total loss on the way, and their losses without the pull.

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
    spread = spread_of(generator)
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
            start = spread.whiten(w)

        def loss(
            v: Tensor,
            half: torch.dtype | None,
            target: Tensor = target,
            weight: Tensor | None = weight,
            maps: list[Tensor] = maps,
        ) -> Tensor:
            made = generator.synthesis(spread.colour(v), half=half)
            return reconstruction_loss(made, target, metric, lambda_pixel, weight, maps)

        def tick(done: int, i: int = i) -> None:
            if progress is not None:
                progress(i * steps + done, len(parts) * steps)

        v, losses = _descend(loss, start, steps, rate, pull, tick, half_precision(device))
        found.append((spread.colour(v).cpu(), losses.cpu()))
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
    tick: Callable[[int], None],
    half: torch.dtype | None,
) -> tuple[Tensor, Tensor]:
    """Adam from `start` `[B, D]`: for each row the best iterate, and its loss `[B]`.

    The search may be in half precision; the loss that is returned is in full.
    """
    v = start.clone().requires_grad_()
    optimiser = torch.optim.Adam([v], betas=(0.9, 0.99))
    best = start.clone()
    lowest = start.new_full((len(start),), math.inf)
    for step in range(steps + 1):
        with torch.set_grad_enabled(step < steps):  # the last one is only looked at
            total = loss(v, half) + pull * v.square().mean(1)
        better = total.detach() < lowest
        best = torch.where(better[:, None], v.detach(), best)
        lowest = torch.where(better, total.detach(), lowest)
        if step == steps:
            break
        # Of v alone: the generator's weights need no gradients.
        (v.grad,) = torch.autograd.grad(total.sum(), [v])
        ramp = min(1.0, (step + 1) / 5)  # Adam's first steps are all of full length
        for group in optimiser.param_groups:
            group["lr"] = rate * ramp * (0.5 + 0.5 * math.cos(math.pi * step / steps))
        optimiser.step()
        tick(step + 1)
    with torch.no_grad():
        return best, loss(best, None)
