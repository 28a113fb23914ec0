"""torch_gfshadow.optim beside torch.optim: one import changed, everything else as it was."""

import contextlib
import io
import warnings

import pytest
import torch
from loops import OPTIMIZERS, assert_identical, data, fingerprint, flat, loss_of, mlp, same, seed
from torch import nn
from torch.optim import lr_scheduler

import torch_gfshadow as gfs
from torch_gfshadow import optim as mirror


def shadow(model, **options):
    dtype = next(model.parameters()).dtype
    given = {"data": data(dtype), "probes": (), "on_error": "raise"}
    return dict(model=model, objective=loss_of) | given | options


def built(side, model, name="SGD", **options):
    """The optimizer of torch, or ours with a shadow."""
    if side == "torch":
        return getattr(torch.optim, name)(model.parameters(), **options)
    return getattr(mirror, name)(model.parameters(), shadow=shadow(model), **options)


def trained(optimizer, model, steps, scheduler=None):
    for _ in range(steps):
        optimizer.zero_grad()
        loss = loss_of(model, data(next(model.parameters()).dtype))
        loss.backward()
        optimizer.step()
        if isinstance(scheduler, lr_scheduler.ReduceLROnPlateau):
            scheduler.step(loss.detach())
        elif scheduler is not None:
            scheduler.step()


def sides(run):
    """Run with each of the two; assert that they cannot be told apart; return ours."""
    (plain, _), (ours, optimizer) = run("torch"), run("ours")
    assert_identical(plain, ours)
    assert gfs.get(optimizer).status in ("ok", "passive", "mismatch")
    return optimizer


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_every_class_is_its_original_by_isinstance_name_and_text(name):
    model = mlp()
    plain = getattr(torch.optim, name)
    params = [p for p in model.parameters() if p.dim() == 2]  # Muon takes nothing else
    theirs, ours = plain(params, lr=0.01), getattr(mirror, name)(params, lr=0.01)
    assert isinstance(ours, plain)
    assert type(ours).__name__ == plain.__name__
    assert type(ours).__module__ == plain.__module__
    assert "shadowed" in repr(type(ours))
    assert repr(ours) == repr(theirs)
    assert_identical(dict(flat(theirs.state_dict())), dict(flat(ours.state_dict())))
    assert ours.defaults == theirs.defaults
    with pytest.raises(KeyError):  # nobody asked for a shadow
        gfs.get(ours)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("SGD", {"lr": 0.1, "momentum": 0.9, "nesterov": True}),
        ("Adam", {"lr": 0.01}),
        ("AdamW", {"lr": 0.01, "amsgrad": True}),
        ("RMSprop", {"lr": 0.01}),
        ("Adagrad", {"lr": 0.1}),
    ],
)
def test_states_go_both_ways_in_the_middle_of_a_run(name, options):
    def run(first, second):
        seed()
        model = mlp()
        optimizer = built(first, model, name, **options)
        trained(optimizer, model, 3)
        file = io.BytesIO()
        torch.save(optimizer.state_dict(), file)
        file.seek(0)
        optimizer = built(second, model, name, **options)
        optimizer.load_state_dict(torch.load(file, weights_only=True))
        trained(optimizer, model, 3)
        return fingerprint(model, optimizer)

    plain = run("torch", "torch")
    for pair in (("ours", "torch"), ("torch", "ours"), ("ours", "ours")):
        assert_identical(plain, run(*pair))


@pytest.mark.parametrize("first", ["torch", "ours"])
def test_the_state_of_a_shadow_goes_from_one_door_to_the_other(first):
    def opened(side, model):
        if side == "torch":
            optimizer = built(side, model, lr=0.1)
            return optimizer, gfs.attach(optimizer, **shadow(model))
        optimizer = built(side, model, lr=0.1)
        return optimizer, gfs.get(optimizer)

    seed()
    model = mlp(torch.float64)
    optimizer, before = opened(first, model)
    trained(optimizer, model, 4)
    saved = before.state_dict()
    trained(optimizer, model, 3)
    whole = [r.discrepancy for r in before.records]
    before.detach()
    seed()
    model = mlp(torch.float64)
    trained(built("torch", model, lr=0.1), model, 4)
    optimizer, after = opened("ours" if first == "torch" else "torch", model)
    after.load_state_dict(saved)
    trained(optimizer, model, 3)
    assert [r.discrepancy for r in after.records] == whole


