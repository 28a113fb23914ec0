"""Layout: parameters to flat vectors and back."""

import pytest
import torch
from torch import nn

from torch_gfshadow._tree import Layout


def layout_of(model):
    names, params = zip(*model.named_parameters(), strict=True)
    return Layout(names, params)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)).double()


def mixed():
    """A model in several dtypes, with a scalar and an empty parameter."""
    model = nn.Module()
    model.half_ = nn.Parameter(torch.ones(2, 2, dtype=torch.float16))
    model.single_ = nn.Parameter(torch.tensor(3.0))
    model.empty_ = nn.Parameter(torch.empty(0, 5))
    model.double_ = nn.Parameter(torch.full((2,), 1 / 3, dtype=torch.float64))
    return model


def test_the_vector_holds_every_parameter_in_order(model):
    layout = layout_of(model)
    expected = torch.cat([p.detach().reshape(-1) for p in model.parameters()])
    assert layout.dim == 3 * 4 + 4 + 4 * 2 + 2
    assert torch.equal(layout.current(), expected)


@pytest.mark.parametrize("make", [mixed, lambda: nn.Linear(2, 2)])
def test_flatten_and_unflatten_are_inverse(make):
    model = make()
    layout = layout_of(model)
    back = layout.unflatten(layout.current())
    for name, parameter in model.named_parameters():
        assert torch.equal(back[name], parameter)
        assert back[name].dtype == parameter.dtype
    assert torch.equal(layout.flatten(back.values()), layout.current())


def test_the_vector_has_the_widest_dtype_and_can_be_asked_for_another():
    layout = layout_of(mixed())
    assert layout.dtype is torch.float64
    assert layout.current().dtype is torch.float64
    assert layout.current(torch.float32).dtype is torch.float32


def test_the_vector_is_a_copy(model):
    vector = layout_of(model).current()
    before = model[0].weight.clone()
    vector.zero_()
    assert torch.equal(model[0].weight, before)
    assert not vector.requires_grad


def test_the_pieces_are_views_of_the_vector_where_the_dtype_agrees(model):
    layout = layout_of(model)
    vector = layout.current()
    layout.unflatten(vector)["0.weight"].zero_()
    assert torch.count_nonzero(vector[:12]) == 0


def test_the_pieces_carry_gradients_back_to_the_vector(model):
    layout = layout_of(model)
    vector = layout.current().requires_grad_()
    pieces = layout.unflatten(vector)
    (gradient,) = torch.autograd.grad((pieces["1.bias"] ** 2).sum(), vector)
    assert torch.equal(gradient[-2:], 2 * model[1].bias)
    assert torch.count_nonzero(gradient[:-2]) == 0


def test_a_missing_gradient_counts_as_zeros(model):
    layout = layout_of(model)
    gradients = [None, torch.ones(4), None, torch.full((2,), 2.0)]
    flat = layout.flatten(gradients)
    assert torch.equal(flat[:12], torch.zeros(12, dtype=torch.float64))
    assert flat.sum() == 8


def test_too_few_or_too_many_tensors_are_an_error(model):
    layout = layout_of(model)
    for tensors in ([None] * 3, [None] * 5):
        with pytest.raises(ValueError, match="zip"):
            layout.flatten(tensors)


def test_a_transposed_parameter_is_flattened_in_its_own_order():
    parameter = nn.Parameter(torch.arange(6.0).view(2, 3).t())
    assert torch.equal(
        Layout(["w"], [parameter]).current(), torch.tensor([0.0, 3.0, 1.0, 4.0, 2.0, 5.0])
    )


def test_everything_stays_on_the_parameters_device():
    model = nn.Linear(3, 2, device="meta")
    layout = layout_of(model)
    assert layout.device.type == "meta"
    assert layout.current().device.type == "meta"
    assert all(piece.device.type == "meta" for piece in layout.unflatten(layout.current()).values())


def test_the_vector_follows_the_parameters_to_another_dtype(model):
    layout = layout_of(model)
    model.float()
    assert layout.dtype is torch.float32
