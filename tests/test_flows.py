import torch
from cases import F64, Point
from torch import nn

from torch_gfshadow._tree import Layout
from torch_gfshadow.flows import Flow, GradientFlow, gfshadow_flow_for, gfshadow_flows

SGD = torch.optim.SGD


def layout(*params):
    return Layout([f"p{i}" for i in range(len(params))], params)


def configured(optimizer, *params):
    flow = GradientFlow()
    flow.configure(optimizer.param_groups, layout(*params))
    return flow


def two():
    return nn.Parameter(torch.ones(2, dtype=F64)), nn.Parameter(torch.ones(3, dtype=F64))


def test_the_field_is_minus_the_gradient():
    a, b = two()
    flow = configured(SGD([a, b], lr=0.1), a, b)
    grad = torch.arange(5, dtype=F64)
    assert torch.equal(flow.field(torch.ones(5, dtype=F64), grad), -grad)
    assert isinstance(flow, Flow)


def test_the_field_leaves_its_arguments_alone():
    a, b = two()
    flow = configured(SGD([a, b], lr=0.1, weight_decay=0.5), a, b)
    theta, grad = torch.ones(5, dtype=F64), torch.arange(5, dtype=F64)
    flow.field(theta, grad)
    assert torch.equal(theta, torch.ones(5, dtype=F64))
    assert torch.equal(grad, torch.arange(5, dtype=F64))


def test_one_euler_step_of_the_field_is_one_step_of_the_optimizer():
    a, b = two()
    groups = [
        {"params": [b], "weight_decay": 0.3, "maximize": True},
        {"params": [a], "weight_decay": 0.1},
    ]
    optimizer = SGD(groups, lr=0.05)
    flow = configured(optimizer, a, b)  # the layout's order is not the groups'
    theta = torch.cat([a.detach(), b.detach()])
    grad = torch.tensor([1.0, -2.0, 0.5, 3.0, -1.0], dtype=F64)
    want = theta + flow.step_size(optimizer.param_groups) * flow.field(theta, grad)
    a.grad, b.grad = grad[:2].clone(), grad[2:].clone()
    optimizer.step()
    torch.testing.assert_close(torch.cat([a.detach(), b.detach()]), want, rtol=0, atol=1e-15)


def test_a_float32_gradient_gives_a_field_in_the_dtype_of_the_state():
    a, b = two()
    flow = configured(SGD([a, b], lr=0.1, weight_decay=0.1), a, b)
    out = flow.field(torch.ones(5, dtype=F64), torch.ones(5, dtype=torch.float32))
    assert out.dtype == F64


def test_a_change_of_weight_decay_or_maximize_is_noticed_once():
    a, b = two()
    optimizer = SGD([{"params": [a]}, {"params": [b]}], lr=0.1)
    flow = GradientFlow()
    where = layout(a, b)
    flow.configure(optimizer.param_groups, where)
    assert not flow.configure(optimizer.param_groups, where)
    optimizer.param_groups[1]["weight_decay"] = 0.1
    assert flow.configure(optimizer.param_groups, where)
    assert not flow.configure(optimizer.param_groups, where)
    optimizer.param_groups[0]["maximize"] = True
    assert flow.configure(optimizer.param_groups, where)
    optimizer.param_groups[0]["lr"] = optimizer.param_groups[1]["lr"] = 0.01
    assert not flow.configure(optimizer.param_groups, where)


def test_a_per_parameter_field_lives_on_the_layout_s_device():
    a = nn.Parameter(torch.empty(2, device="meta"))
    b = nn.Parameter(torch.empty(3, device="meta"))
    groups = [{"params": [a], "weight_decay": 0.1}, {"params": [b], "weight_decay": 0.0}]
    flow = configured(SGD(groups, lr=0.1), a, b)
    out = flow.field(torch.empty(5, device="meta"), torch.empty(5, device="meta"))
    assert out.device.type == "meta"
    assert out.shape == (5,)


def test_groups_of_several_rates_share_the_largest_and_keep_their_ratios():
    a, b = two()
    optimizer = SGD([{"params": [a], "lr": 0.1}, {"params": [b]}], lr=0.4)
    flow = configured(optimizer, a, b)
    assert flow.step_size(optimizer.param_groups) == 0.4
    grad = torch.ones(a.numel() + b.numel(), dtype=torch.float64)
    out = flow.field(torch.zeros_like(grad), grad)
    assert out.tolist() == [-0.25] * a.numel() + [-1.0] * b.numel()


def test_the_step_size_is_the_learning_rate_all_groups_share():
    a, b = two()
    flow = GradientFlow()
    assert flow.step_size(SGD([a, b], lr=0.25).param_groups) == 0.25
    tensor = SGD([a], lr=torch.tensor(0.5))
    assert flow.step_size(tensor.param_groups) == 0.5


def test_a_group_without_parameters_has_no_clock():
    a, _ = two()
    optimizer = SGD([{"params": [a]}, {"params": [], "lr": 7.0}], lr=0.2)
    assert GradientFlow().step_size(optimizer.param_groups) == 0.2


def test_which_optimizer_has_which_flow():
    theta = list(Point([1.0]).parameters())
    assert gfshadow_flow_for(SGD(theta, lr=0.1), {}) == "gradient_flow"
    assert gfshadow_flow_for(SGD(theta, lr=0.1, weight_decay=0.1), {}) == "gradient_flow"
    assert gfshadow_flow_for(SGD(theta, lr=0.1, momentum=0.9), {}) == "momentum_flow"
    assert gfshadow_flow_for(torch.optim.Adam(theta), {}) == "adam_flow"
    assert gfshadow_flow_for(torch.optim.AdamW(theta), {}) == "adam_flow"
    assert gfshadow_flow_for(torch.optim.RMSprop(theta), {}) == "rmsprop_flow"
    assert gfshadow_flow_for(torch.optim.NAdam(theta), {}) is None


def test_every_registered_flow_builds_what_its_name_says():
    for spec in gfshadow_flows():
        assert spec.name == spec.factory().name
        assert spec.source
