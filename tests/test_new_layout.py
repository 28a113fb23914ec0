"""Layers frozen and unfrozen, heads added, models cast: the shadow goes on, in a new layout."""

import dataclasses
import gc
import io
import weakref

import numpy as np
import pytest
import torch
from loops import assert_identical, data, fingerprint, loss_of, mlp, seed
from scipy.integrate import solve_ivp
from torch import nn

import torch_gfshadow as gfs

MODES = ("reference", "batch", "local", "passive")


class Net(nn.Module):
    """A backbone of two layers and a head."""

    def __init__(self, dtype=torch.float64):
        super().__init__()
        self.first = nn.Linear(4, 6, dtype=dtype)
        self.second = nn.Linear(6, 6, dtype=dtype)
        self.head = nn.Linear(6, 2, dtype=dtype)

    def forward(self, x):
        return self.head(torch.tanh(self.second(torch.tanh(self.first(x)))))


def frozen(dtype=torch.float64):
    seed()
    model = Net(dtype)
    model.first.requires_grad_(False)
    return model


def trained(model):
    return [p for p in model.parameters() if p.requires_grad]


def sgd(model, lr=0.05, **options):
    return torch.optim.SGD(trained(model), lr=lr, **options)


def attach(mode, optimizer, model, **options):
    options = {"probes": (), "on_error": "raise"} | options
    if mode == "passive":
        return gfs.attach(optimizer, mode=mode, **options)
    if mode == "reference":
        options["data"] = data(next(model.parameters()).dtype)
    return gfs.attach(optimizer, model, loss_of, mode=mode, **options)


def loop(optimizer, model, shadow, steps):
    batch = data(next(model.parameters()).dtype)
    for _ in range(steps):
        if shadow is not None:
            shadow.observe(batch)
        optimizer.zero_grad()
        loss_of(model, batch).backward()
        optimizer.step()


def unfreeze(model, optimizer):
    model.first.requires_grad_(True)
    optimizer.add_param_group({"params": model.first.parameters()})


def unfreeze_slowly(model, optimizer):
    model.first.requires_grad_(True)
    optimizer.add_param_group({"params": model.first.parameters(), "lr": 0.01})


def freeze(model, optimizer):
    model.second.requires_grad_(False)


def swap_all(model, optimizer):
    model.requires_grad_(False)
    unfreeze(model, optimizer)


def drop_a_group(model, optimizer):
    kept = {id(p) for p in model.head.parameters()}
    group = optimizer.param_groups[0]
    optimizer.param_groups = [group | {"params": [p for p in group["params"] if id(p) in kept]}]


def new_head(model, optimizer):
    seed(3)
    model.head = nn.Linear(6, 2, dtype=model.first.weight.dtype)
    optimizer.param_groups[0]["params"] = trained(model)


def to_float(model, optimizer):
    model.float()


def to_bfloat16(model, optimizer):
    model.bfloat16()


CHANGES = (unfreeze, unfreeze_slowly, freeze, swap_all, drop_a_group, new_head, to_float)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("change", [*CHANGES, to_bfloat16])
def test_training_is_not_touched_and_the_shadow_goes_on(mode, change):
    def run(on):
        model = frozen()
        optimizer = sgd(model)
        shadow = attach(mode, optimizer, model) if on else None
        loop(optimizer, model, shadow, 4)
        change(model, optimizer)
        loop(optimizer, model, shadow, 3)
        return fingerprint(model, optimizer), shadow

    (plain, _), (beside, shadow) = run(False), run(True)
    assert_identical(plain, beside)
    usual = "passive" if mode == "passive" else "ok"
    assert [r.status.value for r in shadow.records[:7]] == [*[usual] * 5, "new_layout", usual]
    assert shadow.records[5].status_detail.startswith("before step 5: ")
    assert [r.step for r in shadow.records] == list(range(8))
    assert shadow.summary()["resyncs"] == (mode != "passive")
    if mode != "passive":
        assert shadow.records[5].discrepancy > 0.0
        assert {r.audit for r in shadow.records[5:]} == {"match"}


