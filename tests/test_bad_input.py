"""Every wrong argument gets one message: what must be, what was got, what to do."""

import pytest
import torch
from loops import OUT, data, loss_of, mlp, seed, sgd, shadow_of
from torch import nn

import torch_gfshadow as gfs
from torch_gfshadow.errors import ObjectiveError


@pytest.fixture
def model():
    seed()
    return mlp()


def attach(model, objective=loss_of, optimizer=None, **options):
    options = {"data": data(), "probes": (), "on_error": "raise"} | options
    return gfs.attach(optimizer or sgd(model), model, objective, **options)


class Wrapper:
    """Steps nothing by itself."""

    def step(self):
        pass


class Hookless(torch.optim.Optimizer):
    def __init__(self):  # no super().__init__(), as some distributed wrappers do
        self.param_groups = []


@pytest.mark.parametrize("wrong", [None, Wrapper(), Hookless(), mlp(), torch.optim.SGD])
def test_something_that_is_no_optimizer(model, wrong):
    name = type(wrong).__name__
    with pytest.raises(
        TypeError, match=rf"optimizer must be .*step hooks, got a .*{name}\. Attach"
    ):
        gfs.attach(wrong, model, loss_of, data=data())


def test_an_optimizer_without_a_step_size(model):
    with pytest.raises(TypeError, match=r"optimizer must be .*known size, got .*LBFGS\. Its line"):
        attach(model, optimizer=torch.optim.LBFGS(model.parameters()))


@pytest.mark.parametrize("wrong", ["yes", 1])
def test_ranks_measure_together_or_they_do_not(model, wrong):
    with pytest.raises(TypeError, match=rf"^distributed must be True.*got {wrong!r}\. Leave"):
        attach(model, distributed=wrong)


@pytest.mark.parametrize("missing", ["model", "objective", "data"])
def test_a_part_of_the_reference_is_missing(model, missing):
    parts = {"model": model, "objective": loss_of, "data": data()} | {missing: None}
    match = rf"^{missing} must be given in mode 'reference', got None\. "
    with pytest.raises(ValueError, match=match):
        gfs.attach(sgd(model), mode="reference", **parts)
    if missing == "data":  # each step's own batches are followed then
        assert gfs.attach(sgd(model), **parts).records[0].mode == "batch"
        return
    match = rf"^{missing} must be given together with (objective|data), got None\. "
    with pytest.raises(ValueError, match=match):
        gfs.attach(sgd(model), **parts)


def test_the_model_of_another_optimizer(model):
    with pytest.raises(ValueError, match=r"^model must be the module .*without 4 of its 4 param"):
        attach(mlp(), optimizer=sgd(model))


def test_a_model_that_is_no_module(model):
    with pytest.raises((TypeError, ValueError), match=r"^model must be a torch.nn.Module, got"):
        gfs.attach(sgd(model), lambda x: x, loss_of, data=data())


def test_an_optimizer_with_nothing_to_train(model):
    model.requires_grad_(False)
    with pytest.raises(ValueError, match=r"^optimizer must be stepping at least one trainable"):
        attach(model)


@pytest.mark.parametrize(
    ("objective", "match"),
    [
        (lambda m, b: m(b[0]), "scalar"),
        (lambda m, b: loss_of(m, b).item(), "scalar|tensor"),
        (lambda m, b: None, "scalar|tensor"),
        (lambda m, b: loss_of(m, b) * float("nan"), "finite"),
        (lambda m, b: loss_of(m, b) + float("inf"), "finite"),
        (lambda m, b: loss_of(m, b).detach(), "graph"),
        (lambda m, b: loss_of(m, b).detach().requires_grad_(), "depends on none"),
        (lambda m, b: m(b[0] @ torch.ones(3, 3)).sum(), "RuntimeError"),
        (lambda m, b: m(b["x"]).sum(), "TypeError"),
    ],
    ids=["vector", "float", "none", "nan", "inf", "detached", "unrelated", "shape", "batch"],
)
def test_an_objective_that_cannot_be_followed(model, objective, match):
    with pytest.raises(ObjectiveError, match=rf"^objective must be .*({match})"):
        attach(model, objective)


