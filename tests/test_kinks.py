"""Slopes averaged over a stretch of the path: against the average of gradients along it."""

import pytest
import torch
from cases import F64, objective_of, seeded, squared
from torch import nn
from torch.nn import functional as F  # noqa: N812
from torch.utils.checkpoint import checkpoint

from torch_gfshadow._kinks import Noting


class Layer(nn.Module):
    """x ↦ act(Wx + b): the inputs of the activation are linear in the parameters."""

    def __init__(self, act, n=40):
        super().__init__()
        make = seeded(0)
        self.w = nn.Parameter(torch.randn(n, 6, generator=make, dtype=F64))
        self.b = nn.Parameter(torch.randn(n, generator=make, dtype=F64))
        self.act = act

    def forward(self, x):
        return self.act(x @ self.w.T + self.b)


def summed(model, batch):
    x, weights = batch
    return (model(x) * weights).sum(-1).mean()


def in_place(function):
    def act(z):
        out = z * 1.0
        function(out)
        return out  # what the function returned is dropped: it has to have worked in place

    return act


def pooled(pool, *args):
    def act(z):
        return pool(z.reshape(len(z), 1, *([-1] if pool in ONE_DIM else [5, 8])), *args).flatten(1)

    return act


ONE_DIM = (F.max_pool1d, F.adaptive_max_pool1d)
EXACT = {
    "relu": torch.relu,
    "nn.ReLU": nn.ReLU(),
    "nn.ReLU in place": nn.ReLU(inplace=True),
    "method": lambda z: z.relu(),
    "relu_": in_place(lambda z: z.relu_()),
    "torch.relu_": in_place(torch.relu_),
    "dropped in place": in_place(nn.ReLU(inplace=True)),
    "leaky": nn.LeakyReLU(0.2),
    "leaky in place": nn.LeakyReLU(0.3, inplace=True),
    "hardtanh": nn.Hardtanh(-0.5, 1.5),
    "relu6": nn.ReLU6(),
    "F.relu6": F.relu6,
    "clamp": lambda z: z.clamp(min=0.1),
    "clamp both": lambda z: torch.clamp(z, -1.0, 0.5),
    "clamp_min": lambda z: z.clamp_min(0.0),
    "clamp_max": lambda z: z.clamp_max(0.3),
    "abs": torch.abs,
    "threshold": nn.Threshold(0.1, 0.1),
    "threshold in place": nn.Threshold(0.0, 0.0, inplace=True),
    "PReLU": nn.PReLU(init=0.2),
    "PReLU, a slope per channel": nn.PReLU(40, init=0.2),
    "PReLU, frozen": nn.PReLU(init=0.2).requires_grad_(False),
    "maximum": lambda z: torch.maximum(z, 0.2 * z),
    "max of two": lambda z: torch.max(z, z.flip(-1)),
    "method max": lambda z: z.max(torch.zeros(())),
    "minimum": lambda z: z.minimum(0.3 * z),
    "min of two": lambda z: torch.min(0.5 * z, z),
    "l1_loss": lambda z: F.l1_loss(z, torch.full_like(z, 0.2), reduction="none"),
    "nn.L1Loss": lambda z: 0.0 * z + nn.L1Loss()(z, torch.full_like(z, 0.2)),
    "l1_loss, summed": lambda z: 0.0 * z + F.l1_loss(z, 0.2 + 0.0 * z, reduction="sum"),
}
SAMPLED = {
    "max_pool1d": pooled(F.max_pool1d, 4),
    "max_pool2d": pooled(F.max_pool2d, 2),
    "adaptive": pooled(F.adaptive_max_pool1d, 7),
    "hardsigmoid": nn.Hardsigmoid(),
    "hardswish": nn.Hardswish(),
}


def stretch(act, dtype=F64, size=0.05):
    model = Layer(act).to(dtype)
    make = seeded(1)
    x = torch.randn(50, 6, generator=make, dtype=F64).to(dtype)
    weights = torch.randn(act_width(act), generator=make, dtype=F64).to(dtype)
    objective = objective_of(model, summed, (x, weights))
    middle = objective.layout.current(F64)
    direction = torch.randn(len(middle), generator=make, dtype=F64)
    return objective, middle, middle - size * direction


def act_width(act):
    return act(torch.zeros(1, 40, dtype=F64)).shape[-1]


def mean_gradient(objective, middle, entered, n=400):
    """The average of ∇f over the stretch, by the midpoint rule on n points."""
    total = torch.zeros_like(middle)
    for k in range(n):
        share = (k + 0.5) / n * 2.0 - 1.0
        total += objective.loss_and_grad(middle + share * (middle - entered), "setup")[1]
    return total / n