@pytest.mark.parametrize("mode", ["reference", "batch", "local"])
@pytest.mark.parametrize(
    "change", [unfreeze, unfreeze_slowly, freeze, swap_all, new_head, to_float]
)
@pytest.mark.parametrize("options", [{}, {"weight_decay": 0.1}, {"momentum": 0.8}], ids=str)
def test_it_goes_on_as_one_that_is_attached_there(mode, change, options):
    model = frozen()
    optimizer = sgd(model, **options)
    shadow = attach(mode, optimizer, model)
    loop(optimizer, model, shadow, 4)
    change(model, optimizer)
    fresh = attach(mode, optimizer, model)
    batch = data(next(model.parameters()).dtype)
    for _ in range(5):
        optimizer.zero_grad()
        fresh.observe(shadow.observe(batch))
        loss_of(model, batch).backward()
        optimizer.step()
    begun = shadow.records[4].time
    for ours, theirs in zip(shadow.records[5:], fresh.records[1:], strict=True):
        assert ours.flow == theirs.flow
        assert ours.audit == theirs.audit
        assert ours.time - begun == pytest.approx(theirs.time, rel=1e-9)
        for name in ("discrepancy", "solver_error", "shadow_loss", "grad_norm"):
            assert getattr(ours, name) == pytest.approx(getattr(theirs, name), rel=1e-3, abs=1e-12)


def flat(params):
    return torch.cat([p.detach().reshape(-1) for p in params]).double()


def exactly(model, params, rates, start, time):
    """The flow of the full loss with a rate per parameter, from ``start``, by DOP853."""
    batch = data(torch.float64)
    sizes = [p.numel() for p in params]
    pace = np.concatenate([np.full(n, r) for n, r in zip(sizes, rates, strict=True)])
    kept = [p.detach().clone() for p in params]

    def field(_, theta):
        with torch.no_grad():
            for p, part in zip(params, torch.from_numpy(theta.copy()).split(sizes), strict=True):
                p.copy_(part.view(p.shape))
        grads = torch.autograd.grad(loss_of(model, batch), params)
        return -pace * flat(grads).numpy()

    end = solve_ivp(field, (0.0, time), start.numpy(), method="DOP853", rtol=1e-11, atol=1e-12)
    with torch.no_grad():
        for p, value in zip(params, kept, strict=True):
            p.copy_(value)
    return torch.from_numpy(end.y[:, -1])


@pytest.mark.parametrize("mode", ["reference", "batch"])
def test_a_group_that_joins_with_its_own_rate_is_followed_at_that_rate(mode):
    model = frozen()
    optimizer = sgd(model, lr=0.1)
    shadow = attach(mode, optimizer, model, resolution=0.01)
    loop(optimizer, model, shadow, 5)
    unfreeze_slowly(model, optimizer)  # at 0.01: the flow of these is a tenth as fast
    start = flat(trained(model))
    loop(optimizer, model, shadow, 6)
    params = trained(model)
    rates = [0.1 if p.shape != (6, 4) and p is not model.first.bias else 0.01 for p in params]
    flow = exactly(model, params, [r / 0.1 for r in rates], start, 6 * 0.1)
    last = shadow.records[-1]
    truth = float((flat(params) - flow).norm())
    assert last.step_size == 0.1
    assert abs(last.discrepancy - truth) <= max(last.solver_error, 0.02 * truth)
    optimizer.param_groups[1]["lr"] = 0.2  # and now the fastest one is the clock
    loop(optimizer, model, shadow, 1)
    assert shadow.records[-1].step_size == 0.2


# -- what is kept, and what is let go -------------------------------------------------------------


def test_the_distance_goes_on_from_where_each_parameter_was_first_trained():
    model = frozen()
    optimizer = sgd(model)
    shadow = attach("reference", optimizer, model)
    start = {p: p.detach().clone() for p in model.parameters()}
    loop(optimizer, model, shadow, 3)
    unfreeze(model, optimizer)
    loop(optimizer, model, shadow, 3)
    moved = sum(float((p - v).detach().square().sum()) for p, v in start.items()) ** 0.5
    assert shadow.records[-1].distance_from_init == pytest.approx(moved, rel=1e-12)
    lengths = [r.extras["run"]["path_length"] for r in shadow.records]
    assert lengths == sorted(lengths)
    assert lengths[-1] >= moved


