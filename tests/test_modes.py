"""Minibatch modes against the exact flow: on a linear model each step's flow is affine."""

import copy
import itertools
import logging
import math
import statistics
import warnings

import pytest
import torch
from loops import assert_identical, fingerprint
from scipy.integrate import solve_ivp
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import torch_gfshadow as gfs

F64 = torch.float64
N, IN = 64, 5


def samples():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(N, IN, generator=generator, dtype=F64)
    y = torch.sin(x.sum(1, keepdim=True)) + 0.2 * torch.randn(N, 1, generator=generator, dtype=F64)
    return x, y


def squares(model, batch):
    x, y = batch
    return 0.5 * (model(x) - y).square().mean()


def linear(seed=3):
    torch.manual_seed(seed)
    return nn.Linear(IN, 1, bias=False).double()


def batches(count, size=8, seed=1):
    x, y = samples()
    generator = torch.Generator().manual_seed(seed)
    rows = [torch.randint(0, N, (size,), generator=generator) for _ in range(count)]
    return [(x[r], y[r]) for r in rows]


def exactly(theta, batch, eta, factor=1.0, decay=0.0, ratio=1.0):
    """Take θ' = −ratio·(c·(Hθ − b) + wd·θ) over η by one matrix exponential."""
    x, y = batch
    h = factor * x.T @ x / len(x)
    b = factor * (x.T @ y).squeeze(1) / len(x)
    r = torch.as_tensor(ratio, dtype=F64).expand(IN)
    field = torch.zeros(IN + 1, IN + 1, dtype=F64)
    field[:IN, :IN] = -r[:, None] * (h + decay * torch.eye(IN, dtype=F64))
    field[:IN, IN] = r * b
    grown = torch.linalg.matrix_exp(eta * field) @ torch.cat([theta, torch.ones(1, dtype=F64)])
    return grown[:IN]


def weights(model):
    return torch.nn.utils.parameters_to_vector(model.parameters()).detach().clone()


def attach(model, optimizer, **options):
    options = {"probes": (), "on_error": "raise"} | options
    return gfs.attach(optimizer, model, squares, **options)


def assert_follows(shadow, model, flow, rel=0.05):
    """The shadow stands on the exact flow, within its own bar, and the record says how far."""
    last = shadow.records[-1]
    truth = float((weights(model) - flow).norm())
    assert last.discrepancy == pytest.approx(truth, rel=rel)
    missed = float((shadow._tracker.shadow.theta - flow).norm())
    assert missed <= last.solver_error
    assert last.solver_error < 0.2 * last.discrepancy
    assert last.status == "ok", last.status_detail


# -- the loops people write -----------------------------------------------------------------------


@pytest.mark.parametrize("way", ["observe", "watch", "capture", "keywords", "closure"])
def test_the_batch_of_every_step_is_followed_however_it_is_handed_over(way):
    model, criterion = linear(), nn.MSELoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2)
    flow = weights(model)
    captured = way in ("capture", "keywords")
    objective = None if captured else squares
    shadow = gfs.attach(optimizer, model, objective, mode="batch", probes=(), on_error="raise")
    if captured:
        shadow.capture(criterion=criterion)
    todo = batches(20)
    for batch in shadow.watch(todo) if way == "watch" else todo:

        def backward(batch=batch):
            optimizer.zero_grad()
            if way in ("observe", "closure"):
                assert shadow.observe(batch) is batch
            if way == "capture":
                loss = criterion(model(batch[0]), batch[1])
            elif way == "keywords":
                loss = criterion(target=batch[1], input=model(input=batch[0]))
            else:
                loss = squares(model, batch)
            loss.backward()
            return loss

        if way == "closure":
            optimizer.step(backward)
        else:
            backward()
            optimizer.step()
        flow = exactly(flow, batch, 0.2, factor=2.0 if captured else 1.0)
    assert_follows(shadow, model, flow)
    last = shadow.records[-1]
    assert (last.mode, last.audit, last.flow) == ("batch", "match", "gradient_flow")
    assert last.time == pytest.approx(4.0)
    assert last.shadow_loss == pytest.approx(
        float(0.5 * (todo[-1][0] @ flow - todo[-1][1].squeeze(1)).square().mean())
        * (2.0 if captured else 1.0),
        rel=5e-3,
    )


