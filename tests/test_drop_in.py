"""The compatibility matrix: a shadow beside the user's own loop changes nothing of it."""

import copy
import inspect
import io
import logging
import pickle
import warnings

import pytest
import torch
from loops import (
    MODELS,
    OPTIMIZERS,
    Everything,
    Looked,
    assert_identical,
    data,
    fingerprint,
    flat,
    full_batch,
    loss_of,
    minibatches,
    mlp,
    options_for,
    same,
    seed,
    sgd,
    shadow_of,
)
from torch import nn
from torch.optim import lr_scheduler, swa_utils
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

import torch_gfshadow as gfs
from torch_gfshadow import optim as mirror

FORMS = [
    pytest.param(name, form, id=f"{name}-{form or 'default'}")
    for name, cls in OPTIMIZERS.items()
    for form in (None, "foreach", "fused")
    if form is None or form in inspect.signature(cls).parameters
]
PROBED = {"probes": ("lambda_min", "lambda_max"), "probe_every": 2}


def twice(run):
    """Run without and with a shadow from the same seed; both must leave the same behind."""
    results = []
    for on in (False, True):
        seed()
        results.append(run(on))
    (plain, _), (shadowed, extra) = results
    assert_identical(plain, shadowed)
    return extra


def build(name, form):
    cls = OPTIMIZERS[name]
    model = Looked() if name == "SparseAdam" else Everything()
    params = [p for p in model.parameters() if p.dim() == 2] if name == "Muon" else None
    options = {form: True} if form else {}
    return model, cls(params or model.parameters(), **options)


@pytest.mark.parametrize(("name", "form"), FORMS)
def test_every_optimizer_trains_bit_identically(name, form):
    def run(on):
        model, optimizer = build(name, form)
        shadow = shadow_of(optimizer, model, **PROBED) if on else None
        minibatches(optimizer, model, 2)
        return fingerprint(model, optimizer), shadow

    shadow = twice(run)
    assert [r.step for r in shadow.records] == [0, 1, 2]
    assert shadow.records[0].lambda_max is not None
    assert shadow.errors == []
    first, last = shadow.records[0], shadow.records[-1]
    flows = {"SGD": "gradient_flow", "RMSprop": "rmsprop_flow"}
    flows |= {"Adam": "adam_flow", "AdamW": "adam_flow"}
    if name in flows:
        assert (last.mode, last.flow) == ("reference", flows[name])
        # Adam's field is stiff on this model, and so may be given up in two steps, which is said
        given_up = {"truncated", "behind", "stiff", "mismatch"}
        assert (last.discrepancy or 0.0) > 0 or {r.status for r in shadow.records} & given_up
    else:
        assert (last.mode, last.flow) == ("passive", "none")
        assert first.status == "passive"
        assert f"No continuous limit is registered for {name}" in first.status_detail


@pytest.mark.parametrize("make", MODELS, ids=lambda m: m.__name__)
def test_every_kind_of_model_trains_bit_identically(make):
    def run(on):
        model = make()
        optimizer = sgd(model, weight_decay=0.01)
        shadow = shadow_of(optimizer, model, **PROBED) if on else None
        minibatches(optimizer, model, 3)
        return fingerprint(model, optimizer), shadow

    assert twice(run).records[-1].discrepancy is not None


def test_passively_only_an_optimizer_is_needed():
    def run(on):
        model = mlp()
        optimizer = torch.optim.Adam(model.parameters())
        shadow = gfs.attach(optimizer, on_error="raise") if on else None
        minibatches(optimizer, model, 3)
        return fingerprint(model, optimizer), shadow

    shadow = twice(run)
    assert shadow.status == "passive"
    assert shadow.records[-1].n_grad_evals == 0
    assert shadow.records[-1].local_defect > 0


# -- fail open ------------------------------------------------------------------------------------


def failing_from(step, seen):
    def objective(model, batch):
        if seen["step"] >= step:
            raise OSError("disk on fire")
        return loss_of(model, batch)

    return objective


