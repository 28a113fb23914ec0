"""Complex parameters in mode passive: norms over real and imaginary parts, as torch steps them."""

import dataclasses

import pytest
import torch
from loops import assert_identical, fingerprint, seed
from torch import nn

import torch_gfshadow as gfs

REAL = {torch.complex64: torch.float32, torch.complex128: torch.float64}


class Mixed(nn.Module):
    """A complex matrix, a complex number and a real vector."""

    def __init__(self, dtype):
        super().__init__()
        seed()
        self.matrix = nn.Parameter(torch.randn(3, 3, dtype=dtype))
        self.number = nn.Parameter(torch.randn((), dtype=dtype))
        self.real = nn.Parameter(torch.randn(3, dtype=REAL[dtype]))

    def forward(self, x):
        return ((x.to(self.matrix.dtype) @ self.matrix) * self.number).abs() + self.real


def steps(model, optimizer, n):
    x = torch.linspace(-1.0, 1.0, 24).reshape(8, 3).to(model.real.dtype)
    for _ in range(n):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        yield
        optimizer.step()


def flat(tensors):
    real = [torch.view_as_real(t) if t.is_complex() else t for t in tensors]
    return torch.cat([t.detach().reshape(-1) for t in real]).double()


@pytest.mark.parametrize("dtype", list(REAL))
@pytest.mark.parametrize("solver", ["auto", "low"])  # two ways of keeping gradients
@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam])
def test_what_is_measured_is_that_of_real_and_imaginary_parts(dtype, solver, optimizer):
    chosen = gfs.solvers.RKC2(storage="low") if solver == "low" else solver
    model = Mixed(dtype)
    running = optimizer(model.parameters(), lr=0.05)
    shadow = gfs.attach(running, model, mode="passive", solver=chosen, on_error="raise")
    points, gradients = [], []
    for _ in steps(model, running, 6):
        gradients.append(flat([p.grad for p in model.parameters()]))
        points.append(flat(model.parameters()))
    points.append(flat(model.parameters()))
    close = dict(rel=2e-4 if dtype == torch.complex64 else 1e-9)
    walked = 0.0
    for k, record in enumerate(shadow.records[1:], 1):
        grad, before = gradients[k - 1], gradients[k - 2] if k > 1 else None
        walked += float((points[k] - points[k - 1]).norm())
        assert record.grad_norm == pytest.approx(float(grad.norm()), **close)
        assert record.distance_from_init == pytest.approx(
            float((points[k] - points[0]).norm()), **close
        )
        run = record.extras["run"]
        assert run["path_length"] == pytest.approx(walked, **close)
        if before is not None:
            bend, moved = grad - before, points[k - 1] - points[k - 2]
            assert record.local_defect == pytest.approx(float(bend.norm()), **close)
            curvature = float(bend @ moved / (moved @ moved))
            assert run["secant_curvature"] == pytest.approx(curvature, rel=2e-3)
    assert shadow.status == "passive"


def test_training_is_not_touched_and_a_saved_run_goes_on():
    def run(on, resumed=False):
        model = Mixed(torch.complex128)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
        shadow = gfs.attach(optimizer, model, mode="passive", on_error="raise") if on else None
        for k, _ in enumerate(steps(model, optimizer, 8)):
            if k == 4:
                model.real.requires_grad_(False)
            if resumed and k == 6:
                state = shadow.state_dict()
                shadow.detach()
                shadow = gfs.attach(optimizer, model, mode="passive", on_error="raise")
                shadow.load_state_dict(state)
        rows = [dataclasses.replace(r, seconds=0.0) for r in shadow.records] if on else []
        return fingerprint(model, optimizer), rows

    (plain, _), (beside, rows), (_, again) = run(False), run(True), run(True, resumed=True)
    assert_identical(plain, beside)
    assert [r.status.value for r in rows].count("new_layout") == 1
    assert rows == again


def test_an_edit_of_the_imaginary_part_is_seen():
    model = Mixed(torch.complex128)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    shadow = gfs.attach(optimizer, on_error="raise")
    for k, _ in enumerate(steps(model, optimizer, 3)):
        if k == 2:
            model.matrix.data += 1j
    assert [r.status.value for r in shadow.records] == ["passive"] * 3 + ["external_edit"]


def test_one_that_joins_a_run_with_a_flow_ends_the_flow_and_not_the_run():
    model = Mixed(torch.complex128)
    optimizer = torch.optim.SGD([model.real], lr=0.05)
    shadow = gfs.attach(
        optimizer,
        model,
        lambda m, x: m(x).square().mean(),
        data=torch.linspace(-1.0, 1.0, 24, dtype=torch.float64).reshape(8, 3),
        probes=(),
        on_error="raise",
    )
    for k, _ in enumerate(steps(model, optimizer, 4)):
        if k == 2:
            optimizer.add_param_group({"params": [model.matrix]})
    assert [r.status.value for r in shadow.records[:4]] == ["ok", "ok", "ok", "new_layout"]
    assert shadow.status == "passive"
    assert "must be of real parameters where a flow is followed" in shadow.records[-1].status_detail