def test_an_objective_that_is_not_deterministic(model):
    calls = []

    def drifting(model, batch):
        calls.append(1)
        return loss_of(model, batch) * (1 + 0.1 * len(calls))

    with pytest.raises(ObjectiveError, match=r"^objective must be deterministic.*model\.eval\(\)"):
        attach(model, drifting)


@pytest.mark.parametrize("objective", [nn.MSELoss(), lambda batch: batch, "mse"])
def test_an_objective_of_another_form(model, objective):
    with pytest.raises((TypeError, ObjectiveError), match=r"^objective must be a function"):
        attach(model, objective)


@pytest.mark.parametrize("empty", [[], {}, (torch.zeros(0, 4), torch.zeros(0, OUT))])
def test_empty_data(model, empty):
    with pytest.raises(ValueError, match=r"^data must be non-empty"):
        attach(model, data=empty)


def test_data_that_can_be_walked_once_only(model):
    with pytest.raises(TypeError, match=r"^data must be a batch.*one-shot iterator"):
        attach(model, data=iter([data()]))


@pytest.mark.parametrize("wrong", ["train.csv", 5])
def test_data_that_is_no_data(model, wrong):
    with pytest.raises(TypeError, match=rf"^data must be a batch, .*, got {wrong!r}\."):
        attach(model, data=wrong)


def test_a_callable_that_wants_arguments(model):
    with pytest.raises(TypeError, match=r"^data must be callable without arguments, got <function"):
        attach(model, data=lambda epoch: data())


@pytest.mark.parametrize("rate", [float("nan"), float("inf")])
def test_a_learning_rate_that_is_no_number(model, rate):
    with pytest.raises(ValueError, match=r"^lr must be finite and not negative, got (nan|inf)\."):
        attach(model, optimizer=sgd(model, lr=rate))


@pytest.mark.parametrize("options", [{}, {"mode": "batch"}, {"data": (torch.ones(2),)}], ids=str)
def test_complex_parameters_where_a_flow_is_followed(options):
    model = nn.Module()
    model.weight = nn.Parameter(torch.ones(2, dtype=torch.complex64))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    match = r"^model must be of real parameters where a flow .*complex64\. Attach with mode=\"pass"
    with pytest.raises(ValueError, match=match):
        gfs.attach(optimizer, model, lambda m, b: m.weight.abs().sum(), **options)


def test_a_lazy_model():
    lazy = nn.Sequential(nn.LazyLinear(3))
    with pytest.raises(ValueError, match=r"^model must be initialised, got .*Run one batch"):
        attach(lazy)


@pytest.mark.parametrize("wrong", [True, "model"])
def test_a_shadow_argument_that_is_no_dict(model, wrong):
    with pytest.raises(TypeError, match=r"^shadow must be a dict of attach\(\)'s arguments, got"):
        gfs.optim.SGD(model.parameters(), lr=0.1, shadow=wrong)


def test_data_of_another_dtype(model):
    with pytest.raises(ObjectiveError, match=r"float64, the parameters are torch.float32: cast"):
        attach(model, data=data(torch.float64))


