import pytest
import torch
from loops import Looked, data, loss_of, mlp, seed, sgd, tied
from torch import nn

from torch_gfshadow.layouts import layout_of
from torch_gfshadow.watched import Watched


def watched(model, **options):
    optimizer = sgd(model, **options)
    return optimizer, Watched(optimizer, layout_of(optimizer, model))


@pytest.fixture
def model():
    seed()
    model = mlp(torch.float64)
    loss_of(model, data(torch.float64)).backward()
    return model


def test_names_are_the_models_own(model):
    layout = layout_of(sgd(model), model)
    assert layout.names == tuple(name for name, _ in model.named_parameters())


def test_without_a_model_parameters_are_numbered(model):
    assert layout_of(sgd(model), None).names == ("param_0", "param_1", "param_2", "param_3")


def test_compiled_models_keep_the_names_inside(model):
    compiled = torch.compile(model, backend="eager")
    assert layout_of(sgd(compiled), compiled).names[0] == "0.weight"


def test_tied_parameters_appear_once_and_frozen_ones_not_at_all():
    model = tied()
    model[3].bias.requires_grad_(False)
    layout = layout_of(sgd(model), model)
    assert len(layout.names) == len(set(layout.names)) == 5 - 1
    assert "3.bias" not in layout.names


def test_the_gradient_is_the_flat_grad_in_layout_order(model):
    _, seen = watched(model)
    expected = torch.cat([p.grad.reshape(-1) for p in model.parameters()])
    assert torch.equal(seen.gradient(), expected)


def test_a_missing_gradient_counts_as_zero(model):
    _, seen = watched(model)
    model[0].weight.grad = None
    n = model[0].weight.numel()
    assert not seen.gradient()[:n].any()
    assert seen.gradient()[n:].any()


def test_a_sparse_gradient_is_made_dense():
    model = Looked()
    loss_of(model, data()).backward()
    assert model.table.weight.grad.is_sparse
    _, seen = watched(model)
    assert torch.equal(seen.gradient(), model.table.weight.grad.to_dense().reshape(-1))


@pytest.mark.parametrize("scale", [torch.tensor(4.0), 4.0])
def test_a_fused_scaler_is_divided_out(model, scale):
    optimizer, seen = watched(model)
    plain = seen.gradient()
    optimizer.grad_scale = scale
    assert torch.equal(seen.gradient(), plain / 4)


def test_lr_zero_alone_is_a_step_and_with_zero_gradients_a_phantom(model):
    _, seen = watched(model, lr=0.0)
    assert not seen.skips()
    for p in model.parameters():
        p.grad.zero_()
    assert seen.skips()


def test_zero_gradients_alone_are_a_step(model):
    _, seen = watched(model)
    for p in model.parameters():
        p.grad.zero_()
    assert not seen.skips()


def test_a_step_without_any_gradient_changes_nothing(model):
    optimizer, seen = watched(model)
    optimizer.zero_grad(set_to_none=True)
    assert seen.skips()


@pytest.mark.parametrize(("found", "skips"), [(1.0, True), (0.0, False)])
def test_an_inf_that_amp_found_is_a_skip(model, found, skips):
    optimizer, seen = watched(model)
    optimizer.found_inf = torch.tensor(found)
    assert seen.skips() is skips


def test_an_untouched_model_is_not_edited(model):
    _, seen = watched(model)
    assert not seen.edited()
    seen.mark()
    assert not seen.edited()


@pytest.mark.parametrize("depth", [1, 4, 11, 40])
def test_an_edit_of_any_one_parameter_is_seen_without_a_version(depth):
    model = nn.Sequential(*[nn.Linear(9, 9) for _ in range(depth)])
    _, seen = watched(model)
    for param in model.parameters():
        seen.mark()
        assert not seen.edited()
        param.data.add_(1.0)
        assert seen.edited()
        seen.mark()
        param.data = param.data.clone()
        assert not seen.edited()
        param.data = param.data + 1.0
        assert seen.edited()


def test_a_run_that_diverged_is_not_an_edit(model):
    _, seen = watched(model)
    model[0].weight.data.fill_(float("nan"))
    model[2].weight.data.fill_(float("inf"))
    seen.mark()
    assert not seen.edited()
    model[2].weight.data.fill_(1.0)
    assert seen.edited()


def test_parameters_that_come_and_go_are_seen(model):
    optimizer, seen = watched(model)
    assert not seen.changed()
    optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(2))]})
    assert seen.changed()
    optimizer.param_groups = optimizer.param_groups[:1]
    assert not seen.changed()
    model[0].weight.requires_grad_(False)
    assert seen.changed()
    seen.adopt(layout_of(optimizer, model))
    assert not seen.changed()
    model.float()
    assert seen.changed()


def test_a_frozen_addition_is_no_change(model):
    optimizer, seen = watched(model)
    frozen = nn.Parameter(torch.zeros(2), requires_grad=False)
    optimizer.add_param_group({"params": [frozen]})
    assert not seen.changed()


def test_where_all_is_frozen_nothing_changes(model):
    _, seen = watched(model)
    model.requires_grad_(False)
    assert not seen.changed()


def test_a_step_of_parameters_that_are_not_in_the_layout_yet_is_not_skipped(model):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model[2].requires_grad_(False)
    seen = Watched(optimizer, layout_of(optimizer, model))
    model[0].requires_grad_(False)
    model[2].requires_grad_(True)
    optimizer.zero_grad()
    assert seen.skips()
    loss_of(model, data(torch.float64)).backward()
    assert model[0].weight.grad is None
    assert not seen.skips()


def test_groups_are_read_anew_after_a_state_was_loaded(model):
    optimizer, seen = watched(model)
    optimizer.load_state_dict(optimizer.state_dict())
    optimizer.param_groups[0]["lr"] = 0.77
    assert seen.groups[0]["lr"] == 0.77


def test_a_dropped_optimizer_leaves_no_groups(model):
    optimizer, seen = watched(model)
    del optimizer
    assert seen.optimizer is None
    assert list(seen.groups) == []


def test_an_edit_is_seen_where_the_parameters_were_moved_in_memory():
    model = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    watched = Watched(optimizer, layout_of(optimizer, model))
    watched.mark()
    assert not watched.edited()
    model.weight.data = model.weight.data.clone()  # elsewhere, but the same
    assert not watched.edited()
    model.weight.data.add_(1.0)  # no version counter of the parameter moves
    assert watched.edited()
    watched.mark()
    model.weight.data = model.weight.data.t().contiguous().t()  # strided: the same values
    assert not watched.edited()
    model.weight.data[0, 0] = 7.0
    assert watched.edited()
