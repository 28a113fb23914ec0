"""Steps at which nothing is due: as cheap as they must be, and nothing is missed at them."""

import random
import sys

import pytest
import torch
from loops import data, loss_of, mlp, seed
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import torch_gfshadow as gfs
from torch_gfshadow import tracker
from torch_gfshadow.tracker import Tracker

FAR = 10**6


class Counted(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.n = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.n += 1
        return func(*args, **(kwargs or {}))


def python_calls(function):
    """Count the calls of Python functions inside the library."""
    found = 0

    def see(frame, event, arg):
        nonlocal found
        found += event == "call" and "torch_gfshadow" in frame.f_code.co_filename

    sys.setprofile(see)
    try:
        function()
    finally:
        sys.setprofile(None)
    return found


def ready(model, optimizer, steps=4):
    batch = data(next(model.parameters()).dtype)
    for _ in range(steps):
        optimizer.zero_grad()
        loss_of(model, batch).backward()
        optimizer.step()
    optimizer.zero_grad()
    loss_of(model, batch).backward()


OPTIMIZERS = {
    "sgd": lambda params: torch.optim.SGD(params, lr=0.01),
    "named": lambda params: torch.optim.SGD(
        [(str(i), p) for i, p in enumerate(params)], lr=0.01, momentum=0.9
    ),
    "adam": lambda params: torch.optim.Adam([{"params": [p]} for p in params], lr=0.001),
}


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
@pytest.mark.parametrize("passive", [False, True])
def test_an_idle_step_takes_no_operation_of_torch_and_few_calls(make, passive):
    """The guard of "< 20 µs": times are in docs/performance.md, counts hold on every machine."""
    seen = []
    for depth in (1, 30):
        seed()
        model = nn.Sequential(mlp(), *[nn.Linear(2, 2) for _ in range(depth)])
        optimizer = make(list(model.parameters()))
        bare = make(list(model.parameters()))
        follows = (model, loss_of) if not passive else ()
        options = {} if passive else {"data": data()}
        with gfs.attach(
            optimizer, *follows, **options, every=FAR, probe_every=FAR, on_error="raise"
        ):
            ready(model, bare)
            with Counted() as alone:
                bare.step()
            ready(model, optimizer)
            with Counted() as beside:
                optimizer.step()
            assert beside.n == alone.n
            loss_of(model, data()).backward()
            seen.append(python_calls(optimizer.step))
    assert seen[0] == seen[1]  # however many tensors there are
    assert seen[0] <= 6


def passed_steps(monkeypatch):
    """Return a list that grows with every step that was counted and no more."""
    taken, count, make = [], Tracker.count, tracker.passing
    monkeypatch.setattr(Tracker, "count", lambda self: (taken.append(1), count(self)))

    def noted(*args):
        made = make(*args)

        def after(*step):
            passed = made.after(*step)
            taken.extend([1] * passed)
            return passed

        return made._replace(after=after)

    monkeypatch.setattr(tracker, "passing", noted)
    return taken


def events(optimizer, model, shadow):
    group = optimizer.param_groups[0]
    first, last = (list(model.parameters())[i] for i in (0, -1))

    def edit():
        first.data.mul_(1.01)

    def replaced():
        last.data = last.data + 0.01

    def schedule():
        group["lr"] *= 0.9

    def decay():
        group["weight_decay"] = group["weight_decay"] + 0.01

    def standing():
        group["lr"], before = 0.0, group["lr"]
        step(model, optimizer)
        group["lr"] = before

    def reload():
        optimizer.load_state_dict(optimizer.state_dict())

    def phantom():
        optimizer.zero_grad(set_to_none=True)
        optimizer.step()

    def overflow():
        # under AMP a fused step fires the hooks and moves nothing
        optimizer.found_inf = torch.tensor(1.0)
        optimizer.step()
        del optimizer.found_inf

    def pause():
        with shadow.paused():
            step(model, optimizer)

    return [edit, replaced, schedule, decay, standing, reload, phantom, overflow, pause]


def step(model, optimizer):
    optimizer.zero_grad()
    loss_of(model, data(torch.float64)).backward()
    optimizer.step()


SHADOWS = {
    "far records": {"every": 9},
    "windows": {"every": 11, "window": 3},
    "resync": {"every": 10, "resync_every": 7},
    "local": {"every": 9, "mode": "local"},
    "passive": {"every": 9, "mode": "passive"},
}


def run(options):
    """Return the records of a run full of events, and what they took."""
    seed()
    model = mlp(torch.float64)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, fused=True)
    batch = None if options.get("mode") == "passive" else data(torch.float64)
    follows = () if batch is None else (model, loss_of)
    shadow = gfs.attach(
        optimizer, *follows, data=batch, **options, probe_every=FAR, on_error="raise"
    )
    draw, happenings = random.Random(5), events(optimizer, model, shadow)
    for _ in range(90):
        if draw.random() < 0.25:
            draw.choice(happenings)()
        step(model, optimizer)
    shadow.detach()
    rows = [record.state_dict() for record in shadow.records]
    for row in rows:
        del row["seconds"]
    return rows, shadow.summary()["by_purpose"]


