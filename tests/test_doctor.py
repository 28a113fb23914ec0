"""The doctor: right about healthy models of every kind, and not fooled by sick ones."""

from __future__ import annotations

import itertools
import json
import random
import re
import subprocess
import sys

import pytest
import torch
from click.testing import CliRunner
from loops import assert_identical, fingerprint
from torch import nn
from zoo import IN, OUT, ZOO, Float32Only, N, squared

from torch_gfshadow.cli import main
from torch_gfshadow.curvature import Curvature
from torch_gfshadow.doctor import diagnose, load_factory
from torch_gfshadow.doctor.derivatives import check_derivatives
from torch_gfshadow.doctor.setup import made
from torch_gfshadow.layouts import layout_of
from torch_gfshadow.ledger import Ledger
from torch_gfshadow.objective import Objective


def factory_of(make, dtype=torch.float64):
    def factory():
        return (
            make().to(dtype),
            squared,
            (torch.randn(N, IN, dtype=dtype), torch.randn(N, OUT, dtype=dtype)),
        )

    return factory


def plain():
    return nn.Sequential(nn.Linear(IN, 4), nn.Tanh(), nn.Linear(4, OUT))


def healthy_but_for(diagnosis):
    return {f.check for f in diagnosis.findings if f.level == "wrong"}


# ---- healthy models -------------------------------------------------------------------------


@pytest.mark.parametrize("name", ZOO)
def test_every_model_of_the_zoo_is_right_or_refused(name):
    diagnosis = diagnose(factory_of(ZOO[name]), steps=4)
    assert diagnosis.healthy, diagnosis.findings
    assert diagnosis["gradient"].level == "ok"
    assert diagnosis["Hessian product"].level == ("note" if "spectral" in name else "ok")
    assert diagnosis["training untouched"].level == "ok"


@pytest.mark.parametrize("make", [plain, Float32Only])
def test_models_in_float32(make):
    diagnosis = diagnose(factory_of(make, torch.float32), steps=4)
    assert diagnosis.healthy, diagnosis.findings
    precision = "float32" if make is Float32Only else "float64"
    assert f"differences in {precision}" in diagnosis["Hessian product"].found


def vision(model, batch):
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def images(n, size, channels=3):
    return torch.randn(n, channels, size, size), torch.randint(0, 10, (n,))


def resnet18():
    torchvision = pytest.importorskip("torchvision")
    model = torchvision.models.resnet18(num_classes=10)
    return torch.optim.SGD(model.parameters(), lr=1e-4), model, vision, images(4, 32)


def vit():
    torchvision = pytest.importorskip("torchvision")
    model = torchvision.models.VisionTransformer(
        image_size=16,
        patch_size=8,
        num_layers=2,
        num_heads=2,
        hidden_dim=16,
        mlp_dim=32,
        num_classes=10,
    )
    return torch.optim.SGD(model.parameters(), lr=0.01), model, vision, images(8, 16)


def gpt2():
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        vocab_size=50, n_positions=16, n_embd=16, n_layer=2, n_head=2,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    model = transformers.GPT2LMHeadModel(config)
    words = torch.randint(0, 50, (4, 12))

    def language(model, batch):
        return model(input_ids=batch["words"], labels=batch["words"]).loss

    return torch.optim.SGD(model.parameters(), lr=0.01), model, language, {"words": words}


def test_the_derivatives_of_resnet18():
    _, model, objective, data = resnet18()
    layout = layout_of(torch.optim.SGD(model.parameters(), lr=0.1), model)
    judged = Objective(model, objective, data, layout, Ledger())
    gradient, product = check_derivatives(judged, Curvature(judged), lambda: resnet18()[1], seed=0)
    assert gradient.level == "ok"
    assert product.level == "ok"


@pytest.mark.parametrize("factory", [pytest.param(resnet18, marks=pytest.mark.slow), vit, gpt2])
def test_models_people_use(factory):
    diagnosis = diagnose(factory, steps=2)
    assert diagnosis.healthy, diagnosis.findings
    assert diagnosis["gradient"].level == "ok"
    assert diagnosis["Hessian product"].level in ("ok", "unknown")
    assert diagnosis["training untouched"].level == "ok"
    assert 0 < diagnosis.cost["share_of_loop"] < 1


def test_what_it_says_of_cost_is_counted():
    cost = diagnose(factory_of(plain), steps=10).cost
    assert cost["parameters"] == 5 * 4 + 4 + 4 * 3 + 3
    assert cost["forward_passes_per_gradient"] == 1
    assert cost["products_per_probe"] > 0
    assert cost["flow_gradients_per_step"] > 0
    json.dumps(diagnose(factory_of(plain), steps=2).to_dict())


def test_the_callers_random_streams_stand_where_they_stood():
    torch.manual_seed(7)
    random.seed(7)
    model = plain()
    before = fingerprint(model)
    diagnose(factory_of(plain), steps=2)
    assert_identical(before, fingerprint(model))