@pytest.mark.parametrize("name", EXACT)
def test_the_average_of_slopes_is_the_average_of_gradients(name):
    objective, middle, entered = stretch(EXACT[name])
    plain_loss, plain = objective.loss_and_grad(middle, "setup")
    loss, averaged = objective.loss_and_grad(middle, "flow", entered=entered)
    want = mean_gradient(objective, middle, entered)
    assert loss == plain_loss
    assert objective.ledger.losses["flow"] == objective.ledger.grads["flow"] == 1
    missed = float((plain - want).norm())
    assert missed > 0.01 * float(want.norm())
    assert float((averaged - want).norm()) < 0.05 * missed


@pytest.mark.parametrize("name", SAMPLED)
def test_what_is_sampled_comes_much_nearer_to_the_average_than_the_middle(name):
    objective, middle, entered = stretch(SAMPLED[name])
    _, plain = objective.loss_and_grad(middle, "setup")
    _, averaged = objective.loss_and_grad(middle, "flow", entered=entered)
    want = mean_gradient(objective, middle, entered)
    assert float((averaged - want).norm()) < 0.35 * float((plain - want).norm())


def test_in_float32_the_average_is_as_good():
    objective, middle, entered = stretch(torch.relu, torch.float32, size=1e-3)
    exact, *_ = stretch(torch.relu, F64, size=1e-3)
    _, got = objective.loss_and_grad(middle, "flow", entered=entered)
    _, want = exact.loss_and_grad(middle, "flow", entered=entered)
    assert float((got - want).norm()) < 1e-3 * float(want.norm())


def test_without_a_stretch_nothing_changes():
    objective, middle, _ = stretch(torch.relu)
    _, plain = objective.loss_and_grad(middle, "setup")
    _, still = objective.loss_and_grad(middle, "flow", entered=middle)
    assert torch.equal(plain, still)


def deep(*between):
    make = seeded(2)
    layers = [nn.Linear(6, 20, dtype=F64), *between, nn.Linear(20, 3, dtype=F64)]
    model = nn.Sequential(*layers)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(0.5 * torch.randn(p.shape, generator=make, dtype=F64))
    data = [
        (torch.randn(n, 6, generator=make, dtype=F64), torch.randn(n, 3, generator=make, dtype=F64))
        for n in (30, 12)
    ]
    return model, data


class Checkpointed(nn.Module):
    def __init__(self, inner, reentrant):
        super().__init__()
        self.inner, self.reentrant = inner, reentrant

    def forward(self, x):
        head, *rest = self.inner
        return checkpoint(nn.Sequential(*rest), head(x), use_reentrant=self.reentrant)


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize("reentrant", [True, False])
def test_a_checkpointed_model_is_evaluated_plainly(reentrant):
    model, data = deep(nn.ReLU())
    objective = objective_of(Checkpointed(model, reentrant), squared, data)
    theta = objective.layout.current(F64)
    _, plain = objective.loss_and_grad(theta, "setup")
    _, got = objective.loss_and_grad(theta, "flow", entered=0.99 * theta)
    assert torch.equal(got, plain)
    assert not objective.kinked


