"""Recognition: what a model is made of, why one is not covered, and that nobody notices."""

import math
import random
import re

import pytest
import torch
from cases import F64, cross_entropy, objective_of, seeded, squared
from torch import nn
from torch.nn import functional as F  # noqa: N812  (torch's own spelling)

from torch_gfshadow._tree import Layout
from torch_gfshadow.ledger import Ledger
from torch_gfshadow.network import NetworkPoint, NotCovered, recognise
from torch_gfshadow.network.conv import Conv
from torch_gfshadow.network.norms import sample_norms, stacked_norm
from torch_gfshadow.objective import Objective


def linear(inner, outer, bias=False):
    return nn.Linear(inner, outer, bias=bias)


def look(model, fn=squared, x=None, y=None, dtype=F64):
    model = model.to(dtype)
    x = torch.randn(12, 6, generator=seeded(1), dtype=F64).to(dtype) if x is None else x
    if y is None:
        with torch.no_grad():
            state = torch.get_rng_state()
            y = torch.randn(model(x).shape, generator=seeded(2), dtype=F64).to(dtype)
            torch.set_rng_state(state)
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    layout = Layout(list(trained), list(trained.values()))
    return recognise(Objective(model, fn, (x, y), layout, Ledger()), layout.current())


def images(channels=1):
    return torch.randn(5, channels, 8, 8, generator=seeded(3), dtype=F64)


class Functional(nn.Module):
    """Weights without modules, control flow, activations in place, a transposed product."""

    def __init__(self):
        super().__init__()
        self.first = linear(6, 5)
        self.second = nn.Parameter(torch.randn(5, 4, generator=seeded(0), dtype=F64))
        self.third = nn.Parameter(torch.randn(3, 4, generator=seeded(1), dtype=F64))

    def forward(self, x):
        h = self.first(x)
        h = torch.relu_(h) if h.sum() > 1e9 else F.relu(h, True)
        return F.leaky_relu(h @ self.second, 0.3) @ self.third.T


class Residual(nn.Module):
    def __init__(self, skip_data):
        super().__init__()
        self.a, self.b, self.skip_data = linear(6, 6), linear(6, 6), skip_data

    def forward(self, x):
        if self.skip_data:
            return self.b(x + self.a(x))
        h = self.a(x)
        return h + self.b(F.relu(h))


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = linear(6, 6)

    def forward(self, x):
        return self.a(F.relu(self.a(x)))


class Hidden(nn.Module):
    class Double(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return 2 * x

        @staticmethod
        def backward(ctx, g):
            return 2 * g

    def __init__(self):
        super().__init__()
        self.a, self.b = linear(6, 6), linear(6, 3)

    def forward(self, x):
        return self.b(Hidden.Double.apply(self.a(x)))


class View(nn.Module):
    """A view of the activation changes it behind its back."""

    def __init__(self):
        super().__init__()
        self.a, self.b = linear(6, 6), linear(6, 3)

    def forward(self, x):
        h = self.a(x).clone()
        h.view(-1).tanh_()
        return self.b(h)


def frozen_prelu():
    model = nn.Sequential(linear(6, 5), nn.PReLU(), linear(5, 3))
    model[1].weight.requires_grad_(False)
    return model


def lenet():
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(1, 2, 3, padding=1, bias=False), nn.ReLU(), nn.MaxPool2d(2)),
        nn.Sequential(nn.Conv2d(2, 3, 3, stride=2, bias=False), nn.ReLU(inplace=True)),
        nn.Flatten(),
        linear(3, 2),
    )


