"""Divided differences through a solver's nodes: exact on polynomials, and true local errors."""

import itertools
import math

import pytest
import torch
from cases import F64

from torch_gfshadow.solvers import Dopri5, Dopri8
from torch_gfshadow.solvers.base import Node
from torch_gfshadow.solvers.differences import blend, bubble, divided, shares, weights

TIMES = [0.3, 0.5, 1.1, 1.4]


def polynomial(powers, times=TIMES):
    """Nodes of Σ c t^p, two components."""
    c = torch.tensor([1.0, -0.7], dtype=F64)

    def node(t):
        value = sum(t**p for p in powers)
        return Node(t, c * value, c * sum(p * t ** (p - 1) for p in powers if p))

    return [node(t) for t in times], lambda t: c * sum(t**p for p in powers)


@pytest.mark.parametrize("k", [2, 3, 4])
def test_a_hermite_polynomial_through_k_nodes_is_exact_to_degree_2k_minus_1(k):
    nodes, exact = polynomial(range(2 * k))
    assert torch.allclose(blend(nodes[-k:], 1.2), exact(1.2), rtol=1e-12)
    assert torch.allclose(divided(nodes[-k:]), nodes[0].state.new_tensor([1.0, -0.7]), rtol=1e-9)
    lower, _ = polynomial(range(2 * k - 1))
    assert divided(lower[-k:]).norm() < 1e-9


@pytest.mark.parametrize("k", [2, 3, 4])
def test_the_interpolant_s_error_is_the_next_difference_times_the_bubble(k):
    nodes, exact = polynomial([2 * k])
    off = exact(1.25) - blend(nodes[-k:], 1.25)
    expected = bubble(TIMES[-k:], 1.25) * torch.tensor([1.0, -0.7], dtype=F64)
    assert torch.allclose(off, expected, rtol=1e-9)


def test_weights_of_even_spacing_are_those_of_the_known_formula():
    a, b = weights([0.0, 1.0, 2.0, 3.0])
    assert [x / a[3] for x in a] == pytest.approx([-1.0, -27 / 11, 27 / 11, 1.0])
    assert [x / b[3] for x in b] == pytest.approx([1.0, 9.0, 9.0, 1.0])


def test_errors_in_proportion_to_the_steps_are_read_off_exactly():
    nodes, _ = polynomial(range(7))
    steps = [b - a for a, b in itertools.pairwise(TIMES)]
    error, off, moved = torch.tensor([3e-4, 1e-4], dtype=F64), torch.zeros(2, dtype=F64), []
    for node, step in zip(nodes, [0.0, *steps], strict=True):
        off = off + error * (step / steps[1]) ** 6
        moved.append(Node(node.time, node.state + off, node.field))
    weight, noise = shares(TIMES, 6)
    assert torch.allclose(divided(moved) * weight, error, rtol=1e-6)
    assert noise > 0.0


def stepped(config, field, flow, start, tolerance, end, first=0.02):
    """Yield what each step reports and what it got wrong."""
    stepper = config.start(field, Node(0.0, start, field(start)), first)
    while stepper.right.time < end:
        if not stepper.step(tolerance):
            continue
        left, right = stepper.left, stepper.right
        true = right.state - flow(left.state, right.time - left.time)
        middle = 0.5 * (left.time + right.time)
        between = stepper.interpolate(middle) - flow(left.state, middle - left.time)
        yield stepper, true, between


def cubic(y):
    """The flow of ¼ Σ y⁴."""
    return -(y**3)


def cubic_flow(y, t):
    return y / (1.0 + 2.0 * t * y**2).sqrt()


def test_on_a_nonlinear_flow_dopri5_s_errors_are_graded_to_a_factor():
    # linear formulas for the fifth order's share of the embedded estimate were ten times too low
    start = torch.tensor([1.5, -0.8, 2.5], dtype=F64)
    before, ratios = None, []
    for stepper, true, _ in stepped(Dopri5(), cubic, cubic_flow, start, 1e-5, 20.0):
        if stepper.local_error is not None and before is not None:
            ratios.append(float(stepper.local_error.norm() / before.norm()))
        before = true
    assert len(ratios) >= 8
    assert sorted(ratios)[1] > 0.4
    assert sorted(ratios)[len(ratios) // 2] < 10.0


@pytest.mark.parametrize("tolerance", [1e-6, 1e-10])
def test_dopri8_between_its_nodes_is_as_good_as_it_says(tolerance):
    start = torch.tensor([1.5, -0.8, 2.5], dtype=F64)
    for stepper, true, between in stepped(Dopri8(), cubic, cubic_flow, start, tolerance, 10.0):
        reported = float(stepper.local_error.norm()) + stepper.ungraded
        assert float(true.norm()) <= 2.4 * reported + 1e-14
        assert float(between.norm()) <= 2.4 * reported + 1e-14
    assert stepper.ungraded < 100 * tolerance


def test_what_a_change_of_solver_would_lose_is_owed():
    start = torch.tensor([1.5, -0.8, 2.5], dtype=F64)
    total, last = torch.zeros(3, dtype=F64), None
    for stepper, true, _ in stepped(Dopri5(), cubic, cubic_flow, start, 1e-5, 0.04):
        total, last = total + true, stepper
    assert last.local_error is None  # too few nodes to grade any
    assert math.isfinite(float(last.owed.norm()))
    assert float(last.owed.norm()) >= 0.5 * float(total.norm())
