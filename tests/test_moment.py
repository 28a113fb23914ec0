"""Minibatch modes: a pass is evaluated again as it was, whatever passes leave on the model."""

from __future__ import annotations

import copy

import pytest
import torch
from loops import assert_identical, fingerprint
from torch import nn
from torch.nn import functional as F  # noqa: N812  (torch's own spelling)

import torch_gfshadow as gfs
from torch_gfshadow._moment import all_places, hold

X = 8


class Queue(nn.Module):
    """Contrast with a queue of the batches before, as MoCo does."""

    def __init__(self):
        super().__init__()
        self.encode = nn.Linear(X, 4)
        self.register_buffer("queue", F.normalize(torch.randn(32, 4), dim=1))
        self.register_buffer("at", torch.zeros(1, dtype=torch.long))

    def forward(self, x):
        z = F.normalize(self.encode(x), dim=1)
        scores = z @ self.queue.clone().T
        start = int(self.at)
        self.queue[start : start + len(x)] = z.detach()
        self.at[0] = (start + len(x)) % 32
        return scores.logsumexp(1).mean()


class Codebook(nn.Module):
    """A codebook that follows what is looked up in it, as in VQ-VAE."""

    def __init__(self):
        super().__init__()
        self.encode, self.decode = nn.Linear(X, 4), nn.Linear(4, X)
        self.register_buffer("codes", torch.randn(6, 4) * 0.5)

    def forward(self, x):
        z = self.encode(x)
        nearest = torch.cdist(z, self.codes).argmin(1)
        found = self.codes[nearest]
        with torch.no_grad():
            for k in nearest.unique().tolist():
                self.codes[k].lerp_(z[nearest == k].mean(0), 0.2)  # refuses half precision
        through = z + (found - z).detach()
        return F.mse_loss(self.decode(through), x) + 0.25 * F.mse_loss(z, found)


class Teacher(nn.Module):
    """A momentum encoder that is moved inside the forward pass, and starts as its twin."""

    def __init__(self):
        super().__init__()
        self.online = nn.Sequential(nn.Linear(X, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 4))
        self.predict = nn.Linear(4, 4)
        self.target = copy.deepcopy(self.online).requires_grad_(False)

    def forward(self, x):
        with torch.no_grad():
            pairs = zip(self.target.parameters(), self.online.parameters(), strict=True)
            for target, online in pairs:
                target.lerp_(online, 0.3)
            z = self.target(0.9 * x)
        return -F.cosine_similarity(self.predict(self.online(x + 0.1)), z).mean()


class Recurrent(nn.Module):
    """A hidden state that goes from one batch to the next, as in truncated backpropagation."""

    def __init__(self):
        super().__init__()
        self.cell, self.head = nn.LSTMCell(X, 6), nn.Linear(6, 1)
        self.state = None

    def forward(self, x):
        h, c = self.cell(x, self.state)
        self.state = h.detach(), c.detach()
        return (self.head(h) - x[:, :1]).square().mean()


class Keeping(nn.Module):
    """Keeps the outputs of an epoch in a list, as Lightning modules do."""

    def __init__(self):
        super().__init__()
        self.net, self.outputs = nn.Sequential(nn.Linear(X, 4), nn.Tanh(), nn.Linear(4, 1)), []

    def forward(self, x):
        loss = (self.net(x) - x[:, :1]).square().mean()
        self.outputs.append(loss.detach())
        return loss


MODELS = [Queue, Codebook, Teacher, Recurrent]


def call(model, batch):
    return model(batch)


def run(make, how=None, steps=8, **options):
    torch.manual_seed(0)
    model, data = make(), torch.randn(64, X)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    shadow = None
    if how is not None:
        shadow = gfs.attach(
            optimizer, model, call, mode="batch", probes=(), on_error="raise", **options
        )
    batches = [data[16 * (k % 4) : 16 * (k % 4) + 16] for k in range(steps)]
    for batch in shadow.watch(batches) if how == "watch" else batches:
        if how == "observe":
            shadow.observe(batch)
        optimizer.zero_grad()
        model(batch).backward()
        optimizer.step()
    return model, shadow