def test_without_data_the_mode_is_batch_and_with_data_it_is_reference():
    model = linear()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    assert attach(model, optimizer).records[0].mode == "batch"
    assert attach(model, optimizer, data=samples()).records[0].mode == "reference"


def loop(model, optimizer, shadow, todo, between=lambda k: None, before_step=lambda: None):
    for k, batch in enumerate(todo):
        between(k)
        optimizer.zero_grad()
        shadow.observe(batch)
        squares(model, batch).backward()
        before_step()
        optimizer.step()


def test_a_schedule_down_to_nothing():
    model = linear()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.4)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=15)
    shadow, flow, todo = attach(model, optimizer), weights(model), batches(16)
    for batch in todo:
        eta = optimizer.param_groups[0]["lr"]
        loop(model, optimizer, shadow, [batch])
        scheduler.step()
        flow = exactly(flow, batch, eta)
    assert eta == pytest.approx(0.0, abs=1e-12)
    assert_follows(shadow, model, flow)


def test_groups_with_rates_and_decays_of_their_own():
    model = nn.ParameterDict({"a": torch.randn(2, dtype=F64), "b": torch.randn(3, dtype=F64)})

    def fn(model, batch):
        theta = torch.cat([model["a"], model["b"]])
        return 0.5 * (batch[0] @ theta - batch[1].squeeze(1)).square().mean()

    groups = [{"params": [model["a"]], "lr": 0.05, "weight_decay": 0.3}, {"params": [model["b"]]}]
    optimizer = torch.optim.SGD(groups, lr=0.2, weight_decay=0.1)
    shadow = gfs.attach(optimizer, model, fn, probes=(), on_error="raise")
    flow = weights(model)
    ratio = torch.tensor([0.25, 0.25, 1.0, 1.0, 1.0], dtype=F64)
    decay = torch.tensor([0.3, 0.3, 0.1, 0.1, 0.1], dtype=F64)
    for k, batch in enumerate(batches(20)):
        if k == 10:  # one group is scheduled, the other is not
            groups = optimizer.param_groups
            groups[0]["lr"], ratio = 0.1, torch.tensor([0.5, 0.5, 1, 1, 1], dtype=F64)
        optimizer.zero_grad()
        shadow.observe(batch)
        fn(model, batch).backward()
        optimizer.step()
        flow = exactly(flow, batch, 0.2, decay=decay, ratio=ratio)
    assert_follows(shadow, model, flow)
    assert shadow.records[-1].time == pytest.approx(4.0)


def test_clipping_is_folded_in_and_decay_is_not_clipped():
    model = linear()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2, weight_decay=0.2)
    shadow, flow = attach(model, optimizer), weights(model)
    factors = []
    for batch in batches(25):
        optimizer.zero_grad()
        shadow.observe(batch)
        squares(model, batch).backward()
        norm = float(nn.utils.clip_grad_norm_(model.parameters(), 0.4))
        factors.append(min(1.0, 0.4 / (norm + 1e-6)))
        optimizer.step()
        flow = exactly(flow, batch, 0.2, factor=factors[-1], decay=0.2)
        assert shadow.records[-1].audit.startswith("scaled" if factors[-1] < 0.999 else "match")
    assert min(factors) < 0.7
    assert max(factors) == 1.0
    assert_follows(shadow, model, flow)


@pytest.mark.parametrize("divided", [True, False])
@pytest.mark.parametrize("to_none", [True, False])
def test_accumulated_batches_make_one_step(divided, to_none):
    model = linear()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    shadow, flow = attach(model, optimizer), weights(model)
    todo = batches(30, size=6)
    for k in range(10):
        group = todo[3 * k : 3 * k + 3]
        optimizer.zero_grad(set_to_none=to_none)
        for batch in group:
            shadow.observe(batch)
            (squares(model, batch) / (3 if divided else 1)).backward()
        optimizer.step()
        whole = tuple(torch.cat([b[i] for b in group]) for i in range(2))
        flow = exactly(flow, whole, 0.1, factor=1.0 if divided else 3.0)
    assert_follows(shadow, model, flow)
    assert shadow.records[-1].audit == ("match" if divided else "scaled 3")


