"""Initialisers: ranges, scales, and what they leave alone."""

import math

import pytest
import torch
from torch import nn

from torch_gfshadow.inits import (
    Init,
    ScaledInit,
    gfshadow_inits,
    scaled_kaiming_uniform_,
    scaled_normal_,
    scaled_xavier_uniform_,
)

FILLS = [scaled_xavier_uniform_, scaled_kaiming_uniform_]
EVERY = [*FILLS, scaled_normal_]
TORCH = {
    scaled_xavier_uniform_: nn.init.xavier_uniform_,
    scaled_kaiming_uniform_: nn.init.kaiming_uniform_,
}
# Largest entry of a [40, 60] weight at scale 1: √(6/(fan_in + fan_out)) and √2·√(3/fan_in).
LIMIT = {
    scaled_xavier_uniform_: math.sqrt(6 / 100),
    scaled_kaiming_uniform_: math.sqrt(2) * math.sqrt(3 / 60),
}


@pytest.fixture
def weight():
    return torch.empty(40, 60, dtype=torch.float64)


@pytest.mark.parametrize("fill", FILLS)
def test_the_entries_are_torchs_own_times_the_scale(fill, weight):
    torch.manual_seed(0)
    expected = 0.01 * TORCH[fill](weight.clone())
    torch.manual_seed(0)
    torch.testing.assert_close(fill(weight, 0.01), expected, rtol=1e-14, atol=0)


@pytest.mark.parametrize("fill", FILLS)
def test_the_entries_are_uniform_up_to_the_stated_limit(fill, weight):
    fill(weight, 0.2, generator=torch.Generator().manual_seed(0))
    limit = 0.2 * LIMIT[fill]
    assert 0.99 * limit < weight.abs().max() <= limit
    assert weight.std() == pytest.approx(limit / math.sqrt(3), rel=0.03)
    assert weight.mean() == pytest.approx(0.0, abs=0.03 * limit)


def test_gaussian_entries_keep_the_variance_of_the_inputs_times_the_scale():
    weight = torch.empty(200, 30, 2, 2, dtype=torch.float64)
    scaled_normal_(weight, 0.2, generator=torch.Generator().manual_seed(0))
    assert weight.std() == pytest.approx(0.2 / math.sqrt(120), rel=0.02)
    assert weight.mean() == pytest.approx(0.0, abs=1e-3)
    assert weight.abs().max() > 3 * weight.std()


@pytest.mark.parametrize("fill", EVERY)
def test_it_fills_in_place_and_returns_its_argument(fill, weight):
    assert fill(weight) is weight


@pytest.mark.parametrize("fill", EVERY)
def test_a_parameter_stays_a_leaf_without_history(fill):
    parameter = nn.Parameter(torch.empty(3, 4))
    fill(parameter)
    assert parameter.is_leaf
    assert parameter.requires_grad
    assert parameter.grad_fn is None


@pytest.mark.parametrize("fill", EVERY)
def test_a_generator_leaves_the_global_random_state_alone(fill, weight):
    before = torch.get_rng_state()
    fill(weight, generator=torch.Generator().manual_seed(0))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("fill", EVERY)
def test_it_runs_where_the_tensor_lives(fill):
    assert fill(torch.empty(3, 4, device="meta")).device.type == "meta"


@pytest.mark.parametrize("fill", EVERY)
@pytest.mark.parametrize("scale", [0.0, -1.0, math.nan, math.inf])
def test_a_scale_that_is_not_positive_and_finite_is_refused(fill, scale, weight):
    with pytest.raises(ValueError, match=rf"scale must be positive and finite, got {scale!r}"):
        fill(weight, scale)


@pytest.mark.parametrize("fill", EVERY)
def test_a_vector_is_refused(fill):
    with pytest.raises(ValueError, match=r"tensor must be at least two-dimensional, got .*\(3,\)"):
        fill(torch.empty(3))


# --- on modules


def network():
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 5), nn.Embedding(5, 2)
    )


def test_a_module_gets_small_weights_zero_biases_and_keeps_its_other_layers():
    model = network()
    norm, embedding = model[1].weight.clone(), model[4].weight.clone()
    init = ScaledInit(scaled_xavier_uniform_, 0.01)
    assert init(model) is model
    for layer in (model[0], model[3]):
        assert 0 < layer.weight.abs().max() < 0.01
        assert torch.equal(layer.bias, torch.zeros_like(layer.bias))
    assert torch.equal(model[1].weight, norm)
    assert torch.equal(model[4].weight, embedding)


def test_a_layer_without_bias_is_fine():
    layer = nn.Linear(2, 2, bias=False)
    before = layer.weight.detach().clone()
    ScaledInit(scaled_xavier_uniform_)(layer)
    assert not torch.equal(layer.weight, before)
    assert 0 < layer.weight.abs().max() <= 0.1 * (6 / 4) ** 0.5


def test_a_module_without_such_a_layer_is_refused():
    message = "module must be one with linear or convolutional layers, got ReLU"
    with pytest.raises(ValueError, match=message):
        ScaledInit(scaled_xavier_uniform_)(nn.ReLU())


def test_a_computed_weight_is_refused_before_anything_changes():
    model = nn.Sequential(nn.Linear(3, 3), nn.utils.parametrizations.weight_norm(nn.Linear(3, 3)))
    before = model[0].weight.clone()
    with pytest.raises(ValueError, match="weight must be a parameter, got a computed one in 1"):
        ScaledInit(scaled_xavier_uniform_)(model)
    assert torch.equal(model[0].weight, before)


SCALED = [spec for spec in gfshadow_inits() if spec.name.startswith("scaled")]


@pytest.mark.parametrize("spec", SCALED, ids=lambda spec: spec.name)
def test_registered_initialisers_take_their_scale_as_text(spec):
    init = spec.factory("0.05")
    assert isinstance(init, Init)
    assert init.scale == 0.05
    assert spec.factory().scale == 0.1
    with pytest.raises(ValueError, match="scale must be positive and finite, got 'tiny'"):
        spec.factory("tiny")
