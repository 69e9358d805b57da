"""Inversion: known codes are found again, and what the settings promise."""

import numpy as np
import pytest
import torch
from small_generators import BLOCKS, SIZE, random_generator
from torch import Tensor

from core.personalize.inversion import fit_whitening, invert, reconstruction_loss


def drawn(count: int = 3, seed: int = 5) -> tuple[torch.nn.Module, Tensor, Tensor]:
    """A generator, codes of its own people and their pictures."""
    generator = random_generator()
    z = torch.randn(count, 512, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        w = generator.mapping(z)
        return generator, w, generator.synthesis(w)


def decibels(a: Tensor, b: Tensor) -> Tensor:
    """Of pictures whose own contrast is the peak."""
    error = (a - b).square().mean((1, 2, 3))
    return 10 * (b.var((1, 2, 3)) / error).log10()


def test_loss_is_equation_1() -> None:
    """Against float64 numpy: LPIPS-like distance, and lambda times the norm over sqrt(values)."""
    rng = np.random.default_rng(0)
    a, b = rng.uniform(-1, 1, (2, 3, 3, SIZE, SIZE))
    blocks = (a - b).reshape(3, 3, SIZE // 4, 4, SIZE // 4, 4).mean((3, 5))
    along = np.diff(blocks, axis=-1)
    distance = sum((m**2).sum(1).mean((1, 2)) for m in (blocks, along))
    norm = np.sqrt((((a - b) / 2) ** 2).sum((1, 2, 3)))
    wanted = distance + 7 * norm / np.sqrt(3 * SIZE * SIZE)
    got = reconstruction_loss(torch.tensor(a).float(), torch.tensor(b).float(), BLOCKS, 7.0)
    assert np.allclose(got.numpy(), wanted, rtol=1e-5)
    maps = BLOCKS.maps(torch.tensor(b).float())
    known = reconstruction_loss(
        torch.tensor(a).float(), torch.tensor(b).float(), BLOCKS, 7.0, target_maps=maps
    )
    assert torch.equal(known, got)


def test_equal_weights_change_nothing_and_zero_hides() -> None:
    rng = torch.Generator().manual_seed(1)
    a, b = torch.rand(2, 2, 3, SIZE, SIZE, generator=rng) * 2 - 1
    plain = reconstruction_loss(a, b, BLOCKS)
    assert torch.allclose(reconstruction_loss(a, b, BLOCKS, weight=torch.ones(2, 1, 8, 8)), plain)
    weight = torch.ones(2, 1, SIZE, SIZE)
    weight[..., 32:] = 0
    half = torch.cat([b[..., :32], a[..., 32:]], -1)  # differs only where nothing counts
    assert reconstruction_loss(half, b, BLOCKS, weight=weight).max() < 2e-4
    assert reconstruction_loss(b, b, BLOCKS).max() < 2e-4


def test_loss_has_a_gradient_at_the_target() -> None:
    b = torch.rand(1, 3, SIZE, SIZE)
    a = b.clone().requires_grad_()
    reconstruction_loss(a, b, BLOCKS).sum().backward()
    assert a.grad is not None
    assert torch.isfinite(a.grad).all()


def test_whitening_is_that_of_w() -> None:
    generator = random_generator()
    whitening = fit_whitening(generator)
    z = torch.randn(6000, 512, generator=torch.Generator().manual_seed(9))  # other draws
    with torch.no_grad():
        w = generator.mapping(z)
    v = whitening.whiten(w)
    assert torch.allclose(whitening.colour(v), w, atol=1e-3)
    # 8192 draws estimate 512 variances: any one of them to a quarter, all together closely.
    assert v.mean(0).abs().max() < 0.2
    assert float(v.var(0).mean()) == pytest.approx(1, abs=0.15)
    assert torch.corrcoef(v.T).fill_diagonal_(0).abs().max() < 0.15


def test_projection_finds_the_pictures_of_known_codes() -> None:
    generator, _, pictures = drawn()
    before = {k: v.clone() for k, v in generator.state_dict().items()}
    ticks: list[tuple[float, float]] = []
    found = invert(
        generator,
        pictures,
        metric=BLOCKS,
        steps=120,
        pull=0.0,
        progress=lambda done, total: ticks.append((done, total)),
    )
    with torch.no_grad():
        again = generator.synthesis(found.w)
        mean = generator.synthesis(fit_whitening(generator).mean[None]).expand_as(pictures)
    assert (decibels(mean, pictures) < 6).all()  # the codes are not near the start
    assert (decibels(again, pictures) > 16).all()
    assert torch.allclose(found.losses, reconstruction_loss(again, pictures, BLOCKS), rtol=1e-3)
    assert ticks[-1] == (120, 120)
    assert [t[0] for t in ticks] == sorted(t[0] for t in ticks)
    assert all(torch.equal(v, before[k]) for k, v in generator.state_dict().items())
    assert all(p.grad is None for p in generator.parameters())


def test_encoder_is_where_it_starts() -> None:
    generator, w, pictures = drawn()
    near = w + 0.2 * fit_whitening(generator).sigma.mean() * torch.randn(w.shape)
    asked = []

    def encoder(batch: Tensor) -> Tensor:
        asked.append(len(batch))
        return near[: len(batch)]

    start = invert(generator, pictures, encoder, metric=BLOCKS, steps=0)
    assert torch.allclose(start.w, near, atol=1e-3)
    assert asked == [3]
    better = invert(generator, pictures, encoder, metric=BLOCKS, steps=30)
    assert (better.losses < 0.6 * start.losses).all()
    rows = invert(
        generator, pictures, lambda b: near[:, None].expand(-1, 10, -1), metric=BLOCKS, steps=0
    )
    assert torch.allclose(rows.w, start.w, atol=1e-3)


def test_pull_keeps_codes_likely() -> None:
    generator = drawn()[0]
    noise = torch.rand(3, 3, SIZE, SIZE) * 2 - 1  # pictures that no code gives
    whitening = fit_whitening(generator)
    sizes = [
        whitening.whiten(invert(generator, noise, metric=BLOCKS, steps=25, pull=pull).w)
        .square()
        .mean()
        for pull in (0.0, 0.1, 10.0)
    ]
    assert sizes[0] > sizes[1] > sizes[2]


def test_same_codes_again_and_in_other_batches() -> None:
    generator, _, pictures = drawn()
    first = invert(generator, pictures, metric=BLOCKS, steps=8)
    again = invert(generator, pictures, metric=BLOCKS, steps=8)
    assert torch.equal(first.w, again.w)
    assert torch.equal(first.losses, again.losses)
    ticks: list[float] = []
    single = invert(
        generator,
        pictures.half(),
        metric=BLOCKS,
        steps=8,
        batch=1,
        progress=lambda done, total: ticks.append(done / total),
    )
    assert torch.allclose(single.losses, first.losses, rtol=0.02)
    assert ticks == pytest.approx([(i + 1) / 24 for i in range(24)])


def test_what_does_not_fit() -> None:
    generator, _, pictures = drawn()
    with pytest.raises(ValueError, match="64, 64"):
        invert(generator, pictures[..., :32, :32], metric=BLOCKS)
    with pytest.raises(ValueError, match="encoder gives"):
        invert(generator, pictures, lambda b: torch.zeros(len(b), 256), metric=BLOCKS)
    nothing = invert(generator, pictures[:0], metric=BLOCKS)
    assert nothing.w.shape == (0, 512)