def test_an_objective_that_starts_raising_disables_the_shadow_with_one_warning():
    def run(on):
        model, seen, shadow = mlp(), {"step": 0}, None
        optimizer = sgd(model)
        if on:
            options = options_for(model) | {"on_error": "disable"}
            shadow = gfs.attach(optimizer, model, failing_from(4, seen), **options)
        optimizer.register_step_post_hook(lambda *_: seen.update(step=seen["step"] + 1))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            minibatches(optimizer, model, 40)
        return fingerprint(model, optimizer), (shadow, caught)

    shadow, caught = twice(run)
    assert [w.category for w in caught] == [RuntimeWarning]
    assert "training goes on untouched. Cause: OSError: disk on fire" in str(caught[0].message)
    assert shadow.status == "disabled"
    assert shadow.summary()["status"] == "disabled"
    assert 4 <= len(shadow.records) < 40
    assert [str(e) for e in shadow.errors] == ["disk on fire"]


class Broken:
    """A logger, and a plugin, that raises."""

    def start(self, header):
        pass

    def write(self, record):
        raise OSError("disk full")

    def finish(self, summary):
        raise OSError("disk full")


class BrokenPlugin:
    @gfs.hookimpl
    def gfshadow_step(self, record, session):
        raise OSError("disk full")


@pytest.mark.parametrize("part", [{"loggers": [Broken()]}, {"plugins": [BrokenPlugin()]}])
def test_a_part_that_raises_is_logged_once_and_the_shadow_goes_on(part, caplog):
    def run(on):
        model = mlp()
        optimizer = sgd(model)
        options = {"on_error": "disable"} | part
        with caplog.at_level(logging.WARNING, "torch_gfshadow"):
            shadow = shadow_of(optimizer, model, **options) if on else None
            full_batch(optimizer, model, 5)
            if shadow:
                shadow.detach()
        return fingerprint(model, optimizer), shadow

    shadow = twice(run)
    assert len([r for r in caplog.records if "disk full" in r.getMessage()]) == 1
    assert shadow.status == "ok"
    assert len(shadow.records) == 6
    cause, *muted = shadow.errors  # a logger that goes on failing is muted, and says so, once
    assert "disk full" in str(cause)
    assert [str(error).endswith("muted for this run.") for error in muted] in ([], [True])


# -- schedules, scalers, closures, copies ---------------------------------------------------------

SCHEDULERS = {
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda e: 0.9**e),
    "MultiplicativeLR": lambda o: lr_scheduler.MultiplicativeLR(o, lambda e: 0.9),
    "StepLR": lambda o: lr_scheduler.StepLR(o, 2),
    "MultiStepLR": lambda o: lr_scheduler.MultiStepLR(o, [2, 4]),
    "ConstantLR": lambda o: lr_scheduler.ConstantLR(o, total_iters=2),
    "LinearLR": lambda o: lr_scheduler.LinearLR(o, total_iters=3),
    "ExponentialLR": lambda o: lr_scheduler.ExponentialLR(o, 0.8),
    "PolynomialLR": lambda o: lr_scheduler.PolynomialLR(o, 5),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, 3),
    "CosineAnnealingWarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 2),
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(o, 0.01, 0.1, 2, cycle_momentum=False),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, 0.1, 20, cycle_momentum=False),
    "ReduceLROnPlateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=0),
    "SequentialLR": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.ConstantLR(o), lr_scheduler.ExponentialLR(o, 0.9)], [2]
    ),
    "ChainedScheduler": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.ConstantLR(o), lr_scheduler.ExponentialLR(o, 0.9)]
    ),
    "SWALR": lambda o: swa_utils.SWALR(o, swa_lr=0.01, anneal_epochs=3),
}


@pytest.mark.parametrize("reload", [False, True])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_schedules_give_the_same_rates_and_time_is_their_sum(name, reload):
    def run(on):
        model = mlp(torch.float64)
        optimizer = sgd(model)
        shadow = shadow_of(optimizer, model) if on else None
        if reload:
            optimizer.load_state_dict(optimizer.state_dict())
        scheduler, rates = SCHEDULERS[name](optimizer), []
        for _ in range(4):
            rates.append(optimizer.param_groups[0]["lr"])
            full_batch(optimizer, model, 1)
            scheduler.step(*([1.0] if name == "ReduceLROnPlateau" else []))
        return fingerprint(model, optimizer) | {"rates": rates}, (shadow, rates)

    shadow, rates = twice(run)
    assert shadow.records[-1].time == pytest.approx(sum(rates), rel=1e-14)
    assert [r.step_size for r in shadow.records[1:]] == rates


