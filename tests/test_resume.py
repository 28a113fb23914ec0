"""A run killed and resumed at any step gives the records of one that was not, bit for bit."""

import dataclasses
import io
import os

import pytest
import torch
from loops import Everything, data, dropout, full_batch, loss_of, mlp, options_for, seed, sgd
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import torch_gfshadow as gfs
from torch_gfshadow.loggers import read_records


def relu():
    return nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2))


def attach(model, optimizer, **options):
    return gfs.attach(optimizer, model, loss_of, **(options_for(model) | options))


def same_records(a, b):
    def rows(records):
        return [dataclasses.replace(r, seconds=0.0).to_dict() for r in records]

    return rows(a) == rows(b)


def uninterrupted(make, steps, **options):
    seed()
    model = make()
    optimizer = sgd(model)
    shadow = attach(model, optimizer, **options)
    full_batch(optimizer, model, steps)
    shadow.detach()
    return shadow


def interrupted(make, at, steps, optimizer_last=False, **options):
    """Run to ``at``, save, forget everything, build it anew from other random numbers, go on."""
    seed()
    model = make()
    optimizer = sgd(model)
    shadow = attach(model, optimizer, **options)
    full_batch(optimizer, model, at)
    file = io.BytesIO()
    saved = [model.state_dict(), optimizer.state_dict(), shadow.state_dict()]
    saved.append(torch.get_rng_state())  # the loop's own: dropout in training draws from it
    torch.save(saved, file)
    del model, optimizer, shadow
    seed(99)
    torch.rand(7)
    file.seek(0)
    of_model, of_optimizer, of_shadow, of_random = torch.load(file, weights_only=True)
    model = make()
    model.load_state_dict(of_model)
    optimizer = sgd(model)
    if not optimizer_last:
        optimizer.load_state_dict(of_optimizer)
    shadow = attach(model, optimizer, **options)
    shadow.load_state_dict(of_shadow)
    if optimizer_last:
        optimizer.load_state_dict(of_optimizer)
    torch.set_rng_state(of_random)
    full_batch(optimizer, model, steps - at)
    shadow.detach()
    return shadow


PROBED = {"probes": ("lambda_min", "lambda_max", "trace")}


@pytest.mark.parametrize("at", [0, 1, 2, 7, 8, 20, 29])
def test_resumed_at_any_step_the_records_are_the_same(at):
    options = PROBED | {"probe_every": 1, "bounds": ("theorem2",)}
    whole = uninterrupted(mlp, 30, **options)
    again = interrupted(mlp, at, 30, **options)
    assert len(whole.records) == 31
    assert whole.records[-1].bounds["theorem2"]["value"] > 0
    assert same_records(whole.records, again.records)
    assert again.summary()["n_hvps"] == whole.summary()["n_hvps"]


def shuffled():
    x, y = data()
    return DataLoader(TensorDataset(x, y), batch_size=7, shuffle=True, drop_last=True)


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (lambda: mlp(torch.float64), {}),
        (dropout, {}),
        (Everything, PROBED),
        (relu, {}),
        (relu, {"solver": gfs.solvers.Dopri5(max_burst=None), "every": 3}),
        (mlp, {"resync_every": 5}),
        (mlp, {"data": shuffled(), "audit": False}),
        (mlp, {"hvp": "difference", **PROBED}),
    ],
    ids=["float64", "dropout", "everything", "kinks", "dopri5", "resync", "shuffled", "difference"],
)
def test_whatever_the_model_and_the_options(make, options):
    whole = uninterrupted(make, 24, **options)
    again = interrupted(make, 13, 24, **options)
    assert whole.records[-1].discrepancy is not None
    assert same_records(whole.records, again.records)


WITH_MEMORY = {
    "adam": (torch.optim.AdamW, {"lr": 0.01, "weight_decay": 0.1}, "auto"),
    "rmsprop": (torch.optim.RMSprop, {"lr": 0.002}, "auto"),
    "momentum": (torch.optim.SGD, {"lr": 0.05, "momentum": 0.8}, "auto"),
    "heavy_ball": (torch.optim.SGD, {"lr": 0.05, "momentum": 0.8, "nesterov": True}, "heavy_ball"),
}