def test_batches_of_unequal_weight():
    model = linear()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    shadow, flow = attach(model, optimizer), weights(model)
    for big, small in zip(batches(10, 12), batches(10, 4, seed=2), strict=True):
        optimizer.zero_grad()
        for batch, weight in ((big, 0.75), (small, 0.25)):
            shadow.observe(batch, weight=weight)
            (weight * squares(model, batch)).backward()
        optimizer.step()
        flow = exactly(flow, tuple(map(torch.cat, zip(big, small, strict=True))), 0.1)
    assert_follows(shadow, model, flow)


@pytest.mark.parametrize("to_none", [True, False])
@pytest.mark.parametrize("fused", [True, False])
def test_steps_that_amp_skips_are_no_steps(to_none, fused):
    model = linear().float()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    shadow, flow = attach(model, optimizer), weights(model).double()
    for k, batch in enumerate(batches(12)):
        optimizer.zero_grad(set_to_none=to_none)
        batch = tuple(t.float() for t in batch)
        shadow.observe(batch)
        loss = squares(model, batch)
        scaler.scale(loss * (math.inf if k in (3, 7) else 1.0)).backward()
        scaler.step(optimizer)
        scaler.update()
        if k not in (3, 7):
            flow = exactly(flow, tuple(t.double() for t in batch), 0.1)
    last = shadow.records[-1]
    assert last.step == 10
    assert last.audit == "match"
    missed = float((shadow._tracker.shadow.theta - flow).norm())
    assert missed <= last.solver_error < 0.2 * last.discrepancy


@pytest.mark.parametrize("why", ["amp", "amp keeps zeros", "the loop"])
@pytest.mark.parametrize("accumulated", [1, 2])
def test_steps_left_out_before_a_watched_batch_are_no_part_of_the_next(why, accumulated):
    model = linear().float()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    shadow, flow, held = attach(model, optimizer), weights(model).double(), []
    todo = [tuple(t.float() for t in batch) for batch in batches(8 * accumulated)]
    for i, batch in enumerate(shadow.watch(todo)):
        k = i // accumulated
        if i % accumulated == 0:
            optimizer.zero_grad(set_to_none=why != "amp keeps zeros")
            held = []
        held.append(tuple(t.double() for t in batch))
        loss = squares(model, batch) / accumulated
        scaler.scale(loss * (math.inf if why != "the loop" and k in (2, 5) else 1.0)).backward()
        if i % accumulated < accumulated - 1 or (why == "the loop" and k in (2, 5)):
            continue
        scaler.step(optimizer)
        scaler.update()
        if k not in (2, 5):
            flow = exactly(flow, tuple(map(torch.cat, zip(*held, strict=True))), 0.1)
    last = shadow.records[-1]
    assert last.step == 6
    assert {r.audit for r in shadow.records[1:]} == {"match"}
    missed = float((shadow._tracker.shadow.theta - flow).norm())
    assert missed <= last.solver_error < 0.2 * last.discrepancy


def test_dropout_and_batch_norm_see_the_random_numbers_of_the_loop():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(IN, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.4), nn.Linear(8, 1)
    ).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    shadow = attach(model, optimizer)
    for pair in zip(batches(9), batches(9, seed=2), strict=True):
        optimizer.zero_grad()
        for batch in pair:  # two masks in one window
            shadow.observe(batch)
            (0.5 * squares(model, batch)).backward()
        optimizer.step()
        assert shadow.records[-1].audit == "match"
    assert shadow.records[-1].status == "ok"