SCHEDULERS = {
    "step": lambda o: lr_scheduler.StepLR(o, 2),
    "cosine": lambda o: lr_scheduler.CosineAnnealingLR(o, 5),
    "warm restarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 3),
    "one cycle": lambda o: lr_scheduler.OneCycleLR(o, 0.2, total_steps=8),
    "cyclic": lambda o: lr_scheduler.CyclicLR(o, 0.01, 0.1, step_size_up=2),
    "plateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=0),
    "sequence": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.ConstantLR(o, 0.1), lr_scheduler.ExponentialLR(o, 0.9)], milestones=[3]
    ),
    "swa": lambda o: torch.optim.swa_utils.SWALR(o, 0.05, anneal_epochs=2),
}


@pytest.mark.parametrize("kind", list(SCHEDULERS))
def test_schedulers_take_it(kind):
    def run(side):
        seed()
        model = mlp()
        optimizer = built(side, model, lr=0.1, momentum=0.5)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            warnings.filterwarnings("ignore", "The epoch parameter")  # of SequentialLR to others
            scheduler = SCHEDULERS[kind](optimizer)
            trained(optimizer, model, 6, scheduler)
        state = {f"schedule {key}": v for key, v in flat(scheduler.state_dict())}
        found = fingerprint(model, optimizer)
        return found | {k: v for k, v in state.items() if not callable(v)}, optimizer

    sides(run)


@pytest.mark.parametrize("clip", [False, True])
def test_the_gradient_scaler_takes_it(clip):
    def run(side):
        seed()
        model = mlp()
        optimizer, scaler = built(side, model, lr=0.1), torch.amp.GradScaler("cpu", init_scale=64.0)
        for k in range(5):
            optimizer.zero_grad()
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss = loss_of(model, data()) * (float("inf") if k == 2 else 1.0)
            scaler.scale(loss).backward()
            if clip:
                scaler.unscale_(optimizer)
                nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            scaler.step(optimizer)
            scaler.update()
        return fingerprint(model, optimizer) | dict(flat(scaler.state_dict())), optimizer

    optimizer = sides(run)
    assert [r.step for r in gfs.get(optimizer).records] == [0, 1, 2, 3, 4]


def test_accelerate_takes_it():
    accelerate = pytest.importorskip("accelerate")

    def run(side):
        accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
        seed()
        accelerator = accelerate.Accelerator(cpu=True)
        model = mlp()
        optimizer = built(side, model, lr=0.1, momentum=0.5)
        schedule = lr_scheduler.StepLR(optimizer, 2)
        wrapped, prepared, schedule = accelerator.prepare(model, optimizer, schedule)
        for _ in range(4):
            prepared.zero_grad()
            accelerator.backward(loss_of(wrapped, data()))
            accelerator.clip_grad_norm_(wrapped.parameters(), 1.0)
            prepared.step()
            schedule.step()
        return fingerprint(model, prepared.optimizer), prepared

    optimizer = sides(run)
    assert len(gfs.get(optimizer).records) == 5


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_lightning_takes_it_and_logs_under_the_same_names(tmp_path):
    L = pytest.importorskip("lightning.pytorch")

    class Module(L.LightningModule):
        def __init__(self, side):
            super().__init__()
            self.side, self.body = side, mlp()

        def training_step(self, batch, index):
            return loss_of(self.body, batch)

        def configure_optimizers(self):
            options = dict(lr=0.1, momentum=0.5)
            if self.side == "torch":
                optimizer = torch.optim.SGD(self.body.parameters(), **options)
            else:
                optimizer = mirror.SGD(self.body.parameters(), shadow=shadow(self.body), **options)
            self.kept = optimizer
            return [optimizer], [lr_scheduler.StepLR(optimizer, 1, 0.5)]

    logged = {}

    def run(side):
        seed()
        module = Module(side)
        loader = torch.utils.data.DataLoader(
            torch.utils.data.TensorDataset(*data()), batch_size=12, shuffle=True
        )
        monitor = L.callbacks.LearningRateMonitor(logging_interval="step")
        trainer = L.Trainer(
            max_epochs=2,
            accelerator="cpu",
            logger=L.loggers.CSVLogger(tmp_path, name=side),
            callbacks=[monitor],
            default_root_dir=tmp_path / side,
            enable_progress_bar=False,
            enable_model_summary=False,
            log_every_n_steps=1,
        )
        with contextlib.redirect_stdout(io.StringIO()):
            trainer.fit(module, loader)
        logged[side] = monitor.lrs
        saved = torch.load(trainer.checkpoint_callback.best_model_path, weights_only=False)
        found = fingerprint(module, module.kept)
        return found | {f"saved {k}": v for k, v in flat(saved["optimizer_states"])}, module.kept

    optimizer = sides(run)
    assert len(gfs.get(optimizer).records) == 5
    assert logged["torch"] == logged["ours"] != {}
    assert same(logged["torch"], logged["ours"])