def test_two_gradients_of_different_layouts_are_not_compared():
    model = frozen()
    optimizer = sgd(model)
    shadow = attach("passive", optimizer, model)
    loop(optimizer, model, shadow, 3)
    unfreeze(model, optimizer)
    loop(optimizer, model, shadow, 2)
    defects = [r.local_defect is None for r in shadow.records]
    assert defects == [True, True, False, False, True, False]


@pytest.fixture(scope="module")
def young_heap():
    """Leave all that is older than the tests out of the collector's sight: a million objects."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.usefixtures("young_heap")
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("solver", ["auto", "low"])
def test_what_belonged_to_the_old_layout_is_freed(mode, solver):
    model = frozen()
    optimizer = sgd(model)
    chosen = gfs.solvers.RKC2(storage="low") if solver == "low" else solver
    options = {} if mode == "passive" else {"probes": ("lambda_max",), "probe_every": 1}
    shadow = attach(mode, optimizer, model, solver=chosen, **options)
    loop(optimizer, model, shadow, 3)
    dim = sum(p.numel() for p in trained(model))
    layer, follower = weakref.ref(model.second.weight), weakref.ref(shadow._tracker.follower)

    def vectors():
        gc.collect()
        return sum(type(o) is torch.Tensor and o.numel() == dim for o in gc.get_objects())

    assert vectors() > 0
    seed(5)
    model.second = nn.Linear(6, 6, bias=False, dtype=torch.float64)  # another d
    optimizer.param_groups[0]["params"] = trained(model)
    optimizer.state.clear()
    loop(optimizer, model, shadow, 2)
    assert vectors() == 0
    assert layer() is None
    assert follower() is None
    assert shadow.records[-2].status == "new_layout"


# -- saved and resumed ----------------------------------------------------------------------------


def records(shadow):
    return [dataclasses.replace(r, seconds=0.0).to_dict() for r in shadow.records]


OPTIMIZERS = {
    "sgd": lambda params: torch.optim.SGD(params, lr=0.05, weight_decay=1e-2),
    "momentum": lambda params: torch.optim.SGD(params, lr=0.02, momentum=0.8),
    "adam": lambda params: torch.optim.Adam(params, lr=0.01),
}


def thaw(model, optimizer):
    model.first.requires_grad_(True)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("change", [thaw, freeze])
@pytest.mark.parametrize("kind", list(OPTIMIZERS))
def test_killed_and_resumed_around_a_change_the_records_are_the_same(mode, change, kind):
    make = OPTIMIZERS[kind]
    probes = () if mode == "passive" else ("lambda_min", "lambda_max")
    options = {"probes": probes}

    def go_on(model, optimizer, shadow, begin, *, changed=False, files=None):
        for k in range(begin, 9):
            if files is not None and k in (4, 6):
                files.append((saved(model, optimizer, shadow), k, k > 4))
            if k == 4 and not changed:
                change(model, optimizer)
                if files is not None:
                    files.append((saved(model, optimizer, shadow), k, True))
            loop(optimizer, model, shadow, 1)
        return records(shadow)

    def begun():
        model = frozen()
        optimizer = make(list(model.parameters()))
        return model, optimizer, attach(mode, optimizer, model, **options)

    def saved(model, optimizer, shadow):
        file = io.BytesIO()
        flags = [p.requires_grad for p in model.parameters()]
        torch.save((model.state_dict(), optimizer.state_dict(), shadow.state_dict(), flags), file)
        return file

    def reborn(file):
        seed(77)
        file.seek(0)
        *states, flags = torch.load(file, weights_only=True)
        model = Net()
        model.load_state_dict(states[0])
        for p, flag in zip(model.parameters(), flags, strict=True):
            p.requires_grad_(flag)
        optimizer = make(list(model.parameters()))
        optimizer.load_state_dict(states[1])
        shadow = attach(mode, optimizer, model, **options)
        shadow.load_state_dict(states[2])
        return model, optimizer, shadow

    whole = go_on(*begun(), 0)
    assert whole[5]["status"] == "new_layout"
    files = []
    assert go_on(*begun(), 0, files=files) == whole  # saving changes nothing
    assert [(k, changed) for _, k, changed in files] == [(4, False), (4, True), (6, True)]
    for file, k, changed in files:
        assert go_on(*reborn(file), k, changed=changed) == whole


def test_a_state_of_other_parameters_is_refused_and_says_what_to_do():
    model = frozen()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    shadow = attach("reference", optimizer, model)
    before = shadow.state_dict()
    loop(optimizer, model, shadow, 2)
    thaw(model, optimizer)
    after = shadow.state_dict()
    with pytest.raises(ValueError, match=r"the same model, got .*with the parameters it trained"):
        shadow.load_state_dict(before)
    model.first.requires_grad_(False)
    with pytest.raises(ValueError, match=r"got one with parameters\[0\] = 'first.weight', here"):
        shadow.load_state_dict(after)
    thaw(model, optimizer)
    shadow.load_state_dict(after)
    loop(optimizer, model, shadow, 1)
    assert shadow.records[-1].status == "new_layout"


# -- every kind of shadow -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flow", "make", "change", "goes_on"),
    [
        ("heavy_ball", lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.8), unfreeze, True),
        ("auto", lambda p: torch.optim.Adam(p, lr=0.01), unfreeze, True),
        ("auto", lambda p: torch.optim.AdamW(p, lr=0.01), freeze, True),
        ("auto", lambda p: torch.optim.RMSprop(p, lr=0.01), unfreeze, True),
        (gfs.flows.MomentumFlow(), lambda p: torch.optim.SGD(p, 0.02, 0.8), unfreeze_slowly, True),
        (gfs.flows.HeavyBall(), lambda p: torch.optim.SGD(p, 0.02, 0.8), freeze, True),
        ("heavy_ball", lambda p: torch.optim.SGD(p, 0.02, 0.8), unfreeze_slowly, False),
        ("auto", lambda p: torch.optim.Adam(p, lr=0.02), unfreeze_slowly, False),
    ],
)
@pytest.mark.parametrize("mode", ["reference", "batch"])
def test_flows_with_memory_start_from_the_buffers_there_are(mode, flow, make, change, goes_on):
    model = frozen()
    optimizer = make(trained(model))
    shadow = attach(mode, optimizer, model, flow=flow)
    loop(optimizer, model, shadow, 4)
    change(model, optimizer)
    loop(optimizer, model, shadow, 4)
    assert shadow.records[5].status == "new_layout"
    assert (shadow.status != "passive") == goes_on
    if not goes_on:  # these flows have one rate: it says so, and takes up again where there is one
        assert "param_groups must" in shadow.records[-1].status_detail
        model.first.requires_grad_(False)
        optimizer.param_groups[1]["lr"] = optimizer.param_groups[0]["lr"]
        loop(optimizer, model, shadow, 2)
        assert shadow.status == "ok"
        assert shadow.records[-1].discrepancy > 0.0


class Apart(nn.Module):
    """Two weights that know nothing of each other: Adam's steps and its flow are those of each."""

    def __init__(self):
        super().__init__()
        self.old = nn.Parameter(torch.tensor([2.0, -1.0], dtype=torch.float64))
        self.new = nn.Parameter(torch.tensor([1.0, 3.0, -2.0], dtype=torch.float64))

    def forward(self):
        return self.old.cosh().sum() + self.new.cosh().sum()


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW])
def test_adams_bias_correction_is_that_of_each_parameters_own_steps(kind):
    def run(late):
        model = Apart()
        model.new.requires_grad_(not late)
        model.old.requires_grad_(late)
        optimizer = kind(model.parameters(), lr=0.02, weight_decay=0.1)
        shadow = gfs.attach(
            optimizer,
            model,
            lambda m, _: m(),
            data=torch.zeros(1),
            solver=gfs.solvers.Dopri5(rtol=1e-9, atol=1e-10),
            probes=(),
            on_error="raise",
        )

        def steps(n):
            for _ in range(n):
                optimizer.zero_grad()
                model().backward()
                optimizer.step()

        if late:
            steps(7)
            model.new.requires_grad_(True)
        steps(6)
        return shadow.theta()["new"], shadow.status

    alone, joined = run(late=False), run(late=True)
    assert alone[1] == joined[1] == "ok"
    assert torch.allclose(alone[0], joined[0], rtol=1e-7, atol=0.0)