@pytest.mark.parametrize("options", SHADOWS.values(), ids=SHADOWS)
def test_records_are_those_of_looking_closely_at_every_step(options, monkeypatch):
    taken = passed_steps(monkeypatch)
    idle = run(options)
    assert len(taken) > 15  # else nothing is compared
    monkeypatch.setattr(Tracker, "idle", lambda self: False)
    monkeypatch.setattr(Tracker, "_passing", lambda self: None)
    assert repr(run(options)) == repr(idle)
    assert len(idle[0]) > 5


def test_a_schedule_that_moves_the_rate_at_every_step_leaves_steps_idle(monkeypatch):
    taken = passed_steps(monkeypatch)
    model = mlp(torch.float64)
    groups = [{"params": [p], "lr": 0.01} for p in model.parameters()]
    optimizer = torch.optim.SGD(groups, lr=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 30)
    # a shadow that lives on the run's gradients looks closer now and then: see test_fed.py
    options = {"data": data(torch.float64), "every": 25, "probe_every": FAR, "solver": "dopri5"}
    with gfs.attach(optimizer, model, loss_of, **options, on_error="raise") as shadow:
        time = 0.0
        for _ in range(25):
            time += optimizer.param_groups[0]["lr"]
            step(model, optimizer)
            schedule.step()
        assert len(taken) == 21  # records need steps 1, 24 and 25, and 2 is a first look
        assert shadow.records[-1].time == pytest.approx(time, rel=1e-15)
        # one rate apart from the others bends the flow: that takes a closer look
        optimizer.param_groups[0]["lr"] *= 2.0
        before = len(taken)
        step(model, optimizer)
        assert len(taken) == before


@pytest.mark.parametrize("setting", [torch.ones(2), [0.9]], ids=["tensor", "list"])
def test_settings_that_can_change_in_place_are_looked_at_closely(setting, monkeypatch):
    taken = passed_steps(monkeypatch)
    model = mlp(torch.float64)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with gfs.attach(optimizer, every=FAR, on_error="raise"):
        for _ in range(5):
            step(model, optimizer)
        before = len(taken)
        assert before > 0
        optimizer.param_groups[0]["own"] = setting
        for _ in range(3):
            step(model, optimizer)
        assert len(taken) == before


@pytest.mark.parametrize("what", ["add", "freeze", "thaw", "swap"])
def test_other_parameters_are_seen_at_an_idle_step(what):
    model = mlp(torch.float64)
    spare = nn.Parameter(torch.zeros(2, dtype=torch.float64), requires_grad=False)
    optimizer = torch.optim.SGD([*model.parameters(), spare], lr=0.01)
    model.register_parameter("spare", spare)
    batch = data(torch.float64)
    options = {"every": FAR, "probe_every": FAR, "on_error": "raise"}
    shadow = gfs.attach(optimizer, model, loss_of, data=batch, **options)
    ready(model, optimizer)
    before = shadow.summary()["resyncs"]
    members = optimizer.param_groups[0]["params"]
    if what == "add":
        members.append(nn.Parameter(torch.zeros(2, dtype=torch.float64)))
    elif what == "freeze":
        members[1].requires_grad_(False)
    elif what == "thaw":
        spare.requires_grad_()
    else:
        members[1] = nn.Parameter(members[1].detach().clone())
    optimizer.step()
    follows = what in ("freeze", "thaw")  # the others are not the model's
    assert shadow.summary()["resyncs"] == before + follows
    assert shadow._tracker.follower.mode == ("reference" if follows else "passive")