def test_data_on_another_device(model):
    x, y = data()
    with pytest.raises(ObjectiveError, match=r"batch is on meta, the parameters are on cpu: move"):
        attach(model, data=(x.to("meta"), y.to("meta")))


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"mode": "offline"}, r"^mode must be one of .*got 'offline'"),
        ({"on_error": "ignore"}, r"^on_error must be one of"),
        ({"every": 0}, r"^every must be a positive whole number, got 0"),
        ({"every": 2.5}, r"^every must be a positive whole number, got 2\.5"),
        ({"every": True}, r"^every must be a positive whole number, got True"),
        ({"probe_every": -1}, r"^probe_every must be a positive whole number"),
        ({"window": 0}, r"^window must be a positive whole number"),
        ({"window": 3, "every": 2}, r"^window must be at most every = 2, got 3"),
        ({"budget": 0}, r"^budget must be between 0 and 1, got 0"),
        ({"budget": 5}, r"^budget must be between 0 and 1, got 5\. 0\.05 asks"),
        ({"resync_every": 0}, r"^resync_every must be a positive whole number"),
        ({"resolution": 0.0}, r"^resolution must be a positive number"),
        ({"resolution": float("nan")}, r"^resolution must be a positive number"),
        ({"resolution": "fine"}, r"^resolution must be a positive number"),
        ({"resolution": True}, r"^resolution must be a positive number, got True"),
        ({"budget": True}, r"^budget must be between 0 and 1, got True"),
        ({"hvp": "exact", "data": None}, r"^hvp must be a registered name, got 'exact'"),
        ({"flow": "flux"}, r"^flow must be a registered name, got 'flux'"),
        ({"seed": "a"}, r"^seed must be a whole number, got 'a'"),
        ({"audit": "yes"}, r"^audit must be True or False, got 'yes'"),
        ({"hvp": "exact"}, r"must be a registered name, got 'exact'.*double_backward"),
        ({"solver": "dopri55"}, r"dopri55.*Did you mean 'dopri5'"),
        ({"flow": "gradient_flo"}, r"gradient_flo.*Did you mean 'gradient_flow'"),
        ({"probes": ["lambda_mix"]}, r"lambda_mix.*Did you mean 'lambda_m"),
        ({"bounds": ["nothing"]}, r"'nothing'.*Registered"),
        (
            {"flow": "adam_flow"},
            r"^flow must be one that .*'adam_flow' for a SGD.*no 'eps'\. Leave",
        ),
        ({"loggers": ["jsonl"]}, r"^loggers must be 'jsonl:<argument>', got 'jsonl'"),
    ],
    ids=lambda v: next(iter(v.items())).__repr__() if isinstance(v, dict) else "",
)
def test_an_option_out_of_range(model, options, match):
    with pytest.raises(ValueError, match=match):
        attach(model, **options)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"solver": object()}, r"^solver"),
        ({"flow": object()}, r"^flow must be a name or a Flow"),
        ({"probes": [object()]}, r"^probes must be .*lacks"),
        ({"loggers": [print]}, r"^loggers must be .*lacks"),
        ({"probes": "lambda_min"}, r"^probes must be a list"),
        ({"bounds": "theorem2"}, r"^bounds must be a list"),
        ({"loggers": "memory"}, r"^loggers must be a list"),
        ({"plugins": "mine"}, r"^plugins must be a list"),
    ],
    ids=lambda v: next(iter(v)) if isinstance(v, dict) else "",
)
def test_an_option_of_another_kind(model, options, match):
    with pytest.raises(TypeError, match=match):
        attach(model, **options)


@pytest.mark.parametrize("weight", [0, -1.0, float("nan"), "much"])
def test_a_weight_that_is_none_fails_open_with_its_reason(model, weight):
    shadow = attach(model, data=None, on_error="disable")
    with pytest.warns(RuntimeWarning, match=rf"weight must be a positive number, got {weight!r}"):
        assert shadow.observe(data(), weight=weight)
    assert shadow.status == "disabled"


@pytest.mark.parametrize("loader", [None, 3])
def test_a_loader_that_is_none(model, loader):
    with pytest.raises(TypeError, match=r"^loader must be an iterable of batches, got a \w+\."):
        attach(model, data=None).watch(loader)


def test_a_class_that_is_no_optimizer():
    with pytest.raises(TypeError, match=r"^cls must be an optimizer class, got .*Linear"):
        gfs.shadowed(nn.Linear)


def test_get_without_a_shadow(model):
    with pytest.raises(KeyError, match=r"got one without\. Call attach"):
        gfs.get(sgd(model))


def test_a_refused_attach_leaves_the_optimizer_alone(model, tmp_path):
    optimizer = sgd(model)
    (tmp_path / "file").write_text("")
    unwritable = [f"jsonl:{tmp_path}/file/x"]
    for options in ({"every": 0}, {"data": []}, {"loggers": unwritable}):
        with pytest.raises((TypeError, ValueError)):
            attach(model, optimizer=optimizer, **options)
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks
    with pytest.raises(KeyError):
        gfs.get(optimizer)
    assert shadow_of(optimizer, model) is gfs.get(optimizer)


def test_a_flow_nobody_knows_is_said_and_training_goes_on(model):
    shadow = attach(model, optimizer=torch.optim.Adagrad(model.parameters()))
    assert shadow.status == "passive"
    assert "No continuous limit is registered for Adagrad" in shadow.records[-1].status_detail
    shadow = attach(model, optimizer=torch.optim.Adam(model.parameters(), amsgrad=True))
    assert "Adam with amsgrad" in shadow.records[-1].status_detail
