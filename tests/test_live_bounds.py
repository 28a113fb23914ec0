"""Bounds beside a run: what they say of the network that is trained, and what that costs."""

import pytest
import torch
from cases import F64, cross_entropy, seeded, squared
from torch import nn

from torch_gfshadow import attach, hookimpl
from torch_gfshadow.bounds import Assumption, BoundValue, Lemma2
from torch_gfshadow.network import NotCovered
from torch_gfshadow.testing import assert_inert, isolated_plugins


def layer(inner, outer, seed):
    made = nn.utils.skip_init(nn.Linear, inner, outer, bias=False, dtype=F64)
    with torch.no_grad():
        made.weight.copy_(torch.randn(outer, inner, generator=seeded(seed), dtype=F64) / inner**0.5)
    return made


def stack(activation):
    return nn.Sequential(layer(4, 6, 0), activation(), layer(6, 5, 1), activation(), layer(5, 2, 2))


def convolutional():
    conv = nn.Conv2d(1, 2, 3, stride=2, bias=False, dtype=F64)
    with torch.no_grad():
        conv.weight.copy_(torch.randn(2, 1, 3, 3, generator=seeded(0), dtype=F64) / 3)
    return nn.Sequential(conv, nn.ReLU(), nn.Flatten(), layer(18, 2, 1))


def train(model, steps=40, lr=0.02, shape=(24, 4), fn=squared, every=1, probe_every=5, **options):
    x = torch.randn(*shape, generator=seeded(5), dtype=F64)
    y = torch.randn(shape[0], 2, generator=seeded(6), dtype=F64)
    batch = (x, y.argmax(1)) if fn is cross_entropy else (x, y)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    given = {"data": batch, "every": every, "probe_every": probe_every, "on_error": "raise"}
    with isolated_plugins(), attach(optimizer, model, fn, **{**given, **options}) as shadow:
        for _ in range(steps):
            optimizer.zero_grad()
            fn(model, batch).backward()
            optimizer.step()
    return shadow


def cells(shadow, name):
    return [(r, r.bounds[name]) for r in shadow.records if name in r.bounds]


def test_a_deep_linear_network_has_an_estimate_of_the_discrepancy_and_a_certified_floor():
    shadow = train(stack(nn.Identity), fn=cross_entropy)
    assert [r.step for r in shadow.records if r.bounds] == list(range(0, 41, 5))
    assert {n for r in shadow.records for n in r.bounds} == {"theorem2", "lemma2"}
    for record, cell in cells(shadow, "theorem2")[1:]:
        assert (cell["of"], cell["kind"], cell["status"]) == ("discrepancy", "estimated", "ok")
        assert cell["slack"] == pytest.approx(cell["value"] - record.discrepancy)
        assert 1.0 < cell["tightness"] < 100.0
        assert "Ritz values at the iterates, the larger of two up to 5 steps apart" in cell["why"]
        assert "C²" not in cell["why"]  # a linear network has no kinks
    for record, cell in cells(shadow, "lemma2"):
        assert (cell["of"], cell["kind"], cell["why"]) == ("lambda_min", "certified", "")
        assert cell["value"] <= record.lambda_min
        assert cell["tightness"] == pytest.approx(cell["value"] / record.lambda_min)


def test_on_a_relu_network_the_theorem_ends_at_the_first_activation_change():
    shadow = train(stack(nn.ReLU), steps=120, lr=0.05)
    kinds = [cell["kind"] for _, cell in cells(shadow, "theorem2")]
    ends = kinds.index("failed")
    assert ends > 0
    assert set(kinds[:ends]) == {"estimated"}
    assert set(kinds[ends:]) == {"failed"}
    before, after = cells(shadow, "theorem2")[ends - 1], cells(shadow, "theorem2")[ends]
    assert "no activation had changed" in before[1]["why"]
    assert f"activations had changed by t = {after[0].time:.4g}" in after[1]["why"]
    assert all(cell["value"] is not None for _, cell in cells(shadow, "theorem2"))
    for record, cell in cells(shadow, "nonlinear"):
        assert cell["kind"] == "certified"
        assert cell["value"] <= record.lambda_min


def test_a_convolutional_network_gets_the_weight_sharing_version():
    shadow = train(convolutional(), shape=(8, 1, 8, 8), steps=10)
    assert {n for r in shadow.records for n in r.bounds} == {"theorem2", "convolution"}
    for record, cell in cells(shadow, "convolution"):
        assert cell["kind"] == "certified"
        assert cell["value"] <= record.lambda_min


