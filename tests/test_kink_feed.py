"""The shadow that lives on the run's own gradients across kinks: closed forms, references, cost."""

import itertools
import math
import statistics

import pytest
import torch
from cases import F64, Point, seeded
from torch import nn

import torch_gfshadow as gfs

DIM, KINKS = 60, 60


def ramps(dtype=F64):
    """λ, w and c of Σ_j [½λ_j x_j² + Σ_i w_ij·max(x_j − c_ij, 0)]: one flow per coordinate."""
    make = seeded(3)
    stiffness = 0.5 + torch.rand(DIM, generator=make, dtype=F64)
    places = torch.sort(0.1 + 1.9 * torch.rand(DIM, KINKS, generator=make, dtype=F64)).values
    jumps = 0.03 * torch.randn(DIM, KINKS, generator=make, dtype=F64) + 0.01
    return stiffness.to(dtype), jumps.to(dtype), places.to(dtype)


def bent(model, data):
    stiffness, jumps, places = data
    x = model.theta
    return 0.5 * (stiffness * x**2).sum() + (jumps * torch.relu(x[:, None] - places)).sum()


START = torch.full((DIM,), 2.0, dtype=F64)


def exact(time, decay=0.0):
    """The flow from START in closed form: an exponential between one kink and the next."""
    out = []
    for stiffness, jumps, places in zip(*ramps(), strict=True):
        rate, x, left = float(stiffness) + decay, 2.0, time
        force = float(jumps.sum())
        for jump, place in zip(reversed(jumps.tolist()), reversed(places.tolist()), strict=True):
            slope = rate * x + force
            assert slope > 0.0  # the closed form is for a flow that comes down all the way
            took = math.log(slope / (rate * place + force)) / rate
            if took >= left:
                break
            x, left, force = place, left - took, force - jump
        shift = force / rate
        out.append((x + shift) * math.exp(-rate * left) - shift)
    return torch.tensor(out, dtype=F64)


def followed(
    steps, lr=0.004, dtype=F64, decay=0.0, schedule=None, every=5, after=None, clip=None, **options
):
    """Train with the shadow beside it; return it, and errors and bars where there was a record."""
    model = Point(START).to(dtype)
    data = ramps(dtype)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, weight_decay=decay)
    plan = schedule(optimizer) if schedule else None
    errors, bars = [], []
    options = {"probes": (), "resolution": 0.1, "on_error": "raise"} | options
    with gfs.attach(optimizer, model, bent, data=data, every=every, **options) as shadow:
        for k in range(steps):
            optimizer.zero_grad()
            bent(model, data).backward()
            if after is not None:
                after(k, optimizer, model, shadow)
            optimizer.step()
            if plan is not None:
                plan.step()
            last = shadow.records[-1]
            if last.step == k + 1 and last.discrepancy is not None:
                clock = shadow._tracker.clock.time
                state = shadow._tracker.shadow.state(clock)
                errors.append(float((state - exact(clock, decay)).norm()))
                bars.append(last.solver_error)
    return shadow, errors, bars


def share_held(errors, bars):
    return sum(e <= b for e, b in zip(errors, bars, strict=True)) / len(errors)


def cosine(optimizer):
    return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 300)


def fed(shadow):
    return [r for r in shadow.records if r.solver == "auto:slabs"]


@pytest.mark.parametrize(
    ("decay", "schedule", "dtype"),
    [(0.0, None, F64), (0.2, None, F64), (0.0, cosine, F64), (0.0, None, torch.float32)],
    ids=["plain", "decay", "cosine", "float32"],
)
def test_the_bar_covers_the_closed_form(decay, schedule, dtype):
    options = {"decay": decay, "schedule": schedule, "dtype": dtype}
    shadow, errors, bars = followed(200, **options)
    assert len(fed(shadow)) > 0.9 * len(shadow.records)
    assert share_held(errors, bars) >= 0.95
    last = shadow.records[-1]
    assert errors[-1] < 0.3 * last.discrepancy


def test_its_bar_is_half_that_of_a_solver_of_its_own_for_no_more_evaluations():
    costs, errs, bars = {}, {}, {}
    for solver in ("auto", "adams2"):
        shadow, errors, claimed = followed(400, solver=solver, audit=False, every=20)
        costs[solver] = shadow.summary()["by_purpose"]["grads"]["flow"]
        errs[solver], bars[solver] = statistics.median(errors), statistics.median(claimed)
        assert share_held(errors, claimed) >= 0.95
    assert costs["auto"] <= costs["adams2"]
    assert errs["auto"] < errs["adams2"]
    assert bars["auto"] <= 0.5 * bars["adams2"]


def squared(model, batch):
    x, y = batch
    return 0.5 * ((model(x) - y) ** 2).mean()


def problem(seed):
    make = seeded(100 + seed)
    x = torch.randn(200, 8, generator=make, dtype=F64)
    y = torch.tanh(x @ torch.randn(8, 3, generator=make, dtype=F64))
    layers = [nn.Linear(m, n, dtype=F64) for m, n in itertools.pairwise((8, 16, 16, 3))]
    for layer in layers:
        layer.weight.data.normal_(0.0, math.sqrt(2.0 / layer.in_features), generator=make)
        layer.bias.data.zero_()
    first, second, third = layers
    return nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), third), (x, y)