# ---- what should be known -------------------------------------------------------------------


def test_remarks_name_the_modules():
    def factory():
        model = nn.Sequential(
            nn.Linear(IN, 6),
            nn.ReLU(),
            nn.BatchNorm1d(6),
            nn.ReLU(),
            nn.Dropout(0.2),
            nn.Linear(6, OUT),
        )
        x, y = torch.randn(N, IN), torch.randn(N, OUT)
        return model, squared, [(x[:6], y[:6]), (x[6:], y[6:])]

    diagnosis = diagnose(factory, steps=2)
    assert "2 × ReLU" in diagnosis["kinks"].found
    assert "BatchNorm1d in training mode over 2 batches" in diagnosis["batch statistics"].found
    assert diagnosis["dropout"].found.startswith("Dropout in training mode")
    assert diagnosis["gradient audit"].level == "note"  # another mask every step
    with pytest.raises(KeyError):
        diagnosis["compiled"]
    assert {f.check for f in diagnose(factory_of(plain), steps=2).findings}.isdisjoint(
        {"kinks", "batch statistics", "dropout", "precision"}
    )


def test_an_optimizer_without_a_flow_is_passive_and_says_why():
    def factory():
        model = plain()
        batch = torch.randn(N, IN), torch.randn(N, OUT)
        return torch.optim.Adadelta(model.parameters()), model, squared, batch

    diagnosis = diagnose(factory, steps=2)
    assert diagnosis.healthy
    assert diagnosis["flow"].level == "note"
    assert "Adadelta" in diagnosis["flow"].found


def test_an_optimizer_without_a_step_size_is_the_first_thing_said():
    def factory():
        model = plain()
        batch = torch.randn(N, IN), torch.randn(N, OUT)
        return torch.optim.LBFGS(model.parameters()), model, squared, batch

    diagnosis = diagnose(factory, steps=2)
    assert [f.check for f in diagnosis.findings] == ["optimizer"]
    assert "known size, got torch.optim.lbfgs.LBFGS" in diagnosis["optimizer"].found


def test_a_model_that_rounds_to_float32_inside_is_judged_all_the_same():
    transformers = pytest.importorskip("transformers")

    def factory():
        shape = dict(hidden_size=12, intermediate_size=16, num_hidden_layers=1, vocab_size=31)
        heads = dict(num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=16)
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**shape, **heads))
        words = torch.randint(0, 31, (6, 8))
        batch = {"input_ids": words, "labels": words}
        return model, lambda model, batch: model(**batch).loss, batch

    diagnosis = diagnose(factory, steps=2)
    assert diagnosis["Hessian product"].level == "ok", diagnosis["Hessian product"].found
    assert "'func'" in diagnosis["Hessian product"].found


def test_a_loop_that_fails_by_itself_is_not_laid_at_the_shadows_door():
    def factory():
        model, fn, batch = factory_of(plain)()

        def step():
            raise KeyError("mine")

        return {"model": model, "objective": fn, "data": batch, "train_step": step}

    diagnosis = diagnose(factory, steps=2)
    assert healthy_but_for(diagnosis) == {"training loop"}
    assert "without a shadow raises KeyError: 'mine'" in diagnosis["training loop"].found


def test_the_users_own_step_is_what_the_audit_sees():
    def factory(clip=None, extra=0.0):
        model = plain().double()
        batch = torch.randn(N, IN).double(), torch.randn(N, OUT).double()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)

        def step():
            optimizer.zero_grad()
            loss = squared(model, batch) + extra * sum(p.square().sum() for p in model.parameters())
            loss.backward()
            if clip:
                nn.utils.clip_grad_norm_(model.parameters(), clip)
            optimizer.step()

        return dict(
            model=model, objective=squared, data=batch, optimizer=optimizer, train_step=step
        )

    assert diagnose(factory, steps=2)["gradient audit"].level == "ok"
    clipped = diagnose(lambda: factory(clip=1e-3), steps=2)["gradient audit"]
    assert clipped.level == "note"
    assert "scaled" in clipped.found
    forgotten = diagnose(lambda: factory(extra=0.1), steps=2)["gradient audit"]
    assert "mismatch" in forgotten.found
    assert "make objective(model, batch) the loss trained" in forgotten.advice


# ---- sick models ----------------------------------------------------------------------------


class Cached(nn.Module):
    """Remembers its first weight, and goes on with it wherever its parameters are moved."""

    def __init__(self):
        super().__init__()
        self.layer, self.head, self.kept = nn.Linear(IN, 4), nn.Linear(4, OUT), []

    def forward(self, x):
        if not self.kept:
            self.kept.append(self.layer.weight.detach().clone())
        return self.head(torch.tanh(x @ self.kept[0].T + self.layer(x)))


