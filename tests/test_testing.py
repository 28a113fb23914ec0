"""The kit for plugin authors: it passes what is good and catches what is not."""

import contextlib
import os
import random

import numpy as np
import pytest
import torch

from torch_gfshadow.hookspecs import hookimpl
from torch_gfshadow.loggers import JsonlLogger, MemoryLogger, read_records
from torch_gfshadow.plugins import Plugins
from torch_gfshadow.record import Record
from torch_gfshadow.specs import LoggerSpec, ProbeSpec
from torch_gfshadow.status import Status
from torch_gfshadow.testing import assert_inert, isolated_plugins, make_record, toy_run


class Counter:
    """A plugin that uses every way in: logger, probe, notifications."""

    def __init__(self):
        self.heard, self.logger = [], MemoryLogger()

    @hookimpl
    def gfshadow_loggers(self):
        return [LoggerSpec(name="counter", factory=lambda: self.logger, summary="counts")]

    @hookimpl
    def gfshadow_probes(self):
        return [ProbeSpec(name="norm", factory=NormProbe, summary="‖θ‖")]

    @hookimpl
    def gfshadow_attach(self):
        self.heard.append("attach")

    @hookimpl
    def gfshadow_step(self, record):
        self.heard.append(record.step)

    @hookimpl
    def gfshadow_detach(self):
        self.heard.append("detach")


class NormProbe:
    name = "norm"

    def measure(self, point):
        return {"l2": float(point.theta.norm())}


class Disturbs:
    """A plugin that does ``harm`` at each step, to the model it finds among live objects."""

    def __init__(self, harm):
        self.harm = harm

    @hookimpl
    def gfshadow_step(self, session):
        self.harm()


def models():
    import gc

    alike = (m for m in gc.get_objects() if type(m) is torch.nn.Sequential and len(m) == 5)
    return [m for m in alike if isinstance(m[1], torch.nn.BatchNorm1d)]


def edit(change):
    def harm():
        with torch.no_grad():
            for model in models():
                change(model)

    return harm


# --- records and isolation


def test_a_made_record_is_a_record_with_what_is_asked_for():
    record = make_record(7, loss=2.0, status=Status.STIFF)
    assert isinstance(record, Record)
    assert (record.step, record.loss, record.status) == (7, 2.0, Status.STIFF)
    assert make_record(7) == make_record(7)


@pytest.mark.parametrize("before", [None, "", "tensorboard"])
def test_isolation_restores_the_environment_also_after_an_error(before, monkeypatch):
    name = "TORCH_GFSHADOW_LOAD_PLUGINS"
    if before is None:
        monkeypatch.delenv(name, raising=False)
    else:
        monkeypatch.setenv(name, before)
    with contextlib.suppress(ZeroDivisionError), isolated_plugins():
        assert os.environ[name] == ""
        raise ZeroDivisionError
    assert os.environ.get(name) == before


def test_isolated_from_everything_only_built_ins_remain():
    with isolated_plugins():
        assert {row["plugin"] for row in Plugins().describe()} == {"built-in"}


# --- the toy run


def test_the_toy_run_has_a_record_per_step_and_a_resolved_shadow():
    shadow = toy_run(6)
    assert [record.step for record in shadow.records] == list(range(7))
    last = shadow.records[-1]
    assert last.audit == "match"
    assert last.status is Status.OK
    assert 0 < last.solver_error < last.discrepancy
    assert last.loss < shadow.records[0].loss
    assert shadow.errors == []


def test_the_toy_run_is_the_same_each_time():
    def numbers(shadow):
        return [(record.loss, record.discrepancy) for record in shadow.records]

    assert numbers(toy_run(3)) == numbers(toy_run(3))


def test_the_toy_run_puts_a_plugin_to_use_from_attach_to_detach():
    plugin = Counter()
    shadow = toy_run(3, plugins=[plugin], loggers=["counter"], probes=["norm"], probe_every=1)
    assert plugin.heard == ["attach", 0, 1, 2, 3, "detach"]
    assert [record.step for record in plugin.logger.records] == [0, 1, 2, 3]
    assert plugin.logger.header["configuration"]["loggers"] == ["counter"]
    assert plugin.logger.summary
    assert all(record.extras["norm"]["l2"] > 0 for record in shadow.records)


def test_the_toy_run_writes_a_complete_file(tmp_path):
    shadow = toy_run(3, loggers=[JsonlLogger(tmp_path / "run.jsonl")])
    file = read_records(tmp_path / "run.jsonl")
    assert file.complete
    assert [r.discrepancy for r in file.records] == [r.discrepancy for r in shadow.records]


def test_the_toy_run_leaves_every_random_state_alone():
    torch_state, python_state = torch.get_rng_state(), random.getstate()
    numpy_state = np.random.get_state()[1].tolist()  # noqa: NPY002
    toy_run(2)
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert random.getstate() == python_state
    assert np.random.get_state()[1].tolist() == numpy_state  # noqa: NPY002


def test_the_theorem_bounds_the_toy_run():
    shadow = toy_run(10, bounds=["theorem2"], probe_every=1)
    for record in shadow.records[2:]:
        cell = record.bounds["theorem2"]
        assert not cell["certified"]
        assert record.discrepancy + record.solver_error <= cell["value"] <= 10 * record.discrepancy


# --- inertness


def test_a_shadow_without_plugins_is_inert():
    assert_inert()


def test_a_plugin_that_only_listens_and_measures_is_inert():
    assert_inert(Counter(), loggers=["counter"], probes=["norm"], probe_every=1)


@pytest.mark.parametrize(
    ("harm", "what"),
    [
        (lambda: torch.rand(1), "torch's random state"),
        (random.random, "Python's random state"),
        (lambda: np.random.rand(), "NumPy's random state"),  # noqa: NPY002
        (edit(lambda model: model[0].weight.add_(1e-12)), "parameter 0.weight"),
        (edit(lambda model: model[1].running_mean.mul_(1.001)), "buffer 1.running_mean"),
        (edit(lambda model: model.zero_grad()), "gradient of 0.bias"),
        (edit(lambda model: model.eval()), "the train flag"),
    ],
)
def test_a_plugin_that_disturbs_training_is_caught(harm, what):
    with pytest.raises(AssertionError, match=r"training was disturbed: at step \d+ ") as error:
        assert_inert(Disturbs(harm), probes=[], steps=3)
    assert what in str(error.value)


def test_a_plugin_that_raises_is_seen_unless_the_run_may_mute_it():
    def fail():
        raise ValueError("boom")

    with pytest.raises(ValueError, match="boom"):
        assert_inert(Disturbs(fail))
    assert_inert(Disturbs(fail), on_error="disable")
