"""Several processes for real, by torchrun over gloo: one flow, one record, nobody left waiting."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import torch_gfshadow as gfs

HERE = Path(__file__).parent
WORKERS = HERE / "distributed"

pytest.importorskip("mlxtend")
pytestmark = [
    pytest.mark.skipif(
        not torch.distributed.is_available(), reason="this torch has no torch.distributed"
    ),
    pytest.mark.xdist_group("distributed"),
]


def launched(worker, out, ranks, *cases):
    """Run the worker's cases on so many ranks; return case → what each rank saw."""
    path = os.pathsep.join([str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node",
         str(ranks), str(WORKERS / f"{worker}.py"), str(out), *cases],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}, capture_output=True,
        text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return {
        case: [json.loads((out / case / f"{rank}.json").read_text()) for rank in range(ranks)]
        for case in cases
    }


def alone(data, thaws=False):
    """The same run in one process on all data."""
    sys.path.insert(0, str(WORKERS))
    try:
        from ddp import LR, STEPS, network, objective, thaw
    finally:
        sys.path.remove(str(WORKERS))
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    with gfs.attach(
        optimizer, model, objective, data=data, probe_every=2, on_error="raise"
    ) as shadow:
        for step in range(STEPS):
            if thaws:
                thaw(model, step)
            optimizer.zero_grad()
            objective(model, data).backward()
            optimizer.step()
    weights = torch.cat([p.detach().reshape(-1) for p in model.parameters()])
    return weights.tolist(), [r.to_dict() for r in shadow.records]


def images():
    sys.path.insert(0, str(WORKERS))
    try:
        from ddp import digits
    finally:
        sys.path.remove(str(WORKERS))
    return digits(120)