def test_a_network_that_is_not_covered_says_why_once_per_probe_and_costs_one_look():
    shadow = train(stack(nn.Tanh))
    for _, cell in cells(shadow, "nonlinear"):
        assert (cell["kind"], cell["certified"], cell["slack"]) == ("failed", False, None)
        assert cell["why"].startswith("Not covered: tanh after layer '0' is no bias-free layer")
    assert "not checkable, Not covered: tanh" in cells(shadow, "theorem2")[-1][1]["why"]
    assert shadow.summary()["by_purpose"]["grads"]["bounds"] == 1


def test_an_objective_that_needs_all_samples_at_once_is_recognised_all_the_same():
    x = torch.randn(24, 4, generator=seeded(5), dtype=F64)
    y = torch.randn(24, 2, generator=seeded(6), dtype=F64)
    model = stack(nn.ReLU)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    with isolated_plugins():
        shadow = attach(
            optimizer,
            model,
            lambda model, x: nn.functional.mse_loss(model(x), y),
            data=x,
            on_error="raise",
        )
    assert shadow.records[0].bounds["nonlinear"]["kind"] == "certified"
    shadow.detach()


def test_an_objective_that_does_not_run_in_float64_says_so():
    y = torch.randn(24, 2, generator=seeded(6))
    model = stack(nn.ReLU).float()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    x = torch.randn(24, 4, generator=seeded(5))
    mix = torch.eye(2)
    with isolated_plugins():
        shadow = attach(
            optimizer,
            model,
            lambda model, x: nn.functional.mse_loss(model(x) @ mix, y),
            data=x,
            on_error="raise",
        )
    why = shadow.records[0].bounds["nonlinear"]["why"]
    assert why.startswith("Not covered: the objective does not run in float64 (RuntimeError: ")
    shadow.detach()


def test_a_compiled_model_is_looked_through():
    model = stack(nn.ReLU)
    shadow = train(torch.compile(model, backend="eager"), steps=2)
    assert cells(shadow, "nonlinear")[0][1]["kind"] == "certified"


def test_a_look_costs_one_gradient_per_probe_for_all_bounds_together():
    shadow = train(stack(nn.ReLU), steps=20)
    assert shadow.summary()["by_purpose"]["grads"]["bounds"] == 1 + 5


@pytest.mark.parametrize(
    ("bound", "make", "reason"),
    [
        ("lemma2", lambda: stack(nn.ReLU), "The network is not linear"),
        ("convolution", lambda: stack(nn.ReLU), "No weights are shared"),
        ("convolution", lambda: stack(nn.Tanh), "Not covered: tanh"),
        ("lemma2", lambda: nn.Sequential(layer(4, 2, 0)), "One layer: f is convex"),
    ],
)
def test_a_bound_that_was_asked_for_says_why_it_has_no_value(bound, make, reason):
    shadow = train(make(), steps=5, bounds=[bound])
    assert all(cell["kind"] == "failed" for _, cell in cells(shadow, bound))
    assert cells(shadow, bound)[0][1]["why"].startswith(reason)


def test_shared_weights_are_left_to_the_bound_that_counts_them():
    shadow = train(convolutional(), shape=(8, 1, 8, 8), steps=1, bounds=["nonlinear"])
    assert cells(shadow, "nonlinear")[0][1]["why"].startswith("Weights are shared")


def test_the_printed_form_of_lemma_2_is_looser_than_the_tight_one():
    looser = train(stack(nn.Identity), steps=5, bounds=[Lemma2("eq13")])
    tight = train(stack(nn.Identity), steps=5, bounds=["lemma2"])
    for (_, a), (_, b) in zip(cells(looser, "lemma2"), cells(tight, "lemma2"), strict=True):
        assert a["value"] < b["value"] < 0
    with pytest.raises(ValueError, match="form must be one of eq13, spectral, C_norms, C_blocks"):
        Lemma2("eq14")


def test_without_an_objective_there_are_no_cells():
    model = stack(nn.ReLU)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with isolated_plugins(), attach(optimizer, on_error="raise") as shadow:
        squared(model, (torch.ones(2, 4, dtype=F64), torch.ones(2, 2, dtype=F64))).backward()
        optimizer.step()
    assert all(not r.bounds for r in shadow.records)


def test_at_the_default_schedule_the_theorem_still_has_values():
    shadow = train(stack(nn.Identity), steps=40, every=4, probe_every=None)
    found = cells(shadow, "theorem2")
    assert [r.step for r, _ in found] == [0, 4, 8, 16, 32]
    assert all(cell["slack"] >= 0 for _, cell in found)