RECOGNISED = {
    "nested": (
        lambda: nn.Sequential(
            linear(6, 5), nn.ReLU(), nn.Sequential(linear(5, 4), nn.LeakyReLU(0.2)), linear(4, 3)
        ),
        None,
        ("0.weight", "2.0.weight", "3.weight"),
        ("ReLU", "leaky ReLU"),
    ),
    "deep linear": (
        lambda: nn.Sequential(linear(6, 5), nn.Identity(), linear(5, 4), linear(4, 3)),
        None,
        ("0.weight", "2.weight", "3.weight"),
        (),
    ),
    "functional": (Functional, None, ("first.weight", "second", "third"), ("ReLU", "leaky ReLU")),
    "frozen PReLU": (frozen_prelu, None, ("0.weight", "2.weight"), ("PReLU",)),
    "idle dropout": (
        lambda: nn.Sequential(linear(6, 5), nn.Dropout(0.5), nn.ReLU(), linear(5, 3)).eval(),
        None,
        ("0.weight", "3.weight"),
        ("ReLU",),
    ),
    "positions": (
        lambda: nn.Sequential(linear(8, 4), nn.ReLU(), linear(4, 2), nn.Flatten(), linear(16, 2)),
        images,
        ("0.weight", "2.weight", "4.weight"),
        ("ReLU",),
    ),
    "lenet": (
        lenet,
        images,
        ("0.0.weight", "1.0.weight", "3.weight"),
        ("ReLU", "max pool"),
    ),
    "pools": (
        lambda: nn.Sequential(
            nn.Conv2d(1, 4, 3, padding="same", dilation=2, bias=False),
            nn.AvgPool2d(3, 2, ceil_mode=True),
            nn.LeakyReLU(),
            nn.AdaptiveAvgPool2d(3),
            nn.Conv2d(4, 4, 2, groups=2, bias=False),
            nn.ReLU(),
            nn.Flatten(),
            linear(16, 2),
        ),
        images,
        ("0.weight", "4.weight", "7.weight"),
        ("average pool", "leaky ReLU", "ReLU"),
    ),
}


@pytest.mark.parametrize("name", RECOGNISED)
def test_layers_are_found_in_order_however_the_model_is_written(name):
    make, data, weights, activations = RECOGNISED[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        point = look(make(), x=data() if data else None)
    assert isinstance(point, NetworkPoint), point
    assert (point.names, point.activations) == (weights, activations)
    assert point.loss == {"square"}
    assert point.linear == (activations == ())
    assert point.n_kinks == 0


def test_a_deep_linear_network_hands_out_its_matrices_and_the_end_to_end_gradient():
    model = nn.Sequential(linear(6, 5), linear(5, 4), linear(4, 3))
    point = look(model)
    matrices = point.matrices()
    assert [list(w.shape) for w in matrices] == [[5, 6], [4, 5], [3, 4]]
    product = (matrices[2] @ matrices[1] @ matrices[0]).requires_grad_()
    x = torch.randn(12, 6, generator=seeded(1), dtype=F64)
    y = torch.randn(12, 3, generator=seeded(2), dtype=F64)
    squared(lambda x: x @ product.T, (x, y)).backward()
    torch.testing.assert_close(point.gradient, product.grad)


def test_matrices_are_only_those_of_linear_networks():
    assert look(nn.Sequential(linear(6, 5), nn.ReLU(), linear(5, 3))).matrices() is None


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: nn.Sequential(linear(6, 5), linear(5, 3, bias=True)), "layer '1' has a bias"),
        (
            lambda: nn.Sequential(linear(6, 5), nn.BatchNorm1d(5), linear(5, 3)),
            "batch normalisation with '1.weight' is no bias-free layer",
        ),
        (
            lambda: nn.Sequential(linear(6, 5), nn.BatchNorm1d(5, affine=False), linear(5, 3)),
            "batch normalisation after layer '0' is no bias-free layer",
        ),
        (
            lambda: nn.Sequential(linear(6, 5), nn.LayerNorm(5), linear(5, 3)),
            "layer normalisation with '1.weight'",
        ),
        (lambda: nn.Sequential(linear(6, 5), nn.Tanh(), linear(5, 3)), "tanh after layer '0'"),
        (lambda: nn.Sequential(linear(6, 5), nn.GELU(), linear(5, 3)), "gelu after layer '0'"),
        (
            lambda: nn.Sequential(linear(6, 5), nn.Softplus(), linear(5, 3)),
            "softplus before layer '2' is not homogeneous",
        ),
        (
            lambda: nn.Sequential(linear(6, 5), nn.PReLU(), linear(5, 3)),
            "the slope '1.weight' of a PReLU is trained",
        ),
        (lambda: nn.Sequential(linear(6, 5), nn.Dropout(), linear(5, 3)), "dropout is active"),
        (lambda: Residual(False), "a skip connection or a second branch is added"),
        (lambda: Residual(True), "a constant is added before layer 'b'"),
        (Tied, "layer 'a' is used twice"),
        (Hidden, "a part is detached from the graph .*autograd.Function"),
        (View, "tanh_ after layer 'a'|changed in place through a view"),
        (
            lambda: nn.Sequential(nn.utils.parametrizations.weight_norm(linear(6, 5))),
            "weight_norm with '0.parametrizations",
        ),
    ],
)
def test_what_is_not_covered_says_why(make, reason):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        found = look(make())
    assert isinstance(found, NotCovered)
    assert re.search(reason, found.reason), found.reason


