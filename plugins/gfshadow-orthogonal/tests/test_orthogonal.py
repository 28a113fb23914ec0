"""Both initialisers keep the contract, and the networks they start are what theorems ask for."""

import math
from itertools import pairwise

import gfshadow_orthogonal
import pytest
import torch
from gfshadow_orthogonal.inits import IdentityPlusNoise, ScaledOrthogonal
from torch import nn

from torch_gfshadow.plugins import Plugins
from torch_gfshadow.testing import (
    assert_hooks_valid,
    assert_init_balanced,
    assert_init_contract,
    assert_init_scales,
    isolated_plugins,
)


def eye(n):
    return torch.eye(n, dtype=torch.float64)


def linear(*widths):
    pairs = pairwise(widths)
    return nn.Sequential(*(nn.Linear(a, b, bias=False, dtype=torch.float64) for a, b in pairs))


def end_to_end(network):
    return network(eye(network[0].in_features)).T.detach()


def test_its_hooks_are_valid_and_both_take_their_factor_by_name():
    assert_hooks_valid(gfshadow_orthogonal)
    with isolated_plugins():
        plugins = Plugins([gfshadow_orthogonal])
    assert plugins.build("inits", "scaled_orthogonal:0.5").scale == 0.5
    assert plugins.build("inits", "identity_plus_noise:0.2").noise == 0.2


@pytest.mark.parametrize("make", [ScaledOrthogonal, IdentityPlusNoise])
def test_both_keep_the_contract_of_initialisers(make):
    assert_init_contract(make)


def test_an_orthogonal_start_is_exactly_balanced_at_every_scale():
    for scale in (0.01, 1.0, 3.0):
        assert_init_balanced(ScaledOrthogonal(scale), tol=1e-13 * max(1.0, scale**2), depth=5)
    assert_init_scales(ScaledOrthogonal)


def test_the_end_to_end_matrix_is_orthogonal_to_the_power_of_the_scale():
    matrix = end_to_end(ScaledOrthogonal(0.9)(linear(6, 6, 6, 6)))
    torch.testing.assert_close(matrix @ matrix.T, 0.9**6 * eye(6))


def test_where_widths_differ_rows_or_columns_are_orthonormal():
    network = ScaledOrthogonal(1.0)(linear(8, 3, 5))
    narrow, wide = (layer.weight.detach() for layer in network)
    torch.testing.assert_close(narrow @ narrow.T, eye(3))
    torch.testing.assert_close(wide.T @ wide, eye(3))


def test_without_noise_a_square_network_is_the_identity():
    torch.testing.assert_close(end_to_end(IdentityPlusNoise(0.0)(linear(5, 5, 5))), eye(5))


def test_the_noise_has_the_deviation_it_names_and_the_distance_is_of_its_order():
    torch.manual_seed(0)
    layer = IdentityPlusNoise(0.1)(linear(300, 300))[0]
    off = layer.weight.detach() - eye(300)
    assert float(off.std()) == pytest.approx(0.1 / math.sqrt(300), rel=0.02)
    distances = [
        float((end_to_end(IdentityPlusNoise(noise)(linear(6, 6, 6))) - eye(6)).norm())
        for noise in (1e-3, 1e-5)
    ]
    assert distances[0] < 0.02
    assert distances[1] < 2e-4


def test_a_convolution_passes_its_channels_through():
    layer = IdentityPlusNoise(0.0)(nn.Conv2d(3, 3, 3, padding=1, bias=True))
    image = torch.randn(1, 3, 8, 8)
    torch.testing.assert_close(layer(image), image)


def test_a_residual_block_of_a_real_network_starts_and_trains():
    torch.manual_seed(0)
    network = IdentityPlusNoise(0.01)(linear(4, 4, 4, 4))
    target = 2.0 * eye(4)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05)
    for _ in range(400):
        optimizer.zero_grad()
        loss = 0.5 * (network(eye(4)) - target).square().sum()
        loss.backward()
        optimizer.step()
    assert loss.item() < 1e-10


@pytest.mark.parametrize(
    ("make", "wrong", "message"),
    [
        (ScaledOrthogonal, 0.0, "scale must be positive and finite, got 0.0"),
        (ScaledOrthogonal, "big", "scale must be positive and finite, got 'big'"),
        (IdentityPlusNoise, -0.1, "noise must be at least 0, got -0.1"),
        (IdentityPlusNoise, math.nan, "noise must be at least 0, got nan"),
    ],
)
def test_a_wrong_factor_is_refused(make, wrong, message):
    with pytest.raises(ValueError, match=message):
        make(wrong)


def test_a_computed_weight_is_refused_before_anything_changes():
    network = nn.Sequential(nn.Linear(3, 3), nn.utils.parametrizations.weight_norm(nn.Linear(3, 3)))
    before = network[0].weight.clone()
    with pytest.raises(
        ValueError, match="weight of module must be a parameter, got a computed one"
    ):
        ScaledOrthogonal()(network)
    assert torch.equal(network[0].weight, before)