@pytest.mark.parametrize("options", [{"every": 4}, {"every": 4, "window": 2}, {"resync_every": 3}])
@pytest.mark.parametrize("mode", ["reference", "batch"])
def test_sparse_records_and_windows(mode, options):
    model = frozen()
    optimizer = sgd(model)
    shadow = attach(mode, optimizer, model, **options)
    loop(optimizer, model, shadow, 5)
    unfreeze(model, optimizer)
    loop(optimizer, model, shadow, 8)
    found = [r for r in shadow.records if r.status == "new_layout"]
    assert len(found) == 1
    assert found[0].step == (6 if "window" in options or "resync_every" in options else 8)
    assert shadow.status == "ok"


def test_a_change_inside_a_pause_is_taken_in_after_it():
    model = frozen()
    optimizer = sgd(model)
    shadow = attach("reference", optimizer, model)
    loop(optimizer, model, shadow, 2)
    with shadow.paused():
        unfreeze(model, optimizer)
        loop(optimizer, model, shadow, 3)
    loop(optimizer, model, shadow, 1)
    last = shadow.records[-1]
    assert (last.step, last.status.value) == (6, "new_layout")
    fresh = attach("local", optimizer, model)
    loop(optimizer, model, fresh, 1)
    assert last.discrepancy < 2.0 * fresh.records[-1].discrepancy