HEADS = {
    "mse_loss": (lambda h, y: F.mse_loss(h, y), {"square"}),
    "by hand": (lambda h, y: 0.5 * ((h - y) ** 2).sum(1).mean(), {"square"}),
    "e * e": (
        lambda h, y: ((h - y) * 1.0).square().mean() + (e := h - y).mul(e).mean(),
        {"square"},
    ),
    "cross_entropy": (lambda h, y: F.cross_entropy(h, y.argmax(1)), {"cross-entropy"}),
    "log_softmax": (
        lambda h, y: -F.log_softmax(h, 1)[torch.arange(len(h)), y.argmax(1)].mean(),
        {"cross-entropy"},
    ),
    "nll": (
        lambda h, y: F.nll_loss(F.log_softmax(h, 1), y.argmax(1), reduction="sum") / len(h),
        {"cross-entropy"},
    ),
    "logsumexp": (
        lambda h, y: (h.logsumexp(1) - h.gather(1, y.argmax(1)[:, None])[:, 0]).mean(),
        {"cross-entropy"},
    ),
    "softplus": (lambda h, y: F.softplus(-y.sign() * h).mean(), {"logistic"}),
    "log1p": (lambda h, y: torch.log1p(torch.exp(-y.sign() * h)).mean(), {"logistic"}),
    "bce": (
        lambda h, y: F.binary_cross_entropy_with_logits(h, (y > 0).to(h.dtype)),
        {"logistic"},
    ),
    "exponential": (lambda h, y: torch.exp(-y * h).mean(), {"exponential"}),
    "huber": (lambda h, y: F.huber_loss(h, y), {"Huber"}),
}


@pytest.mark.parametrize("name", HEADS)
def test_convex_losses_are_derived_from_their_functions(name):
    head, kinds = HEADS[name]
    model = nn.Sequential(linear(6, 5), nn.ReLU(), linear(5, 3))
    point = look(model, lambda model, batch: head(model(batch[0]), batch[1]))
    assert isinstance(point, NetworkPoint), point
    assert point.loss == kinds


def test_a_convex_penalty_on_the_weights_changes_nothing():
    def penalised(model, batch):
        return squared(model, batch) + 0.1 * sum(p.square().sum() for p in model.parameters())

    model = nn.Sequential(linear(6, 5), nn.ReLU(), linear(5, 3))
    assert look(model, penalised).pairs == look(model).pairs


