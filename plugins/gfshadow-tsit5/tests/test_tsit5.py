"""The coefficients fulfil the order conditions; the solver keeps the contract and its order."""

import math

import gfshadow_tsit5
import pytest
import torch
from gfshadow_tsit5.solver import Tsit5
from gfshadow_tsit5.tableau import ERROR, A, B, dense_weights

from torch_gfshadow.solvers import Dopri5, Node
from torch_gfshadow.testing import assert_hooks_valid, assert_solver_contract, toy_run

F64 = torch.float64
MATRIX = torch.tensor([[*row, *[0.0] * (7 - len(row))] for row in A], dtype=F64)
C = MATRIX.sum(1)


def trees(order):
    """The elementary weights Φ and densities γ of the rooted trees of each order up to 5."""
    one, a = torch.ones(7, dtype=F64), MATRIX
    known = {
        1: [(one, 1)],
        2: [(C, 2)],
        3: [(C**2, 3), (a @ C, 6)],
        4: [(C**3, 4), (C * (a @ C), 8), (a @ C**2, 12), (a @ a @ C, 24)],
        5: [
            (C**4, 5),
            (C**2 * (a @ C), 10),
            (C * (a @ C**2), 15),
            (C * (a @ a @ C), 30),
            ((a @ C) ** 2, 20),
            (a @ C**3, 20),
            (a @ (C * (a @ C)), 40),
            (a @ a @ C**2, 60),
            (a @ a @ a @ C, 120),
        ],
    }
    return known[order]


@pytest.mark.parametrize("order", [1, 2, 3, 4, 5])
def test_the_method_is_of_fifth_order(order):
    for weight, density in trees(order):
        assert float(torch.tensor(B, dtype=F64) @ weight) == pytest.approx(1 / density, abs=2e-14)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_the_embedded_method_is_of_fourth_order(order):
    for weight, _ in trees(order):
        assert float(torch.tensor(ERROR, dtype=F64) @ weight) == pytest.approx(0.0, abs=2e-13)


@pytest.mark.parametrize("s", [0.1, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_the_dense_output_is_of_fourth_order_everywhere(s, order):
    weights = torch.tensor(dense_weights(s), dtype=F64)
    for weight, density in trees(order):
        assert float(weights @ weight) == pytest.approx(s**order / density, abs=1e-12)


def test_the_dense_output_ends_in_the_step():
    assert dense_weights(1.0) == pytest.approx(B, abs=1e-12)
    assert dense_weights(0.0) == pytest.approx([0.0] * 7)


def test_its_real_stability_interval_is_the_one_it_names():
    def grows(z):
        stages = torch.linalg.solve(torch.eye(7, dtype=F64) - z * MATRIX, torch.ones(7, dtype=F64))
        return abs(1 + z * float(torch.tensor(B, dtype=F64) @ stages)) > 1.0

    stability = Tsit5().start(lambda y: -y, node(1.0), 0.1).stability
    assert not grows(-stability)
    assert grows(-stability - 0.1)


def node(value):
    start = torch.tensor([value], dtype=F64)
    return Node(0.0, start, -torch.sin(start))


def test_its_hooks_are_valid():
    assert_hooks_valid(gfshadow_tsit5)


def test_it_keeps_the_contract_of_solvers():
    assert_solver_contract(Tsit5)


def test_its_local_error_is_of_sixth_order():
    """Of θ' = −sin θ from θ(0) = 1, whose solution is 2 atan(tan(½) e^{−t})."""

    def error(h):
        stepper = Tsit5().start(lambda y: -torch.sin(y), node(1.0), h)
        assert stepper.step(math.inf)
        return 2.0 * math.atan(math.tan(0.5) * math.exp(-h)) - float(stepper.right.state)

    assert 5.7 < math.log2(abs(error(0.2) / error(0.1))) < 6.3


def test_beside_a_run_it_agrees_with_dopri5_within_both_bars():
    mine = toy_run(20, plugins=[gfshadow_tsit5], solver="tsit5", probes=())
    other = toy_run(20, solver=Dopri5(), probes=())
    for a, b in zip(mine.records[1:], other.records[1:], strict=True):
        assert a.solver == "tsit5"
        assert abs(a.discrepancy - b.discrepancy) <= a.solver_error + b.solver_error