def test_gradient_accumulation_and_clipping_are_audited_as_scaled():
    def run(on):
        model = mlp()
        optimizer = sgd(model)
        shadow = shadow_of(optimizer, model) if on else None
        optimizer.zero_grad(set_to_none=False)
        for _ in range(4):
            loss_of(model, data()).backward()
        optimizer.step()
        optimizer.zero_grad()
        loss_of(model, data()).backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), 0.01)
        optimizer.step()
        return fingerprint(model, optimizer), (shadow, 0.01 / float(norm))

    shadow, clipped = twice(run)
    assert shadow.records[1].audit == "scaled 4"
    kind, scale = shadow.records[2].audit.split()
    assert kind == "scaled"
    assert float(scale) == pytest.approx(clipped, rel=1e-3)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("unscale", [False, True])
def test_a_grad_scaler_skips_and_unscales_unseen(fused, unscale):
    def run(on):
        model = mlp()
        optimizer = sgd(model, fused=fused)
        scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
        shadow = shadow_of(optimizer, model) if on else None
        for k in range(4):
            optimizer.zero_grad()
            loss = loss_of(model, data()) * (float("inf") if k == 1 else 1.0)
            scaler.scale(loss).backward()
            if unscale:
                scaler.unscale_(optimizer)
                nn.utils.clip_grad_norm_(model.parameters(), 100.0)
            scaler.step(optimizer)
            scaler.update()
        return fingerprint(model, optimizer) | dict(flat(scaler.state_dict())), shadow

    shadow = twice(run)
    assert [r.step for r in shadow.records] == [0, 1, 2, 3]  # the step with inf was none
    assert {r.audit for r in shadow.records[1:]} == {"match"}
    assert shadow.status == "ok"


@pytest.mark.parametrize("keyword", [False, True])
def test_gradients_made_inside_a_closure_are_seen(keyword):
    def run(on):
        model = mlp()
        optimizer = sgd(model)
        shadow = shadow_of(optimizer, model) if on else None

        def closure():
            optimizer.zero_grad()
            loss = loss_of(model, data())
            loss.backward()
            return loss

        for _ in range(3):
            optimizer.step(closure=closure) if keyword else optimizer.step(closure)
        return fingerprint(model, optimizer), shadow

    shadow = twice(run)
    assert shadow.records[-1].audit == "match"
    assert len(shadow.records) == 4


def test_state_dicts_go_to_and_from_plain_optimizers():
    seed()
    model = mlp()
    optimizer = torch.optim.Adam(model.parameters())
    plain_keys = optimizer.state_dict().keys()
    shadow = shadow_of(optimizer, model)
    full_batch(optimizer, model, 2)
    buffer = io.BytesIO()
    torch.save(optimizer.state_dict(), buffer)
    buffer.seek(0)
    loaded = torch.load(buffer, weights_only=True)
    assert loaded.keys() == plain_keys
    other = torch.optim.Adam(model.parameters())
    other.load_state_dict(loaded)
    optimizer.load_state_dict(other.state_dict())
    pairs = zip(flat(other.state_dict()), flat(optimizer.state_dict()), strict=True)
    assert all(a[0] == b[0] and same(a[1], b[1]) for a, b in pairs)
    full_batch(optimizer, model, 1)
    assert len(shadow.records) == 4


@pytest.mark.parametrize("door", ["attach", "shadowed", "mirror"])
@pytest.mark.parametrize("how", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))])
def test_copies_are_plain_and_unmonitored(door, how):
    seed()
    model = mlp()
    if door == "attach":
        optimizer = gfs.wrap(sgd(model), model, loss_of, **options_for(model))
    else:
        cls = gfs.shadowed(torch.optim.SGD) if door == "shadowed" else mirror.SGD
        options = options_for(model)
        shadow = {"model": model, "objective": loss_of, **options}
        optimizer = cls(model.parameters(), lr=0.1, shadow=shadow)
    twin_model, twin = how((model, optimizer))
    full_batch(twin, twin_model, 2)
    assert type(twin) is torch.optim.SGD
    assert len(gfs.get(optimizer).records) == 1
    with pytest.raises(KeyError):
        gfs.get(twin)
    full_batch(optimizer, model, 2)
    assert len(gfs.get(optimizer).records) == 3


def test_wrap_returns_the_same_object_and_the_mirror_is_an_sgd():
    model = mlp()
    plain = sgd(model)
    assert gfs.wrap(plain, model, loss_of, **options_for(model)) is plain
    assert isinstance(mirror.SGD(model.parameters(), lr=0.1), torch.optim.SGD)
    assert set(OPTIMIZERS) < set(mirror.__all__)
    assert mirror.lr_scheduler is lr_scheduler