@pytest.mark.parametrize("mode", ["reference", "batch", "local"])
@pytest.mark.parametrize("name", WITH_MEMORY)
@pytest.mark.parametrize("at", [0, 3, 7])  # 3: the rate changes between step 3 and step 4
def test_flows_with_memory_and_a_rate_that_changes(name, mode, at):
    cls, settings, flow = WITH_MEMORY[name]
    steps = 9
    x, y = data()

    def made(state=None):
        seed()
        model = mlp()
        optimizer = cls(model.parameters(), **settings)
        rates = torch.optim.lr_scheduler.StepLR(optimizer, 3, 0.5)
        if state is not None:
            model.load_state_dict(state["model"])
            optimizer.load_state_dict(state["optimizer"])
            rates.load_state_dict(state["rates"])
        given = {"data": (x, y)} if mode == "reference" else {}
        options = {"probes": (), "flow": flow, "mode": mode, "on_error": "raise"} | given
        shadow = gfs.attach(optimizer, model, loss_of, **options)
        if state is not None:
            shadow.load_state_dict(state["shadow"])
        return model, optimizer, rates, shadow

    def walk(model, optimizer, rates, shadow, count):
        for _ in range(count):
            batch = shadow.observe((x, y))
            optimizer.zero_grad()
            loss_of(model, batch).backward()
            optimizer.step()
            rates.step()
        return shadow

    whole = walk(*made(), steps)
    parts = made()
    walk(*parts, at)
    keys = ("model", "optimizer", "rates", "shadow")
    file = io.BytesIO()
    torch.save({k: part.state_dict() for k, part in zip(keys, parts, strict=True)}, file)
    file.seek(0)
    again = walk(*made(torch.load(file, weights_only=True)), steps - at)
    assert whole.records[-1].discrepancy > 0
    assert same_records(whole.records, again.records)


TUBES = {
    "square": (lambda h, y: 0.5 * (h - y).square().sum(1).mean(), lambda x: x[:, :2] - x[:, 2:]),
    "cross-entropy": (nn.functional.cross_entropy, lambda x: (x[:, 0] > 0).long()),
    "logistic": (nn.functional.soft_margin_loss, lambda x: x[:, :1].sign()),
}


def with_a_tube(name, n_steps, stop, lr=0.02, tube="auto"):
    """Follow a deep linear network, interrupted after ``stop`` steps if that is not None."""
    criterion, label = TUBES[name]
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(12, 4, generator=generator, dtype=torch.float64)
    batch = x, label(x)

    def made():
        torch.manual_seed(5)
        width = batch[1].shape[1] if name != "cross-entropy" else 2
        sizes = ((4, 5), (5, 3), (3, width))
        model = nn.Sequential(*(nn.Linear(a, b, bias=False) for a, b in sizes)).double()
        optimizer = torch.optim.SGD(model.parameters(), lr)
        bounds = [gfs.bounds.LiveTube(tube), "lemma2", "theorem2"]
        shadow = gfs.attach(
            optimizer, model, lambda m, b: criterion(m(b[0]), b[1]), data=batch, bounds=bounds,
            probe_every=2, on_error="raise",
        )  # fmt: skip
        return model, optimizer, shadow

    def run(model, optimizer, steps):
        for _ in range(steps):
            optimizer.zero_grad()
            criterion(model(batch[0]), batch[1]).backward()
            optimizer.step()

    model, optimizer, shadow = made()
    run(model, optimizer, n_steps if stop is None else stop)
    if stop is not None:
        file = io.BytesIO()
        torch.save([model.state_dict(), optimizer.state_dict(), shadow.state_dict()], file)
        file.seek(0)
        states = torch.load(file, weights_only=True)
        model, optimizer, shadow = made()
        for part, state in zip((model, optimizer, shadow), states, strict=True):
            part.load_state_dict(state)
        run(model, optimizer, n_steps - stop)
    shadow.detach()
    return shadow


@pytest.mark.parametrize("stop", [0, 7, 8])
@pytest.mark.parametrize("name", TUBES)
def test_a_tube_goes_on_bit_for_bit(name, stop):
    whole, again = with_a_tube(name, 16, None), with_a_tube(name, 16, stop)
    assert whole.records[-1].bounds["tube"]["kind"] == "certified"
    assert same_records(whole.records, again.records)