class Nested(torch.optim.SGD):
    """Its step() is torch's step() inside another one, and now and then raises before or after."""

    fails = None

    def step(self, closure=None):
        if self.fails == "before":
            raise ArithmeticError
        super().step()
        if self.fails == "after":
            raise ArithmeticError


def test_steps_that_nest_or_raise_are_counted_once_and_only_when_taken(monkeypatch):
    taken = passed_steps(monkeypatch)
    model = mlp(torch.float64)
    optimizer = Nested(model.parameters(), lr=0.01)
    options = {"data": data(torch.float64), "every": 40, "probe_every": FAR, "on_error": "raise"}
    with gfs.attach(optimizer, model, loss_of, solver="dopri5", **options) as shadow:
        clock, expected = shadow._tracker.clock, 0
        for k in range(30):
            optimizer.fails = {5: "before", 11: "before", 12: "before", 20: "after"}.get(k)
            if optimizer.fails:
                with pytest.raises(ArithmeticError):
                    step(model, optimizer)
            else:
                step(model, optimizer)
                expected += 1
            assert clock.step == expected
        assert len(taken) > 15


def test_gradients_that_carry_a_graph_leave_none_in_a_shadow_that_they_feed():
    model = mlp(torch.float64)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    batch = data(torch.float64)
    options = {"every": 400, "probe_every": FAR, "on_error": "raise"}
    with gfs.attach(optimizer, model, loss_of, data=batch, **options) as shadow:
        for k in range(60):
            optimizer.zero_grad()
            loss = loss_of(model, batch)
            grads = torch.autograd.grad(loss, list(model.parameters()), create_graph=k > 40)
            for p, g in zip(model.parameters(), grads, strict=True):
                p.grad = g
            optimizer.step()
        fed = shadow._tracker.follower.shadow
        assert fed.solver == "auto:defect"
        assert not fed._on.path._sum.requires_grad


def test_an_edit_of_minus_zero_is_no_edit():
    model = nn.Linear(2, 1).double()
    nn.init.zeros_(model.weight)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with gfs.attach(optimizer, every=FAR, on_error="raise") as shadow:
        watched = shadow._parts.watched
        watched.mark()
        model.weight.data.neg_()
        assert not watched.edited()
        model.weight.data.add_(1.0)
        assert watched.edited()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_every_precision_is_sampled_bit_by_bit_and_saved_as_values(dtype):
    model = nn.Linear(3, 2).to(dtype)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with gfs.attach(optimizer, every=FAR, on_error="raise") as shadow:
        watched = shadow._parts.watched
        (marks,) = watched.marks
        expected = torch.cat([p.detach().reshape(-1) for p in model.parameters()])
        assert torch.equal(marks, expected)
        assert marks.dtype == dtype
        assert watched._sample.unmoved()
        watched.marks = [marks + 1]
        assert watched.edited()
        watched.marks = [marks]
        assert not watched.edited()


@pytest.mark.parametrize("whole", [False, True], ids=["its step", "the whole loop body"])
def test_a_compiled_optimizer_counts_every_step_and_trains_the_same(whole):
    """No wrapper keeps the compiler out at steps that are not compiled; none gets in at these."""

    def trained(on):
        torch.compiler.reset()
        seed()
        model, batch = mlp(), data()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        shadow = None
        if on:
            options = {"every": 4, "probes": [], "on_error": "raise"}
            shadow = gfs.attach(optimizer, model, loss_of, data=batch, **options)
        inner = optimizer.step if whole else torch.compile(optimizer.step, backend="eager")

        def body():
            optimizer.zero_grad()
            loss_of(model, batch).backward()
            inner()

        body = torch.compile(body, backend="eager") if whole else body
        for _ in range(9):
            body()
        if shadow is not None:
            shadow.detach()
            assert [r.step for r in shadow.records] == [0, 4, 8]
            assert shadow.records[-1].audit == "match"
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    assert torch.equal(trained(True), trained(False))