@pytest.mark.parametrize("how", ["observe", "capture"])
def test_training_is_bit_identical(how):
    def run(on):
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Linear(IN, 6), nn.BatchNorm1d(6), nn.Dropout(0.3), nn.Linear(6, 1)
        ).double()
        criterion = nn.MSELoss()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, weight_decay=0.01)
        loader = DataLoader(TensorDataset(*samples()), batch_size=16, shuffle=True)
        shadow = None
        if on:
            fn = None if how == "capture" else lambda m, b: criterion(m(b[0]), b[1])
            options = {"probes": ("lambda_min", "lambda_max"), "probe_every": 2}
            shadow = gfs.attach(optimizer, model, fn, mode="batch", on_error="raise", **options)
            if how == "capture":
                shadow.capture(criterion=criterion)
        for _ in range(2):
            for batch in shadow.watch(loader) if on and how == "observe" else loader:
                optimizer.zero_grad()
                criterion(model(batch[0]), batch[1]).backward()
                nn.utils.clip_grad_norm_(model.parameters(), 0.5)
                optimizer.step()
        if on:
            assert shadow.records[-1].discrepancy > 0
            assert max(r.lambda_max or 0.0 for r in shadow.records) > 0
            shadow.detach()
        return fingerprint(model, optimizer)

    assert_identical(run(False), run(True))


# -- orders of convergence ------------------------------------------------------------------------


def final(lr, mode, seed):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(IN, 16), nn.Tanh(), nn.Linear(16, 1)).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    options = {"data": samples(), "audit": False} if mode == "reference" else {}
    steps = round(2.0 / lr)
    shadow = attach(model, optimizer, mode=mode, every=steps, **options)
    loop(model, optimizer, shadow, batches(steps, size=4, seed=seed))
    return shadow.records[-1].discrepancy


def slope(mode, rates=(0.1, 0.05, 0.025), seeds=8):
    """Order of the root mean square over seeds, by regression."""
    logs = []
    for lr in rates:
        squared = sum(final(lr, mode, 100 * i + round(1 / lr)) ** 2 for i in range(seeds))
        logs.append([math.log(lr), 0.5 * math.log(squared / seeds)])
    x, y = (torch.tensor(logs) - torch.tensor(logs).mean(0)).T
    return float((x * y).sum() / (x * x).sum())


def test_same_batch_discrepancy_is_of_first_order_and_full_batch_noise_of_order_one_half():
    assert slope("batch") == pytest.approx(1.0, abs=0.2)
    assert slope("reference") == pytest.approx(0.5, abs=0.2)


def test_one_step_of_mode_local_is_half_eta_squared_hessian_times_gradient():
    model = linear()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    shadow = attach(model, optimizer, mode="local", every=4)
    todo = batches(12)
    for k, (x, y) in enumerate(todo, 1):
        theta = weights(model)
        loop(model, optimizer, shadow, [(x, y)])
        if k % 4 == 0:
            h, b = x.T @ x / len(x), (x.T @ y).squeeze(1) / len(x)
            half = 0.5 * 1e-6 * float((h @ (h @ theta - b)).norm())
            last = shadow.records[-1]
            assert last.step == k
            assert last.mode == "local"
            assert last.discrepancy == pytest.approx(half, rel=5e-3)
    assert [r.step for r in shadow.records] == [0, 4, 8, 12]
    per_record = shadow.records[-1].n_grad_evals / 3
    assert per_record < 9


def test_local_with_data_restarts_on_the_full_objective():
    model = linear()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    shadow = attach(model, optimizer, mode="local", data=samples())
    for _ in range(5):
        theta = weights(model)
        optimizer.zero_grad()
        squares(model, samples()).backward()
        optimizer.step()
        last = shadow.records[-1]
        truth = float((weights(model) - exactly(theta, samples(), 0.1)).norm())
        assert abs(last.discrepancy - truth) <= last.solver_error <= 0.1 * last.discrepancy
        assert last.audit == "match"


# -- the error bar --------------------------------------------------------------------------------


