"""Whitening: identity covariance, unit labels, deficient ranks, and the way back."""

import math

import pytest
import torch

from torch_gfshadow.errors import AssumptionError
from torch_gfshadow.whitening import whiten

F64 = torch.float64


def data(samples=40, d0=6, rank=6, dn=1, seed=0, dtype=F64):
    g = torch.Generator().manual_seed(seed)
    factors = torch.randn(samples, rank, generator=g, dtype=F64)
    spread = torch.randn(rank, d0, generator=g, dtype=F64) * torch.logspace(0, 3, d0, dtype=F64)
    y = torch.randn(samples, dn, generator=g, dtype=F64)
    return (factors @ spread).to(dtype), y.to(dtype)


@pytest.mark.parametrize(
    "shape",
    [dict(), dict(rank=3), dict(samples=4), dict(dn=3), dict(d0=1, rank=1), dict(samples=1)],
)
def test_covariance_is_the_identity_and_the_cross_covariance_has_norm_one(shape):
    x, y = data(**shape)
    made = whiten(x, y)
    rank = min(x.shape[0], shape.get("rank", x.shape[1]), x.shape[1])
    assert made.rank == rank
    eye = torch.eye(rank, dtype=F64)
    assert torch.linalg.matrix_norm(made.inputs.T @ made.inputs / len(x) - eye, 2) < 1e-12
    assert torch.linalg.vector_norm(made.targets.T @ made.inputs) / len(x) == pytest.approx(1.0)


def test_the_square_loss_is_the_distance_from_the_cross_covariance_above_its_minimum():
    x, y = data(dn=2)
    made = whiten(x, y)
    target = made.targets.T @ made.inputs / len(x)
    w = torch.randn(2, made.rank, generator=torch.Generator().manual_seed(1), dtype=F64)
    loss = 0.5 * (made.inputs @ w.T - made.targets).square().sum(1).mean()
    assert float(loss) == pytest.approx(float(0.5 * (w - target).square().sum()) + made.minimum)


def test_the_minimum_is_that_of_least_squares():
    x, y = data()
    made = whiten(x, y)
    best = torch.linalg.lstsq(x, y).solution
    residual = float(0.5 * (x @ best - y).square().mean()) / made.scale**2
    assert made.minimum == pytest.approx(residual, rel=1e-9)


def test_a_map_of_whitened_data_predicts_raw_labels():
    x, y = data(rank=4)
    made = whiten(x, y)
    w = torch.randn(1, made.rank, generator=torch.Generator().manual_seed(1), dtype=F64)
    raw = x @ made.end_to_end(w).T
    torch.testing.assert_close(raw, made.scale * made.inputs @ w.T, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(made.apply(x), made.inputs)


def test_single_precision_is_whitened_in_double():
    x, y = data(dtype=torch.float32)
    made = whiten(x, y[:, 0])
    assert made.inputs.dtype == F64
    eye = torch.eye(made.rank, dtype=F64)
    assert torch.linalg.matrix_norm(made.inputs.T @ made.inputs / len(x) - eye, 2) < 1e-9


def test_directions_below_the_tolerance_are_dropped():
    x, y = data(d0=3, rank=3)
    x[:, 2] = 1e-9 * x[:, 2]
    assert whiten(x, y).rank == 2
    assert whiten(x, y, rtol=1e-14).rank == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(x=torch.zeros(40, 2)), "X must be not zero"),
        (dict(x=torch.zeros(4)), r"X must be of shape \[S, d_0\], got shape \(4,\)"),
        (dict(y=torch.zeros(3)), r"targets must be one row per sample, got shape \(3,\) for 40"),
        (dict(y=torch.zeros(40)), "‖Λ_yx‖_F must be above rounding, got 0"),
        (dict(y=torch.full((40,), math.nan)), "targets must be finite, got nan"),
        (dict(x=torch.full((40, 2), math.inf)), "X must be finite, got inf"),
        (dict(rtol=1.0), r"rtol must be in \[0, 1\), got 1.0"),
    ],
)
def test_what_cannot_be_whitened_is_refused(change, message):
    x, y = data()
    with pytest.raises(AssumptionError, match=message):
        whiten(change.get("x", x), change.get("y", y), rtol=change.get("rtol", 1e-6))


def test_a_deficient_rank_is_refused_where_coordinates_are_to_be_kept():
    x, y = data(rank=4)
    message = "rank of X must be d_0 = 6 without reduce, got 4. Pass reduce=True"
    with pytest.raises(AssumptionError, match=message):
        whiten(x, y, reduce=False)
    assert whiten(*data(), reduce=False).rank == 6