@pytest.mark.parametrize(
    ("head", "reason"),
    [
        (lambda h, y: ((h - y) ** 3).mean(), "the power 3 is not convex"),
        (lambda h, y: -F.mse_loss(h, y), "the loss is concave"),
        (lambda h, y: -(h * h).mean(), "the loss is concave"),
        (lambda h, y: -h.flatten().dot(h.flatten()), "dot joins two branches"),
        (lambda h, y: (lambda r: -r.dot(r))(h.flatten()), "the loss is concave"),
        (lambda h, y: (lambda r: -torch.inner(r, r).sum())(h - y), "inner of a part of the loss"),
        (lambda h, y: (h - y).square().mean() - h.exp().mean(), "a difference of convex functions"),
        (lambda h, y: torch.sin(h).mean(), "sin after layer '2'"),
        (lambda h, y: (y * h.square()).mean(), "weighted with both signs"),
        (lambda h, y: F.mse_loss(y, h), "mse_loss with the output as target"),
        (lambda h, y: F.mse_loss(h, h.detach() + y), "detached from the graph"),
    ],
)
def test_a_loss_that_is_not_known_to_be_convex_is_refused(head, reason):
    model = nn.Sequential(linear(6, 5), nn.ReLU(), linear(5, 3))
    found = look(model, lambda model, batch: head(model(batch[0]), batch[1]))
    assert isinstance(found, NotCovered)
    assert reason in found.reason


def test_a_model_seen_in_float32_is_evaluated_in_float64_and_left_alone():
    torch.manual_seed(0)
    model = nn.Sequential(linear(6, 5), nn.ReLU(), linear(5, 3))
    before = [p.clone() for p in model.parameters()]
    state = torch.get_rng_state()
    point = look(model, dtype=torch.float32)
    assert all(w.dtype == F64 for w in point.weights)
    assert torch.equal(state, torch.get_rng_state())
    assert all(p.grad is None and p.dtype == torch.float32 for p in model.parameters())
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_several_chunks_bound_what_one_gives():
    model = nn.Sequential(linear(6, 5), nn.ReLU(), linear(5, 3)).double()
    x = torch.randn(12, 6, generator=seeded(1), dtype=F64)
    y = torch.randn(12, 3, generator=seeded(2), dtype=F64)
    whole = objective_of(model, squared, (x, y))
    parts = objective_of(model, squared, [(x[:5], y[:5]), (x[5:], y[5:])])
    one = recognise(whole, whole.layout.current())
    two = recognise(parts, parts.layout.current())
    assert two.signal == pytest.approx(one.signal, rel=1e-12)
    for pair, value in one.pairs.items():
        assert value.mixed <= two.pairs[pair].mixed * (1 + 1e-12)
        assert value.summed == pytest.approx(two.pairs[pair].summed, rel=1e-12)
    assert sorted(one.pattern.tolist()) == sorted(two.pattern.tolist())


def test_sitting_on_a_kink_is_counted_and_dead_inputs_are_not():
    model = nn.Sequential(linear(2, 2), nn.ReLU(), linear(2, 2), nn.ReLU(), linear(2, 1)).double()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, -1.0], [-1.0, -1.0]]))
    x = torch.tensor([[1.0, 1.0], [-3.0, 1.0]], dtype=F64)  # first: one unit at 0, one below
    objective = objective_of(model, squared, (x, torch.ones(2, 1, dtype=F64)))
    point = recognise(objective, objective.layout.current())
    assert point.n_kinks == 1


