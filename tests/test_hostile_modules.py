"""Modules written in every way: what is covered keeps its limits, what is not says why.

λ_min of the dense float64 Hessian is the referee, by double backward through the module itself.
"""

import pytest
import torch
from cases import F64, objective_of
from test_homogeneous_property import dense_lambda_min, limits_of
from torch import nn
from torch.nn import functional as F  # noqa: N812  (torch's own spelling)

from torch_gfshadow.network import NetworkPoint, recognise


class Written(nn.Module):
    """A module whose forward is given."""

    def __init__(self, forward, **parts):
        super().__init__()
        self._forward = forward
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x):
        return self._forward(self, x)


def linear(n_in, n_out):
    return nn.Linear(n_in, n_out, bias=False)


def conv(n_in, n_out, size, **options):
    return nn.Conv2d(n_in, n_out, size, bias=False, **options)


def two(forward):
    return Written(forward, a=linear(4, 3), b=linear(3, 2))


def image(*parts, width):
    return nn.Sequential(*parts, nn.Flatten(), linear(width, 2))


IMAGE = (1, 6, 6)
COVERED = {
    "nested": (lambda: nn.Sequential(nn.Sequential(linear(4, 3), nn.ReLU()),
                                     nn.Sequential(nn.Sequential(linear(3, 3)), nn.LeakyReLU(0.2)),
                                     linear(3, 2)), (4,)),
    "functional": (lambda: two(lambda m, x: m.b(F.relu(m.a(x)))), (4,)),
    "in place": (lambda: two(lambda m, x: m.b(F.relu_(m.a(x)))), (4,)),
    "absolute value": (lambda: two(lambda m, x: m.b(m.a(x).abs())), (4,)),
    "absolute value at the end": (lambda: two(lambda m, x: m.b(F.relu(m.a(x))).abs()), (4,)),
    "one activation used twice": (
        lambda: Written(lambda m, x: m.c(m.r(m.b(m.r(m.a(x))))), a=linear(4, 3), b=linear(3, 3),
                        c=linear(3, 2), r=nn.ReLU()), (4,)),
    "negative slope": (lambda: nn.Sequential(linear(4, 3), nn.LeakyReLU(-0.5), linear(3, 2)), (4,)),
    "slope above one": (lambda: nn.Sequential(linear(4, 3), nn.LeakyReLU(1.5), linear(3, 2)), (4,)),
    "idle parts": (lambda: nn.Sequential(linear(4, 3), nn.Identity(), nn.Dropout(0.0), nn.ReLU(),
                                         nn.Flatten(), linear(3, 2)), (4,)),
    "scaled by the data": (lambda: two(lambda m, x: m.b(F.relu(m.a(x)) * x[:, :3])), (4,)),
    "shifted data": (lambda: two(lambda m, x: m.b(F.relu(m.a((x - 1) / 2)))), (4,)),
    "view, permute, reshape": (
        lambda: Written(lambda m, x: m.b(m.a(x).view(-1, 2, 3).permute(0, 2, 1)
                                         .reshape(len(x), 6).relu()),
                        a=linear(4, 6), b=linear(6, 2)), (4,)),
    "tokens": (lambda: two(lambda m, x: m.b(F.relu(m.a(x))).mean(1)), (5, 4)),
    "parameters": (lambda: Written(lambda m, x: F.relu(x @ m.v) @ m.w,
                                   v=nn.Parameter(torch.randn(4, 3)),
                                   w=nn.Parameter(torch.randn(3, 2))), (4,)),
    "average pool": (lambda: image(conv(1, 2, 3), nn.ReLU(), nn.AvgPool2d(2), width=8), IMAGE),
    "padded average pool": (lambda: image(conv(1, 2, 3, padding=1), nn.ReLU(),
                            nn.AvgPool2d(3, 2, 1, count_include_pad=False), width=18), IMAGE),
    "a pool that adds": (lambda: image(conv(1, 2, 3), nn.ReLU(),
                                       nn.AvgPool2d(2, divisor_override=1), width=8), IMAGE),
    "global average": (lambda: image(conv(1, 3, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), width=3),
                       IMAGE),
    "max-pool": (lambda: image(conv(1, 2, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
                               conv(2, 2, 2), nn.ReLU(), width=8), IMAGE),
    "max-pool beyond the edge": (lambda: image(conv(1, 2, 2), nn.MaxPool2d(2, ceil_mode=True),
                                               width=18), IMAGE),
    "dilated max-pool": (lambda: image(conv(1, 2, 2), nn.LeakyReLU(0.1),
                                       nn.MaxPool2d(2, 2, dilation=2), width=8), IMAGE),
    "groups, stride, dilation": (lambda: image(conv(2, 4, 2, stride=2, dilation=2, groups=2,
                                                    padding=1), nn.ReLU(), width=36), (2, 6, 6)),
    "padding same": (lambda: image(conv(1, 2, 3, padding="same"), nn.ReLU(), width=32), (1, 4, 4)),
    "circular": (lambda: image(conv(1, 2, 3, padding=1, padding_mode="circular"), nn.ReLU(),
                               width=32), (1, 4, 4)),
    "zero padding": (lambda: image(nn.ZeroPad2d(1), conv(1, 2, 3), nn.ReLU(), nn.ZeroPad2d(1),
                                   conv(2, 1, 3), width=16), (1, 4, 4)),
    "conv1d": (lambda: image(nn.Conv1d(2, 3, 3, bias=False), nn.ReLU(), nn.MaxPool1d(2), width=6),
               (2, 6)),
    "conv3d": (lambda: image(nn.Conv3d(1, 2, 2, bias=False), nn.ReLU(), nn.AvgPool3d(2), width=2),
               (1, 3, 3, 3)),
}  # fmt: skip

REFUSED = {
    "a bias": (lambda: nn.Sequential(nn.Linear(4, 3), nn.ReLU(), linear(3, 2)),
               "layer '0' has a bias"),
    "a bias at the end": (lambda: nn.Sequential(linear(4, 3), nn.ReLU(), nn.Linear(3, 2)),
                          "layer '2' has a bias"),
    "LayerNorm": (lambda: nn.Sequential(linear(4, 3), nn.LayerNorm(3), linear(3, 2)),
                  "layer normalisation"),
    "BatchNorm": (lambda: nn.Sequential(linear(4, 3), nn.BatchNorm1d(3), linear(3, 2)),
                  "batch normalisation"),
    "a residual": (lambda: Written(lambda m, x: (lambda h: m.b(h + F.relu(m.a(h))))(m.c(x)),
                                   a=linear(3, 3), b=linear(3, 2), c=linear(4, 3)),
                   "a skip connection or a second branch is added"),
    "two branches": (lambda: Written(lambda m, x: m.b(torch.cat([m.a(x), m.a(x)], 1)),
                                     a=linear(4, 3), b=linear(6, 2)), "cat joins two branches"),
    "a module used twice": (lambda: Written(lambda m, x: m.b(m.a(F.relu(m.a(x)))), a=linear(4, 4),
                                            b=linear(4, 2)), "layer 'a' is used twice"),
    "a tied transpose": (lambda: Written(lambda m, x: F.linear(m.a(x), m.a.weight.t())[:, :2],
                                         a=linear(4, 3)), "layer 'a' is used twice"),
    "tanh": (lambda: nn.Sequential(linear(4, 3), nn.Tanh(), linear(3, 2)), "tanh after layer '0'"),
    "GELU": (lambda: nn.Sequential(linear(4, 3), nn.GELU(), linear(3, 2)), "gelu after layer '0'"),
    "dropout": (lambda: nn.Sequential(linear(4, 3), nn.Dropout(0.5), linear(3, 2)),
                "dropout is active"),
    "a learned scale": (lambda: Written(lambda m, x: m.b(F.relu(m.a(x)) * m.g), a=linear(4, 3),
                                        b=linear(3, 2), g=nn.Parameter(torch.ones(3))),
                        "mul with 'g'"),
    "a square": (lambda: two(lambda m, x: m.b(F.relu(m.a(x)) ** 2)), "is not homogeneous"),
    "a product with itself": (lambda: two(lambda m, x: (lambda h: m.b(h * h))(m.a(x))),
                              "is not homogeneous"),
    "mixed samples": (lambda: Written(lambda m, x: m.b(m.a(x).reshape(-1, 3).relu())
                                      .reshape(len(x), -1)[:, :2],
                                      a=linear(4, 6), b=linear(3, 2)), "is not homogeneous"),
    "detached": (lambda: two(lambda m, x: m.b(F.relu(m.a(x)).detach())), "detached"),
    "weight norm": (lambda: nn.Sequential(
        nn.utils.parametrizations.weight_norm(linear(4, 3)), linear(3, 2)), "weight_norm"),
    "repeated entries": (lambda: Written(lambda m, x: m.b(F.relu(m.a(x)).repeat(1, 2)),
                                         a=linear(4, 3), b=linear(6, 2)), "repeat after layer 'a'"),
}  # fmt: skip

CRITERIA = {"square": F.mse_loss, "cross-entropy": F.cross_entropy}


def problem(make, shape, criterion, seed):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = make().double()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(10 ** float(torch.empty(1).uniform_(-1, 0.6)))
        x, y = torch.randn(5, *shape, dtype=F64), torch.randn(5, 2, dtype=F64)
    y = y.argmax(1) if criterion == "cross-entropy" else y
    loss = CRITERIA[criterion]
    return objective_of(model, lambda m, b: loss(m(b[0]), b[1]), (x, y))


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("name", COVERED)
def test_what_is_covered_keeps_its_limits(name, criterion):
    for seed in range(2):
        objective = problem(*COVERED[name], criterion, seed)
        point = recognise(objective, objective.layout.current())
        assert isinstance(point, NetworkPoint), point
        assert point.n_kinks == 0
        smallest = dense_lambda_min(objective)
        limits = limits_of(point)
        room = 1e-9 * max(1.0, abs(limits[0]))
        assert all(limit <= smallest + room for limit in limits), (limits, smallest)


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_covered_says_why(name):
    make, reason = REFUSED[name]
    objective = problem(make, (4,), "square", 0)
    found = recognise(objective, objective.layout.current())
    assert not isinstance(found, NetworkPoint)
    assert reason in found.reason
    assert found.reason.count("\n") == 0