def test_captured_batches_go_on():
    model = frozen()
    optimizer, criterion = sgd(model), nn.MSELoss()
    shadow = gfs.attach(optimizer, model, mode="batch", probes=(), on_error="raise")
    x, y = data(torch.float64)
    with shadow.capture(criterion=criterion):
        for k in range(8):
            if k == 4:
                unfreeze(model, optimizer)
            optimizer.zero_grad()
            criterion(model(x), y).backward()
            optimizer.step()
    assert [r.status.value for r in shadow.records] == ["ok"] * 5 + ["new_layout"] + ["ok"] * 3
    assert shadow.records[-1].audit == "match"


def test_probes_and_limits_begin_with_the_new_parameters():
    model = nn.Sequential(*[nn.Linear(4, 4, bias=False) for _ in range(3)]).double()
    seed()
    for layer in model:
        nn.init.eye_(layer.weight)
    model[0].requires_grad_(False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    x = data(torch.float64)[0]
    shadow = gfs.attach(
        optimizer,
        model,
        lambda m, b: 0.5 * (m(b) - 2.0 * b).square().sum(1).mean(),
        data=x,
        bounds=("default", "tube"),
        on_error="raise",
    )

    def steps(n):
        for _ in range(n):
            optimizer.zero_grad()
            (0.5 * (model(x) - 2.0 * x).square().sum(1).mean()).backward()
            optimizer.step()

    steps(3)
    smaller = next(r.lambda_max for r in reversed(shadow.records) if r.lambda_max is not None)
    model[0].requires_grad_(True)
    steps(1)
    record = shadow.records[4]
    assert record.status == "new_layout"
    assert record.lambda_max > smaller  # of a larger Hessian that holds the smaller one
    at = [layer.weight.detach() for layer in model]

    def loss(first, second, third):
        out = x @ first.T @ second.T @ third.T
        return 0.5 * (out - 2.0 * x).square().sum(1).mean()

    found = torch.autograd.functional.hessian(loss, tuple(at))
    dense = torch.cat([torch.cat([b.reshape(16, 16) for b in row], 1) for row in found])
    low, high = torch.linalg.eigvalsh(dense)[[0, -1]].tolist()
    assert record.lambda_max == pytest.approx(high, rel=0.02)
    assert record.lambda_min == pytest.approx(low, abs=0.02 * high)
    for name in ("theorem2", "tube"):  # of a flow that is left
        cell = record.bounds[name]
        assert cell["kind"] == "failed"
        assert cell["status"] == "No bound: other parameters are trained from step 4 on."
    assert record.bounds["lemma2"]["value"] <= record.lambda_min + 1e-9  # of this point alone


@pytest.mark.parametrize("mode", ["reference", "batch"])
def test_a_parameter_that_the_model_does_not_hold_makes_it_passive_and_no_more(mode):
    model = frozen()
    optimizer = sgd(model)
    shadow = attach(mode, optimizer, model)
    loop(optimizer, model, shadow, 2)
    optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(2, dtype=torch.float64))]})
    loop(optimizer, model, shadow, 2)
    assert shadow.records[3].status == "new_layout"
    assert shadow.status == "passive"
    assert "one without 1 of its 5 parameters" in shadow.records[-1].status_detail
    optimizer.param_groups = optimizer.param_groups[:1]
    loop(optimizer, model, shadow, 3)
    assert shadow.status == "ok"
    assert shadow.records[-1].mode == mode
    assert shadow.records[-1].discrepancy > 0.0