def against_scipy(widths, lr, seed, steps):
    """Return what the shadow missed, its bar and the discrepancy, after every step."""
    torch.manual_seed(seed)
    sizes = [IN, *widths]
    layers = [m for a, b in itertools.pairwise(sizes) for m in (nn.Linear(a, b), nn.Tanh())]
    model = nn.Sequential(*layers, nn.Linear(sizes[-1], 1)).double()
    twin = copy.deepcopy(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    shadow, flow, rows = attach(model, optimizer), weights(model).numpy(), []
    for batch in batches(steps, size=16, seed=seed):

        def field(_, theta, batch=batch):
            nn.utils.vector_to_parameters(torch.from_numpy(theta.copy()), twin.parameters())
            grads = torch.autograd.grad(squares(twin, batch), list(twin.parameters()))
            return -nn.utils.parameters_to_vector(grads).numpy()

        loop(model, optimizer, shadow, [batch])
        flow = solve_ivp(field, (0, lr), flow, method="DOP853", rtol=1e-12, atol=1e-14).y[:, -1]
        last = shadow.records[-1]
        missed = float((shadow._tracker.shadow.theta - torch.from_numpy(flow)).norm())
        rows.append((missed, last.solver_error, last.discrepancy))
    return rows


def assert_honest(rows):
    """Covered in 95 %, no more than ten times the truth, and a tenth of the discrepancy."""
    assert sum(missed <= bar for missed, bar, _ in rows) >= 0.95 * len(rows)
    assert statistics.median(bar / missed for missed, bar, _ in rows) <= 10
    assert statistics.median(bar / discrepancy for _, bar, discrepancy in rows) <= 0.1


@pytest.mark.parametrize(("lr", "seed"), [(0.001, 0), (0.1, 0), (0.5, 0), (0.3, 1)])
def test_on_a_smooth_network_the_bar_is_honest_by_scipy(lr, seed):
    assert_honest(against_scipy((8, 8), lr, seed=seed, steps=15))


def test_at_the_edge_of_stability_and_beyond_the_flow_is_still_right():
    x = torch.eye(2, dtype=F64) * torch.tensor([2.0, 1.0], dtype=F64)  # H = diag(2, 1/2)
    batch = (x, torch.zeros(2, 1, dtype=F64))
    for lr in (1.0, 1.5, 6.0):
        model = nn.Linear(2, 1, bias=False).double()
        nn.init.ones_(model.weight)
        optimizer = torch.optim.SGD(model.parameters(), lr=lr)
        shadow = attach(model, optimizer)
        loop(model, optimizer, shadow, [batch])
        exact = torch.tensor([math.exp(-2.0 * lr), math.exp(-0.5 * lr)], dtype=F64)
        missed = float((shadow._tracker.shadow.theta - exact).norm())
        assert missed <= shadow.records[-1].solver_error <= 0.2 * shadow.records[-1].discrepancy


# -- what can go wrong ----------------------------------------------------------------------------


def test_a_step_without_its_batch_says_so_and_the_shadow_starts_anew():
    model = linear()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    shadow, todo = attach(model, optimizer), batches(6)
    loop(model, optimizer, shadow, todo[:3])
    optimizer.zero_grad()
    squares(model, todo[3]).backward()
    optimizer.step()
    assert shadow.records[-1].status == "unobserved"
    assert "watch(loader)" in shadow.records[-1].status_detail
    start = weights(model)
    loop(model, optimizer, shadow, todo[4:])
    flow = exactly(exactly(start, todo[4], 0.1), todo[5], 0.1)
    assert_follows(shadow, model, flow)


def test_the_wrong_batch_is_a_mismatch():
    model = linear()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    shadow, todo = attach(model, optimizer), batches(2)
    optimizer.zero_grad()
    shadow.observe(todo[0])
    squares(model, todo[1]).backward()
    optimizer.step()
    assert shadow.records[-1].status == "mismatch"


def test_an_objective_that_fails_on_the_first_batch_disables_the_shadow_only():
    model = linear()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def broken(model, batch):
        raise ZeroDivisionError("mine")

    shadow = gfs.attach(optimizer, model, broken, probes=())
    before = weights(model)
    shadow.observe(batches(1)[0])
    squares(model, batches(1)[0]).backward()
    with pytest.warns(RuntimeWarning, match="disabled itself at step 1.*ZeroDivisionError"):
        optimizer.step()
    assert not torch.equal(before, weights(model))
    assert shadow.observe(3) == 3


def test_paused_steps_are_not_followed_and_the_shadow_starts_anew_after_them():
    model = linear()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    shadow, todo = attach(model, optimizer), batches(9)
    loop(model, optimizer, shadow, todo[:3])
    with shadow.paused():
        loop(model, optimizer, shadow, todo[3:6])
    flow = weights(model)
    loop(model, optimizer, shadow, todo[6:])
    for batch in todo[6:]:
        flow = exactly(flow, batch, 0.1)
    assert_follows(shadow, model, flow)


def test_an_evaluation_pass_is_not_captured():
    model, criterion = linear(), nn.MSELoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    shadow = gfs.attach(optimizer, model, mode="batch", probes=(), on_error="raise")
    with shadow.capture(criterion=criterion):
        for batch in batches(5):
            with torch.no_grad():
                criterion(model(samples()[0]), samples()[1])
            optimizer.zero_grad()
            criterion(model(batch[0]), batch[1]).backward()
            optimizer.step()
            assert shadow.records[-1].audit == "match"
    assert not model._forward_pre_hooks
    assert not criterion._forward_pre_hooks


def test_a_captured_loss_that_is_only_a_part_is_a_mismatch():
    model, criterion = linear(), nn.MSELoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    shadow = gfs.attach(optimizer, model, mode="batch", probes=(), on_error="raise")
    shadow.capture(criterion=criterion)
    x, y = batches(1)[0]
    (criterion(model(x), y) + 0.5 * model.weight.square().sum()).backward()
    optimizer.step()
    assert shadow.records[-1].audit == "mismatch"


@pytest.mark.parametrize("way", ["functional", "other output", "changed input"])
def test_what_capture_cannot_see_is_unobserved(way):
    model, criterion = linear(), nn.MSELoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    shadow = gfs.attach(optimizer, model, mode="batch", probes=(), on_error="raise")
    shadow.capture(criterion=criterion)
    x, y = batches(1)[0]
    out = model(x)
    if way == "functional":
        loss = nn.functional.mse_loss(out, y)
    elif way == "other output":
        loss = criterion(2.0 * out, y)
    else:
        x.requires_grad_(False)
        out = model(x.clone()) if x.is_leaf else out
        loss = criterion(out, y)
        model.zero_grad()
        held = x.clone()
        out = model(held)
        held.zero_()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            loss = criterion(out, y)
            shadow._tracker.follower._observed.take()
        loss = loss + 0.0 * model.weight.sum() if not loss.requires_grad else loss
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()
        squares(model, (x, y)).backward()
        optimizer.step()
        assert shadow.records[-1].status == "unobserved"
        return
    loss.backward()
    optimizer.step()
    assert shadow.records[-1].status == "unobserved"


def test_averaged_copies_of_the_model_capture_nothing():
    model, criterion = linear(), nn.MSELoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    shadow = gfs.attach(optimizer, model, mode="batch", probes=(), on_error="raise")
    shadow.capture(criterion=criterion)
    average = torch.optim.swa_utils.AveragedModel(model)
    twin = copy.deepcopy(criterion)
    for x, y in batches(4):
        optimizer.zero_grad()
        criterion(model(x), y).backward()
        twin(average(x), y)
        optimizer.step()
        average.update_parameters(model)
        assert shadow.records[-1].audit == "match"


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda s: s.capture(criterion=print), TypeError, r"^criterion must be a torch.nn.Module"),
        (lambda s: s.capture(), TypeError, r"^criterion must be .*observe\(\) the batches"),
        (
            lambda s: s.capture(model=3, criterion=nn.MSELoss()),
            TypeError,
            r"^model must be a torch.nn.Module, got a int",
        ),
    ],
    ids=["function", "none", "model"],
)
def test_a_capture_of_something_else(call, error, match):
    model = linear()
    shadow = attach(model, torch.optim.SGD(model.parameters(), lr=0.1))
    with pytest.raises(error, match=match):
        call(shadow)