@pytest.mark.parametrize("how", ["observe", "watch"])
@pytest.mark.parametrize("make", MODELS)
def test_the_gradient_of_every_step_is_the_one_used(make, how):
    _, shadow = run(make, how)
    assert [r.audit for r in shadow.records[1:]] == ["match"] * 8
    last = shadow.records[-1]
    assert last.status == "ok", last.status_detail
    assert 0 < last.solver_error < last.discrepancy


@pytest.mark.parametrize("make", MODELS)
def test_windows_see_the_state_of_their_own_steps(make):
    _, shadow = run(make, "observe", steps=12, window=3, every=6)
    assert {r.audit for r in shadow.records[1:]} == {"match"}


@pytest.mark.parametrize("make", MODELS)
def test_what_passes_leave_is_what_they_leave_without_a_shadow(make):
    bare, followed = run(make)[0], run(make, "observe")[0]
    assert_identical(fingerprint(bare), fingerprint(followed))


@pytest.mark.parametrize("probes", [(), ("lambda_max",)])
def test_a_list_of_the_models_grows_by_its_own_passes_only(probes):
    torch.manual_seed(0)
    model, data = Keeping(), torch.randn(64, X)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    shadow = gfs.attach(
        optimizer, model, call, mode="batch", probes=probes, probe_every=1, on_error="raise"
    )
    kept = model.outputs
    for k in range(4):
        shadow.observe(data[16 * k : 16 * k + 16])
        optimizer.zero_grad()
        model(data[16 * k : 16 * k + 16]).backward()
        optimizer.step()
    assert model.outputs is kept
    assert len(kept) == 4
    assert float(torch.stack(kept).sum()) > 0.0
    assert shadow.records[-1].audit == "match"


class Graph(nn.Module):
    """Neighbours as sparse matrices, among buffers and attributes, and a buffer that is NaN."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(X, 3)
        near = (torch.rand(16, 16) > 0.6).float()
        self.register_buffer("near", near.to_sparse())
        self.register_buffer("unset", torch.full((2,), torch.nan))
        self.register_buffer("none", None)
        self.kept = near.to_sparse()

    def forward(self, x):
        h = torch.tanh(self.first(x))
        return (self.near @ h + self.kept @ h).square().mean()


@pytest.mark.parametrize("mode", ["reference", "batch"])
def test_sparse_buffers_are_no_trouble(mode):
    torch.manual_seed(0)
    model, x = Graph(), torch.randn(16, X)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    data = x if mode == "reference" else None
    shadow = gfs.attach(optimizer, model, call, data=data, mode=mode, on_error="raise")
    for _ in range(3):
        if mode == "batch":
            shadow.observe(x)
        optimizer.zero_grad()
        model(x).backward()
        optimizer.step()
    assert shadow.records[-1].audit == "match"
    assert shadow.records[2].lambda_max > 0


def test_what_is_held_is_what_moves():
    _, shadow = run(Teacher, "observe", steps=2)
    places = shadow._tracker.follower._observed.places
    target = dict(shadow._model.target.named_modules())
    assert {(module, key) for module, _, key in places} == {
        (target[name], key) for name in ("0", "1", "3") for key in ("weight", "bias")
    }


def test_large_frozen_parts_and_statistics_are_not_copied():
    base = nn.Linear(9, 9).requires_grad_(False)
    model = nn.Sequential(base, nn.BatchNorm1d(9), nn.Linear(9, 2))
    trained = {id(p) for p in model.parameters() if p.requires_grad}
    assert all_places(model, trained) == []
    model[1].eval()
    assert {key for _, _, key in all_places(model, trained)} == {
        "running_mean", "running_var", "num_batches_tracked",
    }  # fmt: skip
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4).requires_grad_(False))
    held = hold(all_places(model, {id(p) for p in model[0].parameters()}))
    assert [place[2] for place, _ in held] == ["weight", "bias"]
    assert held[0][1] is not model[1].weight