def test_where_all_is_frozen_nothing_is_a_step():
    model = frozen()
    optimizer = sgd(model)
    shadow = attach("reference", optimizer, model)
    loop(optimizer, model, shadow, 2)
    model.requires_grad_(False)
    optimizer.zero_grad()
    optimizer.step()
    assert len(shadow.records) == 3
    model.requires_grad_(True)
    loop(optimizer, model, shadow, 2)
    assert len(shadow.records) == 5


def test_frozen_at_every_other_step_as_in_adversarial_training():
    model = frozen()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    shadow = attach("batch", optimizer, model)
    for k in range(6):
        model.second.requires_grad_(k % 2 == 0)
        loop(optimizer, model, shadow, 1)
    assert [r.status.value for r in shadow.records] == ["ok", "ok", *["new_layout"] * 5]
    assert shadow.summary()["resyncs"] == 5


def test_data_fit_a_model_that_is_cast_and_cast_back_without_losing_digits():
    model = frozen()
    optimizer = sgd(model)
    shadow = attach("reference", optimizer, model)
    loop(optimizer, model, shadow, 1)
    model.half()
    loop(optimizer, model, shadow, 1)
    model.double()
    loop(optimizer, model, shadow, 1)
    assert shadow.records[-1].audit == "match"
    loss = loss_of(model, data(torch.float64)).item()
    assert shadow._tracker.parts.objective.loss(flat(trained(model)), "loss") == loss


def test_an_objective_that_fails_on_the_new_head_disables_itself_and_not_the_run():
    model = frozen()
    optimizer = sgd(model)
    shadow = attach("reference", optimizer, model, on_error="disable")
    loop(optimizer, model, shadow, 2)
    model.head = nn.Linear(6, 3, dtype=torch.float64)
    optimizer.param_groups[0]["params"] = trained(model)
    x = data(torch.float64)[0]
    model(x).sum().backward()
    with pytest.warns(RuntimeWarning, match="disabled itself at step 3.*size of tensor"):
        optimizer.step()
    assert shadow.status == "disabled"


def test_a_wrapped_model_and_a_shadowed_class():
    seed()
    model = torch.compile(frozen(), backend="eager")
    optimizer = gfs.optim.SGD(
        trained(model),
        lr=0.05,
        shadow=dict(model=model, objective=loss_of, data=data(torch.float64), on_error="raise"),
    )
    shadow = gfs.get(optimizer)
    loop(optimizer, model, shadow, 2)
    unfreeze(model, optimizer)
    loop(optimizer, model, shadow, 2)
    assert [r.status.value for r in shadow.records] == ["ok", "ok", "ok", "new_layout", "ok"]


def test_mlp_of_the_other_tests_is_smooth_again_after_a_new_head_with_kinks():
    model = mlp(torch.float64)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    shadow = attach("reference", optimizer, model)
    assert not shadow._tracker.parts.objective.kinked
    model.append(nn.ReLU())
    model[0].bias.requires_grad_(False)
    loop(optimizer, model, shadow, 1)
    assert shadow._tracker.parts.objective.kinked
