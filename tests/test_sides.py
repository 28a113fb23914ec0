"""Kinks met by a step of a piecewise flow, on fields of one coordinate whose flow is known."""

import pytest
import torch
from cases import F64, objective_of
from torch import nn

from torch_gfshadow.flows import GradientFlow
from torch_gfshadow.midpoints import FullPair, PieceField
from torch_gfshadow.sides import Sides


class Line(nn.Module):
    """The loss whose flow is a' = below for a < 0 and a' = above for a > 0, in every entry."""

    def __init__(self, below, above, n=1):
        super().__init__()
        self.a = nn.Parameter(torch.full((n,), -0.3, dtype=F64))
        self.below, self.above = below, above

    def forward(self, x):
        return (-self.below * self.a - (self.above - self.below) * torch.relu(self.a * x)).sum()


def pair_at(fine, coarse):
    pair = FullPair(torch.tensor(fine, dtype=F64), len(fine))
    pair._coarse = torch.tensor(coarse, dtype=F64)
    return pair


def ends(below, above, fine, coarse, steps=1):
    model = Line(below, above, len(fine))
    objective = objective_of(model, lambda m, x: m(x), torch.ones(1, dtype=F64))
    flow = GradientFlow()
    flow.configure([{"params": list(model.parameters()), "lr": 1.0}], objective.layout)
    field = PieceField(flow, objective, "flow")
    end = pair_at(fine, coarse).cross(field, 1.0, steps, None)
    return end.fine.tolist(), end.coarse.tolist(), objective.ledger


@pytest.mark.parametrize("at", [-0.3, -0.7, 0.4])
@pytest.mark.parametrize("steps", [1, 3])
def test_what_reaches_a_kink_that_attracts_stays_there(at, steps):
    fine, coarse, _ = ends(1.0, -2.0, [at], [at], steps)
    assert fine == pytest.approx([0.0], abs=1e-9)
    assert coarse == pytest.approx([0.0], abs=1e-9)


def test_what_does_not_reach_it_goes_on():
    fine, _, ledger = ends(0.2, -2.0, [-0.3], [-0.3])
    assert fine == pytest.approx([-0.1])
    assert ledger.grads["flow"] == 4  # nothing is taken again


def test_what_goes_through_a_kink_changes_its_speed_there():
    fine, coarse, ledger = ends(1.0, 3.0, [-0.3], [-0.3])
    assert fine == coarse == pytest.approx([2.1])
    assert ledger.grads["flow"] == 4


def test_on_either_side_of_a_kink_that_repels_each_solution_takes_its_own_way():
    fine, coarse, _ = ends(-1.0, 2.0, [-0.01], [0.05])
    assert fine == pytest.approx([-1.01])
    assert coarse == pytest.approx([2.05])
    fine, coarse, _ = ends(-1.0, 2.0, [0.01], [-0.05])
    assert fine == pytest.approx([2.01])
    assert coarse == pytest.approx([-1.05])


@pytest.mark.parametrize("steps", [1, 2])
def test_near_a_kink_that_repels_the_companion_takes_the_other_way(steps):
    fine, coarse, _ = ends(-1.0, 2.0, [0.01], [0.05], steps)
    assert fine == pytest.approx([2.01])
    assert coarse == pytest.approx([-0.95])
    fine, coarse, _ = ends(-1.0, 2.0, [-0.01], [-0.05], steps)
    assert fine == pytest.approx([-1.01])
    assert coarse == pytest.approx([1.95])


def test_far_from_a_kink_that_repels_both_take_one_way():
    fine, coarse, ledger = ends(-1.0, 2.0, [0.3], [0.35])
    assert fine == pytest.approx([2.3])
    assert coarse == pytest.approx([2.35])
    assert ledger.grads["flow"] == 4


def test_another_way_that_comes_back_is_no_other_way():
    fine, coarse, _ = ends(1.0, 3.0, [0.01], [0.05])
    assert fine == pytest.approx([3.01])
    assert coarse == pytest.approx([3.05])


def test_one_entry_that_comes_back_leaves_the_others_their_way():
    # both entries are near; the loss of the second one repels on one side only
    class Two(Line):
        def forward(self, x):
            pass_by = -self.a[1] - 2.0 * torch.relu(self.a[1] * x)
            part = self.a[0] - 3.0 * torch.relu(self.a[0] * x)
            return (part + pass_by).sum()

    model = Two(0.0, 0.0, 2)
    objective = objective_of(model, lambda m, x: m(x), torch.ones(1, dtype=F64))
    flow = GradientFlow()
    flow.configure([{"params": list(model.parameters()), "lr": 1.0}], objective.layout)
    pair = pair_at([0.01, 0.01], [0.05, 0.05])
    end = pair.cross(PieceField(flow, objective, "flow"), 1.0, 1, None)
    assert end.fine.tolist() == pytest.approx([2.01, 3.01])
    assert end.coarse.tolist() == pytest.approx([-0.95, 3.05])


def test_kinks_are_placed_in_the_order_in_which_they_are_met():
    make = torch.Generator().manual_seed(0)
    model = nn.Sequential(
        nn.Linear(3, 4), nn.ReLU6(), nn.Linear(4, 4), nn.ReLU(inplace=True), nn.Linear(4, 1)
    ).to(F64)

    def loss(m, batch):
        return m(torch.relu(batch[0])).square().mean()  # the first depends on no parameter

    data = [(torch.randn(n, 3, generator=make, dtype=F64),) for n in (5, 2)]
    objective = objective_of(model, loss, data)
    theta, sides = objective.layout.current(F64), Sides()
    objective.loss_and_grad(theta, "flow", entered=0.9 * theta, glance=sides)
    middle = [0.5 * (a + b) for a, b in zip(sides.entered, sides.onward, strict=True)]
    placed = objective.beyond(theta, "flow")
    assert len(placed) == 6
    assert all(torch.allclose(a, b) for a, b in zip(placed, middle, strict=True))
    ahead = objective.beyond(0.9 * theta, "flow")
    assert all(torch.allclose(a, b) for a, b in zip(ahead, sides.entered, strict=True))
    assert objective.ledger.losses["flow"] == 3
