"""The flow is the limit of torch's own adaptive optimizers, and is chosen for those alone."""

import gfshadow_adaptive
import pytest
import torch
from gfshadow_adaptive.flow import AdaptiveFlow

from torch_gfshadow.errors import FlowError
from torch_gfshadow.testing import assert_flow_is_limit, assert_hooks_valid, toy_run

OPTIMIZERS = {
    "adam": lambda p, lr: torch.optim.Adam(p, lr=lr, betas=(0.5, 0.6), eps=0.5),
    "adam with decay": lambda p, lr: torch.optim.Adam(
        p, lr=lr, betas=(0.0, 0.0), eps=0.5, weight_decay=0.3
    ),
    "adamw": lambda p, lr: torch.optim.AdamW(p, lr=lr, betas=(0.3, 0.3), eps=0.5, weight_decay=0.3),
    "rmsprop": lambda p, lr: torch.optim.RMSprop(p, lr=lr, alpha=0.3, eps=0.5),
    "rmsprop with decay": lambda p, lr: torch.optim.RMSprop(
        p, lr=lr, alpha=0.0, eps=0.5, weight_decay=0.3
    ),
}


def test_its_hooks_are_valid():
    assert_hooks_valid(gfshadow_adaptive)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_it_is_the_limit_of_the_optimizer_and_chosen_for_it(name):
    assert_flow_is_limit(OPTIMIZERS[name], "auto", plugins=[gfshadow_adaptive], lr=0.02, steps=24)


def test_the_decay_of_adamw_is_not_that_of_adam():
    def inside(parameters, lr):
        return torch.optim.Adam(parameters, lr=lr, betas=(0.0, 0.0), eps=0.5, weight_decay=0.0)

    decayed = toy_run(10, optimizer=lambda p: OPTIMIZERS["adamw"](p, 0.02), probes=(),
                      plugins=[gfshadow_adaptive])  # fmt: skip
    plain = toy_run(10, optimizer=lambda p: inside(p, 0.02), probes=(),
                    plugins=[gfshadow_adaptive])  # fmt: skip
    assert decayed.records[-1].shadow_loss != pytest.approx(plain.records[-1].shadow_loss, rel=1e-4)


def test_the_field_in_closed_form():
    flow = AdaptiveFlow()
    p = torch.nn.Parameter(torch.zeros(3, dtype=torch.float64))
    group = {"params": [p], "lr": 0.1, "eps": 0.5, "weight_decay": 0.1}
    theta = torch.tensor([1.0, -2.0, 0.0], dtype=torch.float64)
    grad = torch.tensor([2.0, -1.0, 0.0], dtype=torch.float64)
    assert flow.configure([{**group, "decoupled_weight_decay": True}], None)
    assert not flow.configure([{**group, "decoupled_weight_decay": True}], None)
    expected = torch.tensor([-2 / 2.5 - 0.1, 1 / 1.5 + 0.2, 0.0], dtype=torch.float64)
    torch.testing.assert_close(flow.field(theta, grad), expected)
    assert flow.configure([group], None)
    expected = torch.tensor([-2.1 / 2.6, 1.2 / 1.7, 0.0], dtype=torch.float64)
    torch.testing.assert_close(flow.field(theta, grad), expected)
    flow.configure([{**group, "weight_decay": 0.0, "maximize": True}], None)
    assert float(flow.field(theta, grad)[0]) == pytest.approx(2 / 2.5)


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.Adam(p, amsgrad=True),
        lambda p: torch.optim.RMSprop(p, momentum=0.9),
        lambda p: torch.optim.RMSprop(p, centered=True),
        lambda p: torch.optim.SGD(p, lr=0.1),
        lambda p: torch.optim.Adagrad(p),
    ],
)
def test_it_is_not_chosen_for_what_has_another_limit(make):
    optimizer = make([torch.nn.Parameter(torch.zeros(1))])
    assert gfshadow_adaptive.gfshadow_flow_for(optimizer, {}) is None


def test_a_subclass_of_adam_is_adam():
    class Mine(torch.optim.Adam):
        pass

    optimizer = Mine([torch.nn.Parameter(torch.zeros(1))])
    assert gfshadow_adaptive.gfshadow_flow_for(optimizer, {}) == "adaptive"


@pytest.mark.parametrize("name", ["lr", "eps", "weight_decay"])
def test_groups_that_differ_are_refused(name):
    p = torch.nn.Parameter(torch.zeros(1))
    groups = [{"params": [p], "lr": 0.1, "eps": 1.0, "weight_decay": 0.0, name: v} for v in (1, 2)]
    flow = AdaptiveFlow()
    ask = flow.step_size if name == "lr" else lambda g: flow.configure(g, None)
    with pytest.raises(FlowError, match=f"param_groups must be of one {name}, got"):
        ask(groups)
