import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from core.solve.latent_space import (
    BETA,
    delta_loss,
    nearest_weights,
    soften,
    sum_loss,
    to_raw,
    to_weights,
)

ROWS = hnp.arrays(
    np.float64,
    st.tuples(st.integers(1, 5), st.integers(2, 40)),
    elements=st.floats(-3, 3, allow_subnormal=False),
)


def test_soften_is_the_papers_formula():
    raw = torch.linspace(-0.15, 0.15, 61, dtype=torch.float64)
    beta, s = 0.02, 100
    assert torch.allclose(
        soften(raw), torch.log(1 + torch.exp(s * (raw + beta))) / s - beta, rtol=0, atol=1e-15
    )


def test_soften_stays_finite_and_straight_where_the_formula_overflows():
    raw = torch.tensor([-100.0, 5.0, 100.0])
    assert soften(raw).tolist() == pytest.approx([-BETA, 5, 100])


@given(ROWS)
@settings(max_examples=200, deadline=None)
def test_weights_are_in_p(raw):
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 2e-5)):
        weights = to_weights(soften(torch.tensor(raw, dtype=dtype)))
        assert weights.isfinite().all()
        assert (weights >= -BETA).all()
        assert (weights.sum(-1) - 1).abs().max() < tolerance


def test_weights_are_in_p_where_nothing_is_left():
    """An optimiser that has driven every coordinate down gets the centre, not NaN."""
    assert to_weights(soften(torch.full((1, 4), -50.0)))[0].tolist() == pytest.approx([0.25] * 4)


@given(ROWS, st.floats(0, 1))
@settings(max_examples=100, deadline=None)
def test_p_is_convex(raw, share):
    """Blends of codes are codes: starts, smoothing and interpolation rely on it."""
    a = to_weights(soften(torch.tensor(raw)))
    b = a.flip(-1)
    blend = share * a + (1 - share) * b
    assert (blend >= -BETA - 1e-15).all()
    assert torch.allclose(blend.sum(-1), torch.ones(len(raw), dtype=torch.float64))


@given(ROWS)
@settings(max_examples=200, deadline=None)
def test_nearest_weights_are_in_p_and_nearest(coordinates):
    """From the projection onto a convex set, no point of it lies at less than 90 degrees."""
    x = torch.tensor(coordinates)
    weights = nearest_weights(x)
    assert (weights >= -BETA).all()
    assert (weights.sum(-1) - 1).abs().max() < 1e-12
    count = x.shape[-1]
    corners = torch.eye(count, dtype=x.dtype) * (1 + count * BETA) - BETA
    towards = corners - weights[:, None]
    assert ((towards * (x - weights)[:, None]).sum(-1) <= 1e-9).all()
    inside = to_weights(soften(x))
    assert torch.allclose(nearest_weights(inside), inside, rtol=0, atol=1e-12)


@given(ROWS)
@settings(max_examples=200, deadline=None)
def test_raw_and_weights_are_inverse(raw):
    weights = to_weights(soften(torch.tensor(raw)))
    again = to_weights(soften(to_raw(weights)))
    # A weight within a millionth of -beta is as far down as raw numbers reach.
    assert (again - weights).abs().max() < 1e-4
    inside = (weights + BETA).amin(-1) > 2e-6
    assert torch.allclose(again[inside], weights[inside], rtol=0, atol=1e-10)
    assert torch.allclose(
        soften(to_raw(weights[inside])).sum(-1), torch.ones(1, dtype=torch.float64)
    )


def test_a_sum_of_one_is_left_alone():
    softened = torch.tensor([[0.9, 0.12, -0.02, 0.0]], dtype=torch.float64)
    assert torch.allclose(to_weights(softened), softened, atol=3e-6)


def test_regularisers_are_the_papers():
    softened = torch.tensor([[[0.5, 0.7], [0.5, 0.5], [0.0, 0.5]]])  # B 1, L 3, N 2
    assert sum_loss(softened).tolist() == pytest.approx([(0.04 + 0 + 0.25) / 3])
    delta = torch.tensor([[[3.0, 4.0], [0.0, 0.0]], [[0.0, 1.0], [0.6, 0.8]]])
    assert delta_loss(delta).tolist() == pytest.approx([5, 2], abs=1e-4)


@pytest.mark.parametrize("of", [sum_loss, delta_loss, lambda x: to_weights(x).square().sum((1, 2))])
def test_gradients(of):
    x = torch.randn(2, 3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x = (x * 0.2).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: of(soften(x)), x)
