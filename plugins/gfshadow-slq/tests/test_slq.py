"""The quadrature against exact moments and dense eigenvalues; the picture."""

import math
from types import SimpleNamespace

import gfshadow_slq
import numpy as np
import pytest
import torch
from gfshadow_slq.density import density, plot_densities
from scipy.integrate import trapezoid

from torch_gfshadow.errors import CurvatureError
from torch_gfshadow.probes import SLQ
from torch_gfshadow.probes.slq import gauss_quadrature
from torch_gfshadow.testing import (
    assert_hooks_valid,
    assert_inert,
    assert_probe_contract,
    make_record,
    quadratic_point,
    toy_run,
)

F64 = torch.float64


def matrix(n, seed=0):
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(n, n, generator=generator, dtype=F64)
    return (a + a.T) / (2 * math.sqrt(n))


def unit(n, seed=1):
    v = torch.randn(n, generator=torch.Generator().manual_seed(seed), dtype=F64)
    return v / v.norm()


@pytest.mark.parametrize("steps", [1, 3, 8])
def test_every_moment_up_to_2m_minus_1_is_exact(steps):
    a, v = matrix(20), unit(20)
    nodes, weights = gauss_quadrature(lambda x: a @ x, v, steps)
    power = v
    for degree in range(2 * steps):
        assert float(weights @ nodes**degree) == pytest.approx(float(v @ power), abs=1e-12), degree
        power = a @ power


def test_all_steps_give_all_eigenvalues_with_their_true_weights():
    a, v = matrix(12), unit(12)
    nodes, weights = gauss_quadrature(lambda x: a @ x, v, 50)
    values, vectors = torch.linalg.eigh(a)
    torch.testing.assert_close(nodes, values)
    torch.testing.assert_close(weights, (vectors.T @ v) ** 2)


def test_it_stops_in_an_invariant_subspace():
    a = torch.diag(torch.tensor([3.0, 3.0, 1.0, 1.0, 0.0], dtype=F64))
    nodes, _ = gauss_quadrature(lambda x: a @ x, unit(5), 5)
    torch.testing.assert_close(nodes, torch.tensor([0.0, 1.0, 3.0], dtype=F64))


def test_its_hooks_are_valid_and_training_is_bit_identical_beside_it():
    assert_hooks_valid(gfshadow_slq)
    assert_inert(gfshadow_slq, probes=["slq:5"], probe_every=2, steps=5)


def test_it_keeps_the_contract_of_probes():
    assert_probe_contract(SLQ)


def test_the_mean_of_the_density_is_the_trace_within_its_sampling_error():
    a = matrix(60)
    point = quadratic_point(a, torch.ones(60, dtype=F64))
    measured = SLQ(steps=10, vectors=200).measure(point)
    assert math.fsum(measured["weights"]) == pytest.approx(1.0)
    deviation = math.sqrt(2.0 / 60) * float(a.norm()) / math.sqrt(60 * 200)
    assert measured["mean"] == pytest.approx(float(a.trace()) / 60, abs=4 * deviation)
    assert measured["second_moment"] == pytest.approx(float(a.square().sum()) / 60, rel=0.1)


def test_the_density_agrees_with_the_dense_spectrum_of_a_network():
    n = 120
    a = matrix(n)
    measured = SLQ(steps=40, vectors=30).measure(quadratic_point(a, torch.ones(n, dtype=F64)))
    grid = np.linspace(-2.5, 2.5, 400)
    got = density(measured["nodes"], measured["weights"], grid, 0.15)
    values = torch.linalg.eigvalsh(a).tolist()
    exact = density(values, [1 / n] * n, grid, 0.15)
    assert trapezoid(got, grid) == pytest.approx(1.0, abs=1e-3)
    assert trapezoid(np.abs(np.array(got) - exact), grid) < 0.12


def test_along_a_run_the_ends_agree_with_the_eigenvalue_probes():
    probes = ["lambda_min", "lambda_max", "slq:30"]
    shadow = toy_run(4, plugins=[gfshadow_slq], probes=probes, probe_every=2)
    for record in shadow.records[::2]:
        nodes = record.extras["slq"]["nodes"]
        assert nodes[-1] == pytest.approx(record.lambda_max, rel=0.02)
        assert nodes[0] == pytest.approx(record.lambda_min, rel=0.05, abs=0.02)


def test_the_picture_has_a_curve_per_step_and_is_saved(tmp_path):
    shadow = toy_run(8, plugins=[gfshadow_slq], probes=["slq:20"], probe_every=2)
    figure = plot_densities(shadow.records, tmp_path / "slq.png", curves=3)
    (axes,) = figure.axes
    assert [line.get_label() for line in axes.lines] == ["step 0", "step 4", "step 8"]
    assert axes.get_yscale() == "log"
    for line in axes.lines:  # a curve below the axis was a picture with nothing in it
        low, high = axes.get_ylim()
        inside = [low < y < high for y in line.get_ydata()]
        assert sum(inside) > 0.2 * len(inside)
    assert (tmp_path / "slq.png").stat().st_size > 10_000


def test_without_a_spectrum_there_is_no_picture():
    with pytest.raises(ValueError, match="records must be of a run with the probe slq"):
        plot_densities([make_record(1)])


def test_products_that_are_not_finite_are_refused():
    point = quadratic_point(torch.eye(2, dtype=F64), torch.ones(2, dtype=F64))
    point._hessian = SimpleNamespace(eigen=lambda v: v * math.nan)
    with pytest.raises((CurvatureError, RuntimeError)):
        SLQ(2).measure(point)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"steps": 1}, "steps must be an integer of at least 2, got 1"),
        ({"steps": "many"}, "steps must be an integer of at least 2, got 'many'"),
        ({"vectors": 0}, "vectors must be at least 1, got 0"),
        ({"every": 0}, "every must be at least 1, got 0"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        SLQ(**arguments)


def test_a_width_that_is_not_positive_is_refused():
    with pytest.raises(ValueError, match="width must be positive, got 0"):
        density([0.0], [1.0], [0.0], 0.0)