def test_a_reference_shadow_takes_no_batches():
    model = linear()
    shadow = attach(model, torch.optim.SGD(model.parameters(), lr=0.1), data=samples())
    assert shadow.observe("anything") == "anything"
    with pytest.raises(ValueError, match=r"^mode must be 'batch' or 'local' to capture, got ref"):
        shadow.capture(criterion=nn.MSELoss())


def test_a_mode_without_its_model():
    optimizer = torch.optim.SGD(linear().parameters(), lr=0.1)
    for mode in ("batch", "local"):
        with pytest.raises(ValueError, match=rf"^model must be given in mode '{mode}', got None"):
            gfs.attach(optimizer, mode=mode)


def test_a_watched_loader_has_its_length():
    shadow = gfs.attach(torch.optim.SGD(linear().parameters(), lr=0.1))
    loader = DataLoader(TensorDataset(*samples()), batch_size=16)
    assert len(shadow.watch(loader)) == 4
    assert len(list(shadow.watch(loader))) == 4


LOW = {"solver": gfs.solvers.RKC2(storage="low")}


@pytest.mark.parametrize(
    "sampled",
    [{}, {"every": 3, "window": 2}, LOW, LOW | {"every": 3, "window": 2}],
    ids=["whole", "windows", "low", "low windows"],
)
def test_resumed_in_mode_batch_the_records_are_the_same(caplog, sampled):
    todo = batches(14)

    def run(at):
        model = linear()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.2)
        options = {"probes": ("lambda_min", "lambda_max"), "probe_every": 3} | sampled
        shadow = attach(model, optimizer, **options)
        loop(model, optimizer, shadow, todo[:at])
        if at < len(todo):
            states = model.state_dict(), optimizer.state_dict(), shadow.state_dict()
            model = linear(seed=8)
            model.load_state_dict(states[0])
            optimizer = torch.optim.SGD(model.parameters(), lr=0.2)
            optimizer.load_state_dict(states[1])
            shadow = attach(model, optimizer, **options)
            shadow.load_state_dict(states[2])
            loop(model, optimizer, shadow, todo[at:])
        return [r.to_dict() | {"seconds": 0.0} for r in shadow.records]

    with caplog.at_level(logging.WARNING):
        whole = run(14)
        for at in (0, 1, 3, 5, 9, 10):  # 5: between two windows
            assert run(at) == whole
    assert not caplog.records