def test_wrappers_without_hooks_are_looked_through():
    class Outer:
        def __init__(self, optimizer):
            self.optimizer = optimizer

    model = mlp()
    optimizer = sgd(model)
    shadow = gfs.attach(Outer(Outer(optimizer)), model, loss_of, **options_for(model))
    full_batch(optimizer, model, 2)
    assert len(shadow.records) == 3
    assert gfs.get(Outer(optimizer)) is shadow


def test_other_tools_hooks_fire_exactly_once():
    model = mlp()
    optimizer = sgd(model)
    fired = []
    handles = [
        register_optimizer_step_pre_hook(lambda *_: fired.append("global pre")),
        register_optimizer_step_post_hook(lambda *_: fired.append("global post")),
    ]
    optimizer.register_step_pre_hook(lambda *_: fired.append("pre"))
    shadow_of(optimizer, model)
    optimizer.register_step_post_hook(lambda *_: fired.append("post"))
    full_batch(optimizer, model, 1)
    for handle in handles:
        handle.remove()
    assert fired == ["global pre", "pre", "post", "global post"]


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_compiled_model(backend):
    torch.compiler.reset()

    def run(on):
        model = mlp()
        compiled = torch.compile(model, backend=backend)
        optimizer = sgd(compiled)
        shadow = shadow_of(optimizer, compiled) if on else None
        full_batch(optimizer, compiled, 2)
        return fingerprint(model, optimizer), shadow

    assert twice(run).records[-1].audit == "match"


@pytest.mark.parametrize(
    "caller",
    [torch.no_grad, torch.inference_mode, lambda: torch.autocast("cpu", torch.bfloat16)],
    ids=["no_grad", "inference_mode", "autocast"],
)
def test_step_may_be_called_under_any_mode_and_the_records_do_not_change(caller):
    values = []
    for mode in (torch.enable_grad, caller):
        seed()
        model = mlp()
        optimizer = sgd(model)
        shadow = shadow_of(optimizer, model, **PROBED)
        for _ in range(3):
            optimizer.zero_grad()
            loss_of(model, data()).backward()
            with mode():
                optimizer.step()
        values.append([(r.discrepancy, r.solver_error, r.lambda_max) for r in shadow.records])
    assert values[0] == values[1]


def test_a_phantom_step_of_distributed_checkpointing_is_none():
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

    model = mlp()
    optimizer = sgd(model, momentum=0.9)
    shadow = shadow_of(optimizer, model)
    get_optimizer_state_dict(model, optimizer)
    assert len(shadow.records) == 1


def test_a_moving_average_and_its_batch_norm_update():
    def run(on):
        model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 2))
        optimizer = sgd(model)
        shadow = shadow_of(optimizer, model) if on else None
        average = swa_utils.AveragedModel(model)
        for _ in range(3):
            full_batch(optimizer, model, 1)
            average.update_parameters(model)
        swa_utils.update_bn([data()], average)
        mean = dict(flat(average.state_dict()))
        return fingerprint(model, optimizer) | mean, shadow

    assert twice(run).status == "ok"


def test_two_shadows_of_one_optimizer_and_one_leaves():
    model = mlp()
    optimizer = sgd(model)
    first, second = shadow_of(optimizer, model), shadow_of(optimizer, model)
    assert gfs.get(optimizer) is first
    full_batch(optimizer, model, 2)
    first.detach()
    full_batch(optimizer, model, 2)
    assert (len(first.records), len(second.records)) == (3, 5)


# -- what the run does to itself ------------------------------------------------------------------


@pytest.mark.parametrize("how", ["load_state_dict", "data"])
def test_an_external_edit_is_said_and_the_shadow_starts_anew(how):
    seed()
    model = mlp(torch.float64)
    optimizer = sgd(model)
    shadow = shadow_of(optimizer, model)
    full_batch(optimizer, model, 3)
    if how == "data":
        model[2].bias.data.add_(1.0)
    else:
        model.load_state_dict({k: 0.5 * v for k, v in model.state_dict().items()})
    full_batch(optimizer, model, 2)
    assert [r.status.value for r in shadow.records] == ["ok"] * 4 + ["external_edit", "ok"]
    assert shadow.records[4].discrepancy < 0.2