def reference(seed, lr, steps, every, refinement=8):
    """Heun's method on plain gradients, which knows nothing of averaged slopes."""
    model, data = problem(seed)
    params = list(model.parameters())
    h, out = lr / refinement, []
    for n in range(1, steps * refinement + 1):
        before = [p.detach().clone() for p in params]
        slopes = []
        for _ in range(2):
            grads = torch.autograd.grad(squared(model, data), params)
            slopes.append(grads)
            with torch.no_grad():
                for p, g in zip(params, grads, strict=True):
                    p.sub_(g, alpha=h)
        with torch.no_grad():
            for p, b, g, a in zip(params, before, *slopes, strict=True):
                p.copy_(b - 0.5 * h * (g + a))
        if n % (refinement * every) == 0:
            out.append(torch.cat([p.detach().flatten() for p in params]))
    return out


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_bar_covers_a_reference_on_a_relu_network(seed):
    lr, steps, every = 0.02, 150, 10
    flow = reference(seed, lr, steps, every)
    for resolution, solver, most in ((None, "auto:adams2", 2.0), (0.1, "auto:slabs", 1.75)):
        model, data = problem(seed)
        optimizer = torch.optim.SGD(model.parameters(), lr=lr)
        options = {"every": every, "probes": (), "resolution": resolution, "on_error": "raise"}
        errors, bars = [], []
        with gfs.attach(optimizer, model, squared, data=data, **options) as shadow:
            for k in range(1, steps + 1):
                optimizer.zero_grad()
                squared(model, data).backward()
                optimizer.step()
                if k % every == 0:
                    theta = torch.cat([part.flatten() for part in shadow.theta().values()])
                    errors.append(float((theta - flow[k // every - 1]).norm()))
                    bars.append(shadow.records[-1].solver_error)
            cost = shadow.summary()["by_purpose"]["grads"]["flow"] / steps
        assert shadow.records[-1].solver == solver
        assert share_held(errors, bars) >= 0.9
        assert cost <= most


def test_unreadable_gradients_send_it_on_alone_and_it_comes_back():
    def hide(k, optimizer, model, shadow):
        if k == 60:
            model.theta.grad = model.theta.grad.to_sparse()

    shadow, errors, bars = followed(200, after=hide)
    solvers = {r.step: r.solver for r in shadow.records}
    assert solvers[60] == "auto:slabs"
    assert solvers[65] == "auto:adams2"
    assert solvers[200] == "auto:slabs"
    assert share_held(errors, bars) >= 0.95


def test_gradients_that_are_clipped_cost_no_accuracy():
    """The path is only where the solution is expected: what the run does does not move it."""

    def clip(k, optimizer, model, shadow):
        if 40 <= k < 60:
            model.theta.grad.mul_(0.5)

    _, errors, bars = followed(120, after=clip, audit=False)
    assert share_held(errors, bars) >= 0.95


def test_a_step_that_raises_is_not_counted():
    class Broken(torch.optim.SGD):
        fails = False

        def step(self, closure=None):
            if self.fails:
                raise RuntimeError("out of memory")
            return super().step(closure)

    states, data = [], ramps()
    for fails in (False, True):
        model = Point(START)
        optimizer = Broken(model.parameters(), lr=0.004)
        options = {"data": data, "every": 10, "probes": (), "resolution": 0.1, "on_error": "raise"}
        with gfs.attach(optimizer, model, bent, **options) as shadow:
            for k in range(100):
                optimizer.zero_grad()
                bent(model, data).backward()
                if fails and k in (57, 58):
                    Broken.fails = True
                    with pytest.raises(RuntimeError, match="out of memory"):
                        optimizer.step()
                    Broken.fails = False
                optimizer.step()
            states.append(shadow.theta()["theta"].clone())
            assert shadow.records[-1].solver == "auto:slabs"
    torch.testing.assert_close(states[0], states[1], rtol=0, atol=1e-12)


@pytest.mark.parametrize("stop", [0, 1, 2, 13, 47, 64, 101])
def test_a_resumed_run_gives_the_same_records(stop):
    whole, _, _ = followed(130)
    kept = {}

    def save(k, optimizer, model, shadow):
        if k == stop:
            kept["shadow"] = shadow.state_dict()
            kept["model"] = {n: v.clone() for n, v in model.state_dict().items()}

    followed(stop + 1, after=save)
    model, data = Point(START), ramps()
    model.load_state_dict(kept["model"])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.004)
    options = {"data": data, "every": 5, "probes": (), "resolution": 0.1, "on_error": "raise"}
    with gfs.attach(optimizer, model, bent, **options) as shadow:
        shadow.load_state_dict(kept["shadow"])
        for _ in range(stop, 130):
            optimizer.zero_grad()
            bent(model, data).backward()
            optimizer.step()
        again = {r.step: r for r in shadow.records if r.step > stop}
    expected = {r.step: r for r in whole.records if r.step > stop}
    assert again.keys() == expected.keys()
    for step, record in expected.items():
        for name in ("discrepancy", "solver_error", "shadow_loss", "solver", "n_grad_evals"):
            assert getattr(again[step], name) == getattr(record, name), (step, name)


def test_a_run_too_stiff_for_slabs_goes_on_alone():
    """ηλ_max = 0.9: the companion's slabs, three steps long at least, would not be stable."""
    model, data = problem(0)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    options = {"data": data, "every": 5, "probe_every": 20, "resolution": 0.1}
    options["on_error"] = "raise"
    with gfs.attach(optimizer, model, squared, **options) as shadow:
        for _ in range(100):
            optimizer.zero_grad()
            squared(model, data).backward()
            optimizer.step()
    stiff = [r for r in shadow.records if r.step > 60]
    assert max(r.lambda_max for r in shadow.records if r.lambda_max is not None) > 0.34
    assert not any(r.solver == "auto:slabs" for r in stiff)