@pytest.mark.parametrize("seed", range(12))
def test_convolution_geometry_agrees_with_the_dense_operator(seed):
    rng = random.Random(seed)
    dims, groups = rng.choice([1, 2, 2, 3]), rng.choice([1, 1, 2])
    inside, out = 2 * rng.choice([1, 2]), 2 * rng.choice([1, 2])
    kernel = tuple(rng.choice([1, 2, 3]) for _ in range(dims))
    stride = tuple(rng.choice([1, 2, 3]) for _ in range(dims))
    dilation = tuple(rng.choice([1, 2]) for _ in range(dims))
    pads = tuple((rng.choice([0, 1, 2]), rng.choice([0, 1, 2])) for _ in range(dims))
    size = tuple(rng.choice([5, 6]) if dims < 3 else 5 for _ in range(dims))
    layer = Conv((out, inside // groups, *kernel), size, stride, pads, dilation, groups)
    conv = (F.conv1d, F.conv2d, F.conv3d)[dims - 1]
    flat = [edge for pair in reversed(pads) for edge in pair]

    def run(weight, z):
        padded = F.pad(z, flat)
        return conv(padded, weight, stride=stride, dilation=dilation, groups=groups)

    weight = torch.randn(out, inside // groups, *kernel, generator=seeded(seed), dtype=F64)
    z = torch.randn(3, inside, *size, generator=seeded(seed), dtype=F64)
    c = torch.rand(3, generator=seeded(seed), dtype=F64)
    n_in, n_weights = inside * math.prod(size), weight.numel()
    eye = torch.eye(n_in, dtype=F64).reshape(n_in, inside, *size)
    units = torch.eye(n_weights, dtype=F64).reshape(n_weights, *weight.shape)
    patterns = torch.stack([run(unit, eye).reshape(n_in, -1).T for unit in units])

    output = run(weight, z)
    assert tuple(output.shape[2:]) == layer.out_size()
    true = float(torch.linalg.matrix_norm(run(weight, eye).reshape(n_in, -1), 2))
    assert true <= layer.norm(weight) <= 1.6 * true
    m = torch.einsum("cpq,iq->ipc", patterns, z.flatten(1))
    p = torch.randn(output.shape, generator=seeded(seed), dtype=F64)
    m_signal = torch.einsum("cpq,ip->iqc", patterns, p.flatten(1))
    for make, vectors, dense in ((layer.input_blocks, z, m), (layer.signal_blocks, p, m_signal)):
        stacked = (dense * c.sqrt()[:, None, None]).reshape(-1, n_weights)
        expected = float(torch.linalg.matrix_norm(stacked, 2))
        assert stacked_norm(make, vectors, c) == pytest.approx(expected, rel=1e-9)
        each = torch.linalg.matrix_norm(dense, 2)
        torch.testing.assert_close(sample_norms(make, vectors), each)
    rows = torch.einsum("cpq,crq->pr", patterns, patterns)
    columns = torch.einsum("cpq,cpr->qr", patterns, patterns)
    multiplicity = int(patterns.sum((1, 2)).max())
    kappa = min(multiplicity, *(float(torch.linalg.matrix_norm(a, 2)) for a in (rows, columns)))
    assert layer.sharing() == (multiplicity, pytest.approx(kappa, rel=1e-9))


def test_samples_are_unfolded_a_few_at_a_time_with_the_same_result(monkeypatch):
    layer = Conv((3, 2, 3, 3), (6, 6), (1, 1), ((1, 1), (1, 1)), (1, 1))
    z = torch.randn(9, 2, 6, 6, generator=seeded(0), dtype=F64)
    c = torch.rand(9, generator=seeded(1), dtype=F64)
    whole = stacked_norm(layer.input_blocks, z, c)
    monkeypatch.setattr("torch_gfshadow.network.norms._ENTRIES", 2000)
    assert stacked_norm(layer.input_blocks, z, c) == pytest.approx(whole, rel=1e-12)


def test_the_paper_networks_are_covered():
    def loss(model, batch):
        return cross_entropy(model, batch)

    x = torch.randn(4, 1, 28, 28, generator=seeded(0), dtype=F64)
    model = nn.Sequential(
        nn.Conv2d(1, 6, 5, stride=2, padding=2, bias=False),
        nn.ReLU(),
        nn.Conv2d(6, 16, 5, stride=2, bias=False),
        nn.ReLU(),
        nn.Flatten(),
        linear(400, 120),
        nn.ReLU(),
        linear(120, 84),
        nn.ReLU(),
        linear(84, 10),
    )
    point = look(model, loss, x=x, y=torch.tensor([0, 1, 2, 3]))
    assert point.depth == 5
    assert point.loss == {"cross-entropy"}