@pytest.fixture(scope="module")
def single():
    return alone(images())


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Two ranks; starting them is what takes time, so all their runs are in one launch."""
    cases = ("plain", "shadow", "uneven", "batch", "by_hand", "failing", "thaw")
    out = tmp_path_factory.mktemp("two")
    return {"files": out, **launched("ddp", out, 2, *cases)}


@pytest.fixture(scope="module")
def four(tmp_path_factory):
    return launched("ddp", tmp_path_factory.mktemp("four"), 4, "shadow")


@pytest.fixture(scope="module")
def fsdp(tmp_path_factory):
    return launched("fsdp", tmp_path_factory.mktemp("fsdp"), 2, "refused", "shadow")


NUMBERS = ("time", "loss", "grad_norm", "distance_from_init", "discrepancy", "local_defect")


def assert_same_to_rounding(records, expected):
    assert len(records) == len(expected)
    for ours, theirs in zip(records, expected, strict=True):
        for name in NUMBERS:
            if theirs[name] is None:
                assert ours[name] is None
            else:
                bar = (ours["solver_error"] or 0) if name == "discrepancy" else 0
                assert ours[name] == pytest.approx(theirs[name], rel=1e-8, abs=1e-12 + bar), name
        for end in ("lambda_min", "lambda_max"):
            if theirs[end] is not None:
                within = ours[f"{end}_residual"] + theirs[f"{end}_residual"]
                assert ours[end] == pytest.approx(theirs[end], abs=within + 1e-9)
        assert ours["audit"] == theirs["audit"]


@pytest.mark.parametrize("ranks", ["two", "four"])
def test_the_global_objective_is_that_of_one_process(request, single, ranks):
    told = request.getfixturevalue(ranks)["shadow"]
    weights, records = single
    assert told[0]["weights"] == pytest.approx(weights, rel=1e-9, abs=1e-12)
    assert_same_to_rounding(told[0]["records"], records)
    for other in told[1:]:  # the same bits on every rank
        for a, b in zip(told[0]["records"], other["records"], strict=True):
            assert {k: v for k, v in a.items() if k != "seconds"} == {
                k: v for k, v in b.items() if k != "seconds"
            }


def test_rank_0_alone_writes(two):
    lines = (two["files"] / "shadow" / "records.jsonl").read_text().splitlines()
    steps = [row["step"] for row in map(json.loads, lines) if "step" in row and "time" in row]
    assert steps == [r["step"] for r in two["shadow"][0]["records"]]


def test_training_is_bit_identical_with_and_without(two):
    assert [t["weights"] for t in two["plain"]] == [t["weights"] for t in two["shadow"]]


def test_ranks_with_unequal_shares_still_follow_the_mean_over_all_samples(two, single):
    told = two["uneven"]
    first = told[0]["records"][0]
    assert first["loss"] == pytest.approx(single[1][0]["loss"], rel=1e-9)
    # DDP averages the ranks whatever they hold, so the steps are not the objective's gradient
    assert told[0]["records"][-1]["audit"].startswith("mismatch")


def test_each_ranks_batch_is_part_of_the_step(two):
    a, b = (told["records"][-1] for told in two["batch"])
    assert a["audit"] == "match"
    assert a["discrepancy"] == b["discrepancy"] > 0


def test_gradients_averaged_by_hand_count_as_distributed(two, single):
    assert_same_to_rounding(two["by_hand"][0]["records"], single[1])


def test_layers_that_thaw_midway_are_taken_in_by_all_ranks_at_the_same_step(two):
    weights, records = alone(images(), thaws=True)
    told = two["thaw"]
    assert told[0]["weights"] == pytest.approx(weights, rel=1e-9, abs=1e-12)
    assert_same_to_rounding(told[0]["records"], records)
    for rank in told:
        # frozen after attach, and thawed at step 4
        assert [r["status"] == "new_layout" for r in rank["records"]] == [
            step in (1, 4) for step in range(7)
        ]
        assert not rank["errors"]


def test_a_rank_that_fails_does_not_hang_the_others_and_training_goes_on(two):
    told = two["failing"]
    assert [t["weights"] for t in told] == [t["weights"] for t in two["plain"]]
    assert [t["status"] for t in told] == ["disabled", "disabled"]
    assert "rank 1 has had enough" in told[1]["errors"][0]
    assert "The shadow ends here: rank 1" in told[0]["errors"][0]


def test_fsdp_with_a_whole_twin(fsdp, single):
    told = fsdp["shadow"]
    weights, records = single
    assert told[0]["weights"] == pytest.approx(weights, rel=1e-9, abs=1e-12)
    assert_same_to_rounding(told[0]["records"], records)


def test_fsdp_without_one_is_refused(fsdp):
    told = fsdp["refused"]
    assert "model must be whole on each rank" in told[0]["error"]
    assert "Pass probe_model=" in told[0]["error"]


# ---- in one process -------------------------------------------------------------------------


def attached(model, **options):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x = torch.randn(8, 3)
    return gfs.attach(optimizer, model, lambda m, b: m(b).square().mean(), data=x, **options)


def test_distributed_without_a_process_group_is_refused():
    with pytest.raises(ValueError, match="distributed must be False or None in a run of one"):
        attached(nn.Linear(3, 1), distributed=True)


@pytest.mark.parametrize(
    ("twin", "message"),
    [
        (nn.Linear(2, 1), r"probe_model must be like model, with 'weight' of shape \[1, 3\]"),
        (nn.Sequential(nn.Linear(3, 1)), "probe_model must be like model, .* got none"),
    ],
)
def test_a_twin_of_another_make_is_refused(twin, message):
    with pytest.raises(ValueError, match=message):
        attached(nn.Linear(3, 1), probe_model=twin)
    with pytest.raises(TypeError, match=r"probe_model must be a torch\.nn\.Module"):
        attached(nn.Linear(3, 1), probe_model="twin")


def test_the_twin_is_evaluated_and_the_model_left_alone():
    model, twin = nn.Linear(3, 1), nn.Linear(3, 1)
    seen = []
    model.register_forward_hook(lambda *_: seen.append("model"))
    twin.register_forward_hook(lambda *_: seen.append("twin"))
    with attached(model, probe_model=twin) as shadow:
        assert shadow.records[0].loss is not None
    assert set(seen) == {"twin"}