class Noisy(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(IN, OUT)
        self.calls = itertools.count(1)

    def forward(self, x):
        return self.layer(x) * (1 + 0.1 * next(self.calls))


def test_a_model_that_caches_a_weight_is_caught():
    # the referee's fresh model keeps its first weight; the one judged is put back each time
    diagnosis = diagnose(factory_of(Cached))
    assert healthy_but_for(diagnosis) == {"Hessian product"}
    assert "tensors it keeps outside" in diagnosis["Hessian product"].advice
    assert not diagnosis.cost


def test_a_model_that_is_another_each_call_is_refused():
    diagnosis = diagnose(factory_of(Noisy))
    assert [f.check for f in diagnosis.findings] == ["objective"]
    assert "objective must be deterministic" in diagnosis["objective"].found


def test_a_factory_that_is_another_each_time_is_unknown_not_ok():
    counter = iter(range(100))

    def factory():
        model, fn, (x, y) = factory_of(plain)()
        return model, fn, (x + next(counter), y)

    assert diagnose(factory, steps=2)["training untouched"].level == "unknown"


def test_a_loop_the_shadow_would_disturb_is_caught(monkeypatch):
    original = Objective.loss_and_grad

    def leaky(self, theta, purpose):
        if purpose == "flow":
            torch.rand(1)
        return original(self, theta, purpose)

    monkeypatch.setattr(Objective, "loss_and_grad", leaky)
    diagnosis = diagnose(factory_of(plain), steps=3)
    assert healthy_but_for(diagnosis) == {"training untouched"}
    assert "torch's random state" in diagnosis["training untouched"].found


# ---- bad input and the command --------------------------------------------------------------


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (None, "factory must be one that returns a model to be followed, got a NoneType"),
        ((1, 2), "got a tuple of 2"),
        (("m", "o", "d"), "model must be a torch.nn.Module, got a str"),
        ({"model": 1, "modle": 2}, r"got one with \['model', 'modle'\]"),
    ],
)
def test_what_a_factory_may_return(result, message):
    with pytest.raises(TypeError, match=message):
        diagnose(lambda: result)


def test_an_optimizer_may_come_last_as_training_scripts_return_it():
    model, fn, batch = factory_of(plain)()
    setup = made(lambda: (model, fn, batch, torch.optim.Adam(model.parameters())), 0)
    assert setup.model is model
    assert isinstance(setup.optimizer, torch.optim.Adam)


def test_a_factory_that_wants_arguments():
    with pytest.raises(TypeError, match=r"^factory must be callable without arguments, got one w"):
        diagnose(lambda depth: depth)


def test_a_factory_that_returns_something_else_is_one_line_at_the_command_line(tmp_path):
    (tmp_path / "mine.py").write_text("def make():\n    return 3\n")
    code = "from torch_gfshadow.cli import main; main()"
    command = [sys.executable, "-c", code, "doctor", f"{tmp_path / 'mine.py'}:make"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert run.returncode == 2
    (line,) = run.stderr.splitlines()
    assert line.startswith("gfshadow: factory must be one that returns a model to be followed")


def test_bad_arguments():
    with pytest.raises(TypeError, match="factory must be a function without arguments"):
        diagnose(3)
    with pytest.raises(ValueError, match="steps must be a positive whole number, got 0"):
        diagnose(factory_of(plain), steps=0)


MODULE = """
import torch
from torch import nn

def make():
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    x = torch.randn(16, 3, dtype=torch.float64)
    return model, lambda model, x: (model(x) - x[:, :1]).square().mean(), x

def sick():
    model, objective, x = make()
    return model, lambda model, x: model(x), x
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    (tmp_path / "patients.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield "patients"
    sys.modules.pop("patients", None)


@pytest.mark.parametrize("spelled", ["patients:make", "patients.py:make"])
def test_the_command(module, spelled):
    shown = CliRunner().invoke(main, ["doctor", spelled, "--steps", "3"])
    assert shown.exit_code == 0, shown.output
    assert "Diagnosis: nothing is wrong." in shown.output
    assert "training untouched" in shown.output
    as_json = CliRunner().invoke(main, ["doctor", spelled, "--steps", "3", "--json"])
    told = json.loads(as_json.stdout)
    assert told["healthy"] is True
    assert told["cost"]["parameters"] == 21


def test_the_command_exits_with_one_where_something_is_wrong(module):
    shown = CliRunner().invoke(main, ["doctor", "patients:sick"])
    assert shown.exit_code == 1
    assert "scalar" in shown.output
    assert "Diagnosis: something is wrong" in shown.output


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("patients", "MODULE:FACTORY must be a module and a function in it, got 'patients'"),
        ("nowhere_at_all:make", "MODULE must be a module that can be imported"),
        ("nowhere.py:make", "MODULE must be a module or a file"),
        (
            "patients:mak",
            "FACTORY must be a function in patients, got 'mak'. It has: make, sick.",
        ),
    ],
)
def test_factories_that_are_not_there(module, name, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        load_factory(name)