def test_a_model_that_changes_its_course_is_evaluated_plainly():
    class Fickle(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            again = float(self.inner[0].weight.detach().norm()) > self.limit
            return self.inner(x.relu() if again else x)

    model = Fickle(deep(nn.ReLU())[0])
    _, data = deep()
    model.limit = 0.995 * float(model.inner[0].weight.detach().norm())
    objective = objective_of(model, squared, data)
    theta = objective.layout.current(F64)
    _, plain = objective.loss_and_grad(theta, "setup")
    _, got = objective.loss_and_grad(theta, "flow", entered=0.99 * theta)
    assert torch.equal(got, plain)
    assert not objective.kinked


class Called(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, z):
        return self.function(z)


@pytest.mark.parametrize(
    "act",
    [
        nn.PReLU(dtype=F64),
        nn.Threshold(0.0, 0.0),
        Called(lambda z: torch.maximum(z, 0.1 * z)),
        Called(lambda z: torch.min(z, 0.1 * z)),
    ],
)
def test_a_model_with_such_kinks_is_known_to_have_them_from_the_start(act):
    model, data = deep(act)
    assert objective_of(model, squared, data).kinked


@pytest.mark.parametrize("reduced", [lambda z: z.max(-1)[0], lambda z: z.max(), lambda z: z.min(0)])
def test_the_largest_along_a_dimension_is_left_alone(reduced):
    """As in a softmax that takes off its largest entry, and is smooth."""
    z = torch.randn(4, 3, dtype=F64, requires_grad=True)
    with Noting() as noting:
        reduced(z)
    assert noting.calls == 0


def test_a_smooth_model_costs_no_forward_pass():
    model, data = deep(nn.Tanh())
    objective = objective_of(model, squared, data)
    assert not objective.kinked
    theta = objective.layout.current(F64)
    objective.loss_and_grad(theta, "flow", entered=0.99 * theta)
    assert objective.ledger.losses["flow"] == 0


def test_chunks_are_averaged_one_by_one():
    model, data = deep(nn.ReLU(), nn.Linear(20, 20, dtype=F64), nn.Hardtanh())
    parts = objective_of(model, squared, data)
    whole = objective_of(model, squared, tuple(torch.cat(t) for t in zip(*data, strict=True)))
    theta = parts.layout.current(F64)
    _, got = parts.loss_and_grad(theta, "flow", entered=0.98 * theta)
    _, want = whole.loss_and_grad(theta, "flow", entered=0.98 * theta)
    _, plain = parts.loss_and_grad(theta, "setup")
    torch.testing.assert_close(got, want)
    assert not torch.allclose(got, plain)


def test_evaluating_leaves_model_and_random_state_alone():
    model, data = deep(nn.ReLU(inplace=True), nn.Dropout(0.5), nn.BatchNorm1d(20, dtype=F64))
    objective = objective_of(model, squared, data)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    state = torch.get_rng_state()
    theta = objective.layout.current(F64)
    first = objective.loss_and_grad(theta, "flow", entered=0.98 * theta)
    second = objective.loss_and_grad(theta, "flow", entered=0.98 * theta)
    assert first[0] == second[0]
    assert torch.equal(first[1], second[1])
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


class Eye:
    """Sees the kinks, and sets one entry's share of the stretch beyond one of them."""

    def __init__(self, kink=None, entry=0, share=0.0):
        self.seen, self.pulls, self.shares = [], {}, []
        self.kink, self.entry, self.share = kink, entry, share

    @property
    def met(self):
        return len(self.seen)

    def meet(self, x, half, share):
        self.seen.append((x.clone(), half.clone()))
        self.shares.append(share.clone())
        if self.met - 1 == self.kink:
            share.view(-1)[self.entry] = self.share
        return share

    def pull(self, kink, grad):
        self.pulls[kink] = grad.clone()


def test_a_glance_sees_the_kinks_of_every_chunk_in_order():
    model, data = deep(nn.ReLU(inplace=True), nn.Linear(20, 20, dtype=F64), nn.Hardtanh(-0.5, 1.5))
    objective = objective_of(model, squared, data)
    theta = objective.layout.current(F64)
    eye = Eye()
    _, got = objective.loss_and_grad(theta, "flow", entered=0.98 * theta, glance=eye)
    _, want = objective.loss_and_grad(theta, "flow", entered=0.98 * theta)
    assert torch.equal(got, want)
    assert sorted(eye.pulls) == list(range(6))  # two chunks of one ReLU and a Hardtanh with two
    for chunk, (x, _) in enumerate(data):
        (z, half), (low, _), (high, _) = eye.seen[3 * chunk : 3 * chunk + 3]
        now, before = (
            torch.nn.functional.linear(x, s * model[0].weight, s * model[0].bias) for s in (1, 0.98)
        )
        torch.testing.assert_close(z, now)
        torch.testing.assert_close(half, now - before)
        torch.testing.assert_close(low - high, torch.full_like(low, 2.0))
        torch.testing.assert_close(eye.pulls[3 * chunk + 1], -eye.pulls[3 * chunk + 2])


@pytest.mark.parametrize(("act", "jump"), [(torch.relu, 1.0), (nn.LeakyReLU(0.2), 0.8)])
@pytest.mark.parametrize("share", [0.0, 1.0, 2.5])
def test_a_glance_decides_which_side_of_a_kink_counts(act, jump, share):
    objective, middle, entered = stretch(act)
    sample, unit = 7, 23
    eye = Eye(kink=0, entry=sample * 40 + unit, share=share)
    _, got = objective.loss_and_grad(middle, "flow", entered=entered, glance=eye)
    _, plain = objective.loss_and_grad(middle, "flow", entered=entered)
    ((x, weights), _), *_ = objective.chunks()
    change = share - float(eye.shares[0][sample, unit])
    want = torch.zeros_like(plain)
    want[unit * 6 : unit * 6 + 6] = jump * change * weights[unit] * x[sample] / len(x)
    want[40 * 6 + unit] = jump * change * weights[unit] / len(x)
    torch.testing.assert_close(got - plain, want)
    torch.testing.assert_close(eye.pulls[0], (jump * weights / len(x)).expand_as(eye.pulls[0]))