@pytest.mark.parametrize("mode", ["A", "B", "C"])
def test_so_does_one_that_has_broken_down(mode):
    options = {"lr": 0.4, "tube": mode}
    whole, again = (with_a_tube("square", 30, stop, **options) for stop in (None, 24))
    cells = [r.bounds["tube"] for r in again.records if "tube" in (r.bounds or {})]
    assert cells[0]["kind"] == "certified"
    assert cells[-1]["kind"] == "failed"
    assert "certified until t" in cells[-1]["why"]
    assert same_records(whole.records, again.records)


def test_and_one_that_never_began():
    def biased(stop):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2)).double()
        optimizer = torch.optim.SGD(model.parameters(), 0.02)
        shadow = gfs.attach(
            optimizer, model, lambda m, b: m(b).square().mean(), data=torch.ones(3, 4).double(),
            bounds=["tube"], probe_every=1,
        )  # fmt: skip
        if stop:
            shadow.load_state_dict(shadow.state_dict())
        return shadow.records[-1].bounds["tube"]["why"], shadow.state_dict()["tracker"]["measures"]

    assert "has a bias" in biased(True)[0]
    assert biased(True)[1]["bounds"] == biased(False)[1]["bounds"]


def test_the_optimizer_may_load_its_state_after_the_shadow():
    assert same_records(
        uninterrupted(mlp, 12).records, interrupted(mlp, 5, 12, optimizer_last=True).records
    )


def test_passively_too():
    def passive(at):
        seed()
        model = mlp()
        optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
        shadow = gfs.attach(optimizer, on_error="raise")
        full_batch(optimizer, model, at)
        if at < 9:
            states = model.state_dict(), optimizer.state_dict(), shadow.state_dict()
            model = mlp()
            model.load_state_dict(states[0])
            optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
            optimizer.load_state_dict(states[1])
            shadow = gfs.attach(optimizer, on_error="raise")
            shadow.load_state_dict(states[2])
            full_batch(optimizer, model, 9 - at)
        return shadow.records

    assert same_records(passive(9), passive(4))


def test_a_model_that_is_not_the_saved_one_is_noticed_at_the_next_step():
    seed()
    model = mlp()
    optimizer = sgd(model)
    shadow = attach(model, optimizer)
    full_batch(optimizer, model, 4)
    state = shadow.state_dict()
    full_batch(optimizer, model, 1)
    shadow.load_state_dict(state)  # the model was not taken back
    full_batch(optimizer, model, 1)
    assert shadow.records[-1].step == 5
    assert shadow.records[-1].status == "external_edit"


# -- refusals -------------------------------------------------------------------------------------


@pytest.fixture
def saved():
    seed()
    model = mlp()
    optimizer = sgd(model)
    shadow = attach(model, optimizer)
    full_batch(optimizer, model, 6)
    return shadow.state_dict()


def wider():
    return nn.Sequential(nn.Linear(4, 7), nn.Tanh(), nn.Linear(7, 2))


def unbiased():
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2, bias=False))


def bent():  # the same parameters, another function
    return nn.Sequential(nn.Linear(4, 6), nn.Sigmoid(), nn.Linear(6, 2))


def halved(model, batch):
    return 0.5 * loss_of(model, batch)


@pytest.mark.parametrize(
    ("make", "options", "match"),
    [
        (wider, {}, r"^state_dict must be of the same model, got one with shapes\[0\] = \[6, 4\]"),
        (
            unbiased,
            {},
            r"same model, got one with parameters\[3\] = '2.bias', here 'none'",
        ),
        (lambda: mlp(torch.float64), {}, r"same model, got one with dtypes\[0\]"),
        (
            bent,
            {},
            r"^state_dict must be of the same objective, model and data, got one",
        ),
        (mlp, {"objective": halved}, r"same objective.*Attach with the objective"),
        (mlp, {"data": tuple(2 * t for t in data())}, r"same objective, model and data"),
        (mlp, {"data": tuple(t[:9] for t in data())}, r"same data, got one with batches\[0\] = 24"),
        (mlp, {"solver": "dopri5"}, r"same attach\(\.\.\., solver=\), got"),
        (mlp, {"resolution": 0.5}, r"same attach\(\.\.\., resolution=\)"),
    ],
    ids=["shapes", "depth", "dtype", "function", "objective", "data", "size", "solver", "options"],
)
def test_another_run_is_refused_and_nothing_changed(saved, make, options, match):
    seed()
    model = make()
    optimizer = sgd(model)
    options = {"objective": loss_of} | options_for(model) | options
    shadow = gfs.attach(optimizer, model, **options)
    before = shadow.records[0]
    with pytest.raises(ValueError, match=match):
        shadow.load_state_dict(saved)
    assert list(shadow.records) == [before]
    theta = torch.nn.utils.parameters_to_vector(model.parameters()).detach()
    optimizer.zero_grad()
    (
        0.0 * model(options["data"][0]).sum() + options["objective"](model, options["data"])
    ).backward()
    optimizer.step()
    assert not torch.equal(theta, torch.nn.utils.parameters_to_vector(model.parameters()))
    assert shadow.records[-1].step == 1
    assert shadow.records[-1].discrepancy is not None


