"""Forked and spawned children of a process with a shadow: they neither write nor measure."""

import copy
import json
import pickle
import subprocess
import sys
import textwrap

import pytest
import torch
from loops import data, loss_of, mlp, sgd, shadow_of

from torch_gfshadow.loggers import read_records

PARENT = """
    import multiprocessing, os, sys, warnings
    import torch
    from torch import nn
    from torch.utils.data import DataLoader, TensorDataset
    import torch_gfshadow as gfs

    warnings.simplefilter("error")
    x, y = torch.linspace(-1, 1, 24).reshape(8, 3), torch.ones(8, 1)

    def objective(model, batch):
        return (model(batch[0]) - batch[1]).square().mean()

    def step(model, optimizer):
        optimizer.zero_grad()
        objective(model, (x, y)).backward()
        optimizer.step()

    class Heard:
        @gfs.hookimpl
        def gfshadow_step(self, record, session):
            print("heard", record.step, file=sys.stderr)

        @gfs.hookimpl
        def gfshadow_detach(self, session):
            print("ended", file=sys.stderr)

    def build(**options):
        model = nn.Linear(3, 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        loggers = ["jsonl:run.jsonl", "csv:run.csv", "console"]
        shadow = gfs.attach(
            optimizer, model, objective, data=(x, y), loggers=loggers, plugins=[Heard()],
            probes=(), on_error="raise",
        )
        return model, optimizer, shadow
"""


def run(folder, code):
    source = textwrap.dedent(PARENT) + textwrap.dedent(code)
    (folder / "script.py").write_text(source)
    done = subprocess.run(
        [sys.executable, "script.py"], cwd=folder, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    return done


@pytest.mark.skipif(sys.platform == "win32", reason="no fork there")
def test_forked_children_write_nowhere_and_the_parent_goes_on(tmp_path):
    code = """
        model, optimizer, shadow = build()
        step(model, optimizer)

        def trains_on():
            for _ in range(3):
                shadow.observe((x, y))
                step(model, optimizer)
            shadow.resync()
            shadow.detach()
            assert shadow.status == "disabled"
            assert len(shadow.records) == 2
            assert "was forked from it" in str(shadow.errors[-1])
            own = gfs.attach(optimizer, model, objective, data=(x, y), probes=(), on_error="raise")
            step(model, optimizer)
            assert gfs.get(optimizer) is own and own.status == "ok" and len(own.records) == 2

        child = os.fork()
        if child == 0:
            trains_on()
            sys.exit(0)  # through every handler that runs at exit
        assert os.waitpid(child, 0)[1] == 0

        process = multiprocessing.get_context("fork").Process(target=trains_on)
        process.start()
        process.join()
        assert process.exitcode == 0

        loader = DataLoader(
            TensorDataset(x, y), batch_size=8, num_workers=2, multiprocessing_context="fork"
        )
        for batch in shadow.watch(loader):
            step(model, optimizer)
        child = os.fork()
        if child == 0:
            with shadow:
                raise SystemExit(0)
        assert os.waitpid(child, 0)[1] == 0
        step(model, optimizer)
        shadow.detach()
    """
    done = run(tmp_path, code)
    assert [record.step for record in read_records(tmp_path / "run.jsonl").records] == [0, 1, 2, 3]
    lines = (tmp_path / "run.jsonl").read_text().splitlines()
    assert len(lines) == 6  # the header, four records, the summary
    assert json.loads(lines[-1])
    assert len((tmp_path / "run.csv").read_text().splitlines()) == 5
    said = done.stderr.splitlines()
    heard = [line for line in said if line.startswith(("heard", "ended"))]
    assert heard == ["heard 0", "heard 1", "heard 2", "heard 3", "ended"]
    assert (
        sum(line.lstrip()[:2] in ("0 ", "1 ", "2 ", "3 ") for line in done.stderr.splitlines()) == 4
    )


def test_a_spawned_child_gets_a_plain_optimizer(tmp_path):
    code = """
        def trains_on(model, optimizer):
            step(model, optimizer)
            try:
                gfs.get(optimizer)
            except KeyError:
                sys.exit(7)

        if __name__ == "__main__":
            model, optimizer, shadow = build()
            step(model, optimizer)
            context = multiprocessing.get_context("spawn")
            process = context.Process(target=trains_on, args=(model, optimizer))
            process.start()
            process.join()
            assert process.exitcode == 7
            step(model, optimizer)
            shadow.detach()
    """
    done = run(tmp_path, code)
    assert [record.step for record in read_records(tmp_path / "run.jsonl").records] == [0, 1, 2]
    assert done.stderr.count("heard") == 3
    assert done.stderr.count("ended") == 1


@pytest.mark.parametrize("how", [copy.copy, copy.deepcopy, pickle.dumps])
def test_a_shadow_is_neither_copied_nor_sent(how):
    model = mlp(torch.float64)
    optimizer = sgd(model)
    shadow = shadow_of(optimizer, model)
    with pytest.raises(TypeError, match=r"^shadow must be left where it is.*state_dict\(\)"):
        how(shadow)
    loss_of(model, data(torch.float64)).backward()
    optimizer.step()
    assert shadow.status == "ok"