def test_a_bound_of_a_plugin_sees_the_network_and_a_contradiction_is_told():
    looked, told = [], []

    class Mine:
        name = "mine"
        requires = frozenset()

        def update(self, record, view=None):
            looked.append(view)
            if view is None:
                return None
            assert not isinstance(view.network, NotCovered)
            assert view.record is record
            assert view.network is view.network
            return BoundValue(-50.0, (Assumption("wrong", "given", True),))

    class Plugin:
        @hookimpl
        def gfshadow_bound_exceeded(self, record, bound):
            told.append((record.step, bound))

    train(stack(nn.ReLU), steps=6, probe_every=3, bounds=[Mine()], plugins=[Plugin()])
    assert [view is not None for view in looked] == [1, 0, 0, 1, 0, 0, 1]
    assert told == [(3, "mine"), (6, "mine")]


def test_looking_at_the_network_disturbs_nothing():
    assert_inert(probe_every=2)
    assert_inert(probe_every=2, bounds=["nonlinear", "lemma2", "convolution", "theorem2"])


def test_a_relu_run_is_the_same_bit_for_bit_with_and_without_bounds():
    def end(bounds):
        model = stack(nn.ReLU)
        train(model, steps=10, bounds=bounds)
        return [p.detach().clone() for p in model.parameters()]

    assert all(torch.equal(a, b) for a, b in zip(end(["default"]), end([]), strict=True))


# --- the tube: certified beside the run

LOSSES = {
    "square": squared,
    "mse": lambda model, b: nn.functional.mse_loss(model(b[0]), b[1]),
    "cross-entropy": cross_entropy,
    "logistic": lambda model, b: nn.functional.softplus(
        -model(b[0])[:, :1] * b[1][:, :1].sign()
    ).mean(),
}


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("seed", range(3))
def test_the_tube_certifies_the_discrepancy_of_a_deep_linear_network(loss, seed):
    outputs = 1 if loss == "logistic" else 2
    model = nn.Sequential(layer(4, 6, seed), layer(6, 5, seed + 1), layer(5, outputs, seed + 2))
    options = {"bounds": ["tube"], "probe_every": 2, "resolution": 0.01, "solver": "dopri5"}
    shadow = train(model, fn=LOSSES[loss], steps=40, lr=0.01, **options)
    found = cells(shadow, "tube")
    assert len(found) == 21
    for record, cell in found:
        assert (cell["kind"], cell["status"]) == ("certified", "ok"), cell
        assert cell["value"] >= record.discrepancy - record.solver_error
    assert found[-1][1]["tightness"] < 30


def test_a_tube_that_breaks_down_says_until_when_it_held():
    shadow = train(stack(nn.Identity), steps=60, lr=0.2, bounds=["tube"], probe_every=20)
    last = cells(shadow, "tube")[-1][1]
    assert (last["kind"], last["certified"]) == ("failed", False)
    assert "certified until" in last["why"].lower()


def weighted(model, b):
    return ((model(b[0]) - b[1]) ** 2 * torch.tensor([1.0, 2.0], dtype=F64)).mean()


def penalised(model, b):
    return squared(model, b) + 0.1 * sum(p.square().sum() for p in model.parameters())


@pytest.mark.parametrize(
    ("make", "fn", "reason"),
    [
        (lambda: stack(nn.ReLU), squared, "linear layers without activations"),
        (lambda: stack(nn.Tanh), squared, "Not covered: tanh"),
        (lambda: stack(nn.Identity), weighted, "φ cannot be told: the outputs are weighted"),
        (lambda: stack(nn.Identity), penalised, "no constants for the loss"),
        (
            lambda: stack(nn.Identity),
            lambda m, b: nn.functional.huber_loss(m(b[0]), b[1]),
            "no constants for the loss",
        ),
        (
            lambda: stack(nn.Identity),
            lambda m, b: nn.functional.cross_entropy(m(b[0]), b[1].softmax(1)),
            "soft labels",
        ),
    ],
)
def test_the_tube_says_what_it_is_not_for(make, fn, reason):
    shadow = train(make(), fn=fn, steps=5, bounds=["tube"])
    for _, cell in cells(shadow, "tube"):
        assert cell["kind"] == "failed"
        assert reason in cell["why"]


def test_with_weight_decay_the_tube_refuses_to_be_about_another_flow():
    model = stack(nn.Identity)
    x, y = torch.ones(3, 4, dtype=F64), torch.ones(3, 2, dtype=F64)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, weight_decay=0.1)
    with isolated_plugins():
        shadow = attach(optimizer, model, squared, data=(x, y), bounds=["tube"], on_error="raise")
    assert "no weight decay" in shadow.records[0].bounds["tube"]["why"]
    shadow.detach()