@pytest.mark.parametrize("wrong", [{}, {"format": 0}, None, {"model": 1}])
def test_something_that_is_no_state(wrong):
    model = mlp()
    shadow = attach(model, sgd(model))
    with pytest.raises(ValueError, match=r"^state_dict must be of format 1, got"):
        shadow.load_state_dict(wrong)


@pytest.mark.parametrize("lost", ["identity", "tracker"])
def test_a_state_that_lost_a_part(saved, lost):
    model = mlp()
    shadow = attach(model, sgd(model))
    whole = {key: value for key, value in saved.items() if key != lost}
    with pytest.raises(ValueError, match=r"^state_dict must be "):
        shadow.load_state_dict(whole)
    saved["tracker"].pop("clock")
    with pytest.raises(ValueError, match=r"^state_dict must be whole, got one without 'clock'\."):
        shadow.load_state_dict(saved)
    assert [r.step for r in shadow.records] == [0]


# -- files ----------------------------------------------------------------------------------------


def test_a_file_holds_the_state_and_is_read_without_executing_anything(tmp_path):
    seed()
    model = mlp()
    optimizer = sgd(model)
    shadow = attach(model, optimizer)
    full_batch(optimizer, model, 5)
    path = tmp_path / "deep" / "shadow.pt"
    shadow.save(path)
    full_batch(optimizer, model, 1)
    shadow.save(path)  # over the old one
    assert [p.name for p in path.parent.iterdir()] == ["shadow.pt"]
    fresh = attach(model, optimizer)
    fresh.load(path)
    assert same_records(fresh.records, shadow.records)
    torch.load(path, weights_only=True)


@pytest.mark.parametrize("content", [b"", b"junk", b"PK\x03\x04" + bytes(40)])
def test_a_file_that_holds_something_else(tmp_path, content):
    seed()
    model = mlp()
    shadow = attach(model, sgd(model))
    (tmp_path / "junk.pt").write_bytes(content)
    with pytest.raises(ValueError, match=r"^path must be a saved shadow, got '.*junk\.pt' \("):
        shadow.load(tmp_path / "junk.pt")
    with pytest.raises(FileNotFoundError):
        shadow.load(tmp_path / "none.pt")


def test_a_crash_while_writing_leaves_the_old_file(tmp_path, monkeypatch):
    model = mlp()
    shadow = attach(model, sgd(model))
    path = tmp_path / "shadow.pt"
    shadow.save(path)
    old = path.read_bytes()

    def crash(descriptor):
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", crash)
    with pytest.raises(OSError, match="disk full"):
        shadow.save(path)
    assert path.read_bytes() == old
    assert [p.name for p in tmp_path.iterdir()] == ["shadow.pt"]


def test_the_record_file_goes_on_without_a_second_beginning(tmp_path):
    path = tmp_path / "run.jsonl"
    seed()
    model = mlp()
    optimizer = sgd(model)
    shadow = attach(model, optimizer, loggers=[f"jsonl:{path}"])
    full_batch(optimizer, model, 3)
    state = shadow.state_dict()
    full_batch(optimizer, model, 2)  # lost with the machine
    fresh = mlp()
    fresh.load_state_dict(model.state_dict())
    optimizer = sgd(fresh)
    again = attach(fresh, optimizer, loggers=[f"jsonl:{path}"])
    again.load_state_dict(state)
    full_batch(optimizer, fresh, 2)
    again.detach()
    sessions = read_records(path).sessions
    assert [[r.step for r in records] for records in sessions] == [[0, 1, 2, 3, 4, 5], [4, 5]]