def test_where_a_window_opens_there_is_no_batch_to_measure_on_and_probes_wait_for_one():
    model = linear()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    options = {"probes": ("lambda_max",), "probe_every": 4, "every": 4, "window": 2}
    shadow = attach(model, optimizer, **options)
    todo = batches(10)
    loop(model, optimizer, shadow, todo)
    rows = {r.step: r for r in shadow.records}
    assert [k for k, r in rows.items() if r.loss is not None] == [2, 6, 10]
    assert [k for k, r in rows.items() if r.lambda_max is not None] == [6, 10]
    x, _ = todo[5]
    assert rows[6].lambda_max == pytest.approx(float(torch.linalg.eigvalsh(x.T @ x / len(x))[-1]))


@pytest.mark.parametrize("into", ["fresh", "same"])
def test_a_state_saved_in_the_middle_of_accumulation_says_so_and_starts_anew(into):
    model, todo = linear(), batches(10)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    shadow = attach(model, optimizer)
    loop(model, optimizer, shadow, todo[:4])
    optimizer.zero_grad()
    shadow.observe(todo[4])
    (0.5 * squares(model, todo[4])).backward()
    saved = shadow.state_dict()
    if into == "fresh":
        shadow.detach()
        shadow = attach(model, optimizer)
    shadow.load_state_dict(saved)
    shadow.observe(todo[5])
    (0.5 * squares(model, todo[5])).backward()
    optimizer.step()
    last = shadow.records[-1]
    assert last.status == "unobserved"
    assert "saved in the middle of step 5, after 1 of its batches" in last.status_detail
    flow = weights(model)
    for batch in todo[6:]:
        loop(model, optimizer, shadow, [batch])
        flow = exactly(flow, batch, 0.1)
    assert_follows(shadow, model, flow)


@pytest.mark.parametrize("shape", [lambda x: x, lambda x: [x], lambda x: {"x": x}])
def test_a_batch_may_be_a_bare_tensor(shape):
    torch.manual_seed(0)
    model, batch = nn.Linear(3, 1), shape(torch.randn(8, 3))

    def objective(model, batch):
        assert type(batch) is type(shape(torch.zeros(1)))
        (x,) = batch.values() if isinstance(batch, dict) else [torch.stack(list(batch)).squeeze(0)]
        return model(x).square().mean()

    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with gfs.attach(optimizer, model, objective, probes=(), on_error="raise") as shadow:
        for _ in range(2):
            optimizer.zero_grad()
            objective(model, shadow.observe(batch)).backward()
            optimizer.step()
    assert shadow.records[-1].audit == "match"
    assert shadow.records[-1].discrepancy > 0