def test_resync_pause_and_lr_zero():
    seed()
    model = mlp(torch.float64)
    optimizer = sgd(model)
    shadow = shadow_of(optimizer, model, resync_every=4)
    full_batch(optimizer, model, 5)
    assert shadow.records[5].discrepancy < shadow.records[4].discrepancy
    with shadow.paused():
        full_batch(optimizer, model, 2)
    optimizer.param_groups[0]["lr"] = 0.0
    full_batch(optimizer, model, 1)
    assert [r.step for r in shadow.records] == [0, 1, 2, 3, 4, 5, 8]
    assert shadow.records[-1].time == pytest.approx(0.7)
    shadow.resync()
    full_batch(optimizer, model, 1)
    assert shadow.records[-1].discrepancy == 0.0


@pytest.mark.parametrize(
    "options",
    [
        {"weight_decay": 0.3},
        {"maximize": True},
        {"lr": torch.tensor(0.1)},
        {"weight_decay": 0.3, "maximize": True},
    ],
    ids=str,
)
def test_the_discrepancy_of_sgds_options_is_second_order_in_one_step(options):
    found = []
    for rate in (0.02, 0.01):
        seed()
        model = mlp(torch.float64)
        given = options | {"lr": rate if "lr" not in options else torch.tensor(rate)}
        optimizer = sgd(model, **given)
        shadow = shadow_of(optimizer, model, resolution=0.001)
        full_batch(optimizer, model, 1)
        found.append(shadow.records[-1].discrepancy)
        assert shadow.records[-1].audit == "match"
    assert found[0] / found[1] == pytest.approx(4.0, rel=0.1)


def test_an_objective_that_turns_nan_stops_the_shadow_and_not_the_run():
    def run(on):
        model, seen, shadow = mlp(), {"step": 0}, None

        def objective(model, batch):
            return loss_of(model, batch) * (float("nan") if seen["step"] >= 4 else 1.0)

        optimizer = sgd(model)
        if on:
            shadow = gfs.attach(optimizer, model, objective, **options_for(model))
        optimizer.register_step_post_hook(lambda *_: seen.update(step=seen["step"] + 1))
        full_batch(optimizer, model, 40)
        return fingerprint(model, optimizer), shadow

    shadow = twice(run)
    assert shadow.status == "non_finite"
    assert len(shadow.records) == 41


def test_a_subclass_of_sgd_that_raises_midway_goes_on():
    def run(on):
        class Flaky(torch.optim.SGD):
            broken = False

            def step(self, closure=None):
                if self.broken:
                    raise OSError("midway")
                return super().step(closure)

        model = mlp()
        sgd(model)  # torch wraps SGD.step: its hooks fire twice per step from here on
        optimizer = Flaky(model.parameters(), lr=0.1)
        shadow = shadow_of(optimizer, model) if on else None
        full_batch(optimizer, model, 2)
        optimizer.broken = True
        with pytest.raises(OSError, match="midway"):
            full_batch(optimizer, model, 1)
        optimizer.broken = False
        full_batch(optimizer, model, 2)
        return fingerprint(model, optimizer), shadow

    shadow = twice(run)
    assert [r.step for r in shadow.records] == [0, 1, 2, 3, 4]
    assert shadow.records[-1].time == pytest.approx(0.4)


def test_weight_decay_may_differ_between_groups():
    def discrepancy(split):
        seed()
        model = mlp(torch.float64)
        groups = [{"params": model[0].parameters()}, {"params": model[2].parameters()}]
        decays = (0.1, 0.4) if split else (0.4, 0.4)
        for group, decay in zip(groups, decays, strict=True):
            group["weight_decay"] = decay
        optimizer = torch.optim.SGD(groups, lr=0.01)
        shadow = shadow_of(optimizer, model, resolution=0.01)
        full_batch(optimizer, model, 10)
        assert shadow.status == "ok"
        return shadow.records[-1].discrepancy

    different, equal = discrepancy(True), discrepancy(False)
    assert different < 1e-2  # a decay on the wrong group would move it by 0.3·t·‖θ‖ > 1e-2
    assert different != equal


def test_nothing_is_made_on_the_default_device():
    def run(on):
        model = mlp()
        optimizer = sgd(model)
        batch, shadow = data(), None
        options = options_for(model) | PROBED
        with torch.device("meta"):
            if on:
                shadow = gfs.attach(optimizer, model, loss_of, **options)
        for _ in range(3):
            optimizer.zero_grad()
            loss_of(model, batch).backward()
            with torch.device("meta"):
                optimizer.step()
        return fingerprint(model, optimizer), shadow

    assert twice(run).records[-1].discrepancy > 0
