"""Gradients that are not the gradient of a function: what of the Hessian is left, and said."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import nn
from zoo import IN, NOT_A_GRADIENT, OUT, N, Padded, layout_of, make, squared

import torch_gfshadow as gfs
from torch_gfshadow._symmetry import asymmetry, padding_rows, without
from torch_gfshadow.curvature import Curvature
from torch_gfshadow.doctor import diagnose
from torch_gfshadow.eigen import extreme_eigenpairs
from torch_gfshadow.errors import NotAGradientError
from torch_gfshadow.ledger import Ledger
from torch_gfshadow.objective import Objective
from torch_gfshadow.probes.base import Point
from torch_gfshadow.products import HessianProduct

F64 = torch.float64


def objective_of(name):
    model, batch = make(name)
    return Objective(model, squared, batch, layout_of(model), Ledger())


def not_a_gradient(name, dtype=F64):
    torch.manual_seed(2)
    model = NOT_A_GRADIENT[name]().to(dtype)
    return model, (torch.randn(N, IN, dtype=dtype), torch.randn(N, OUT, dtype=dtype))


def jacobian(objective, step=1e-6):
    """Return the whole Jacobian of the gradient, by differences."""
    theta = objective.layout.current()
    columns = []
    for e in torch.eye(len(theta), dtype=F64):
        ahead, behind = (objective.loss_and_grad(theta + h * e, "x")[1] for h in (step, -step))
        columns.append((ahead - behind) / (2 * step))
    return torch.stack(columns, 1)


# ---- padding rows ---------------------------------------------------------------------------


def test_padding_rows_are_found_by_module():
    model = nn.ModuleDict(
        {"a": nn.Linear(2, 3), "b": nn.Embedding(5, 4, padding_idx=-2), "c": nn.Embedding(3, 2)}
    )
    start = 2 * 3 + 3 + 3 * 4  # in front of row 3, which -2 is
    assert padding_rows(model, layout_of(model)) == [(start, start + 4)]
    assert padding_rows(model["a"], layout_of(model["a"])) == []
    frozen = nn.Embedding(5, 4, padding_idx=0).requires_grad_(False)
    assert padding_rows(nn.Sequential(frozen, model["a"]), layout_of(model["a"])) == []
    assert without(torch.ones(5), [(1, 3)]).tolist() == [1.0, 0.0, 0.0, 1.0, 1.0]


@pytest.mark.parametrize("backend", ["auto", "func", "double_backward", "difference"])
def test_the_hessian_is_that_of_what_the_flow_moves(backend):
    objective = objective_of("padded")
    rows = padding_rows(objective.sandbox.model, objective.layout)
    theta = objective.layout.current()
    full = jacobian(objective)
    keep = without(torch.ones_like(theta), rows)
    assert float((full - full.T).norm()) > 0.01 * float(full.norm())  # the field is no gradient
    dense = keep[:, None] * full * keep
    assert torch.allclose(dense, dense.T, atol=1e-7)
    curvature = Curvature(objective, backend)
    product = curvature.at(theta)
    assert product.symmetric
    assert list(product.still) == rows
    for seed in range(3):
        v = torch.randn(len(theta), generator=torch.Generator().manual_seed(seed), dtype=F64)
        assert float((product(v) - dense @ v).norm()) < 1e-6 * float(v.norm())
    point = Point(
        step=0, time=0.0, step_size=0.1, theta=theta, objective=objective, curvature=curvature
    )
    ends = point.spectrum(tol=1e-6, max_products=200)
    true = torch.linalg.eigvalsh(dense)
    assert ends.lambda_min == pytest.approx(float(true[0]), rel=1e-5)
    assert ends.lambda_max == pytest.approx(float(true[-1]), rel=1e-5)


def test_records_of_a_padded_model_hold_eigenvalues_and_the_row_stays():
    model, batch = make("padded")
    start = model.table.weight[0].detach().clone()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    shadow = gfs.attach(
        optimizer, model, squared, data=batch, probe_every=2, on_error="raise", hvp="difference"
    )
    for _ in range(4):
        optimizer.zero_grad()
        squared(model, batch).backward()
        optimizer.step()
    assert torch.equal(model.table.weight[0], start)
    last = shadow.records[-1]
    assert last.audit == "match"
    assert last.lambda_min_residual < 0.02 * max(abs(last.lambda_min), abs(last.lambda_max))


# ---- fields that are no gradient ------------------------------------------------------------


def test_the_asymmetry_of_a_matrix_has_its_closed_form():
    torch.manual_seed(0)
    a = torch.randn(6, 6, dtype=F64)
    symmetric, turn = a + a.T, a - a.T
    directions = [d / d.norm() for d in torch.randn(2, 6, dtype=F64)]

    def of(j, noise=0.0):
        return asymmetry(lambda v, scale: (j + noise * scale * turn) @ v, directions)

    assert of(symmetric) == (pytest.approx(0.0, abs=1e-12), 6)
    for size in (0.01, 0.5):
        j = symmetric + size * turn
        expected = max(
            abs(2 * (turn @ d) @ (turn @ d) * size**2 + 2 * size * d @ symmetric @ turn @ d)
            / float((j @ d) @ (j @ d))
            for d in directions
        )
        assert of(j)[0] == pytest.approx(float(expected), rel=1e-9)
    assert of(symmetric, noise=0.01)[0] < 0.02  # products that are not sure of it say nothing
    assert asymmetry(lambda v, scale: 0.0 * v, directions)[0] == 0.0
    assert asymmetry(lambda v, scale: v * torch.nan, directions)[0] == 0.0


@pytest.mark.parametrize("name", NOT_A_GRADIENT)
def test_eigenvalues_of_what_is_no_hessian_are_refused_and_the_flow_is_followed(name, caplog):
    model, batch = not_a_gradient(name)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    with caplog.at_level(logging.WARNING):
        shadow = gfs.attach(
            optimizer, model, squared, data=batch, probe_every=2, on_error="raise",
            probes=["lambda_min", "lambda_max", gfs.probes.SLQ(steps=4), "gradient_norm"],
        )  # fmt: skip
        for _ in range(6):
            optimizer.zero_grad()
            squared(model, batch).backward()
            optimizer.step()
    for record in shadow.records:
        assert record.lambda_min is record.lambda_max is None
        assert "slq" not in record.extras
    last = shadow.records[-1]
    assert last.audit == "match"
    assert last.discrepancy is not None
    refusals = [r for r in caplog.records if "that of a function" in r.getMessage()]
    assert len(refusals) == 1  # once, not at every probe
    assert "probes=()" in refusals[0].getMessage()
    assert [type(e) for e in shadow.errors] == [NotAGradientError]


@pytest.mark.parametrize("name", NOT_A_GRADIENT)
def test_products_with_what_is_no_hessian_are_still_the_derivative_of_the_gradient(name):
    model, batch = not_a_gradient(name)
    objective = Objective(model, squared, batch, layout_of(model), Ledger())
    curvature = Curvature(objective)
    product = curvature.at(objective.layout.current())
    assert curvature.backend == "difference"
    assert not product.symmetric
    v = torch.randn(objective.layout.dim, dtype=F64)
    reference = jacobian(objective) @ v
    assert float((product(v) - reference).norm()) < 1e-5 * float(reference.norm())
    saved = curvature.state_dict()
    resumed = Curvature(objective)
    resumed.load_state_dict(saved)
    again = resumed.at(objective.layout.current())
    assert (again.asymmetry, list(again.still)) == (product.asymmetry, list(product.still))


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("name", NOT_A_GRADIENT)
def test_the_doctor_says_that_there_is_no_hessian(name, dtype):
    def factory():
        model, batch = not_a_gradient(name, dtype)
        return model, squared, batch

    diagnosis = diagnose(factory, steps=4)
    assert diagnosis.healthy, diagnosis.findings
    product = diagnosis["Hessian product"]
    assert product.level == "note"
    assert "Jacobian is not symmetric" in product.found
    assert "probes=()" in product.advice
    assert diagnosis["training untouched"].level == "ok"
    assert diagnosis.cost["flow_gradients_per_step"] > 0


def test_the_doctor_knows_padding():
    def factory():
        model, batch = make("padded")
        return model, squared, batch

    diagnosis = diagnose(factory, steps=4)
    assert diagnosis["Hessian product"].level == "ok"
    assert "leaves them where they are" in diagnosis["padding"].found


def test_eigenvalues_of_what_is_nearly_symmetric_are_those_of_its_symmetric_part():
    torch.manual_seed(0)
    model = Padded(tied=True).double()
    batch = torch.randn(N, IN, dtype=F64), torch.randn(N, OUT, dtype=F64)
    objective = Objective(model, squared, batch, layout_of(model), Ledger())
    full = jacobian(objective)
    assert 0.03 < float((full - full.T).norm() / full.norm()) < 0.05
    point = Point(
        step=0, time=0.0, step_size=0.1, theta=objective.layout.current(), objective=objective,
        curvature=Curvature(objective),
    )  # fmt: skip
    ends = point.spectrum()
    true = torch.linalg.eigvalsh((full + full.T) / 2)
    assert abs(ends.lambda_min - float(true[0])) < ends.residual_min
    assert abs(ends.lambda_max - float(true[-1])) < ends.residual_max
    assert max(ends.residual_min, ends.residual_max) < 0.1 * float(true[-1])


class Given(HessianProduct):
    """The products of a matrix."""

    def __init__(self, objective, matrix, asymmetry):
        super().__init__(objective, torch.zeros(len(matrix), dtype=F64), "probes")
        self.matrix, self.asymmetry = matrix, asymmetry

    def _product(self, vector):
        return self.matrix @ vector


def test_what_random_directions_do_not_show_the_search_finds():
    objective = objective_of("mlp")
    d = 40
    s = torch.diag(torch.linspace(-1.0, 1.0, d, dtype=F64))
    s[0, 0] = 30.0
    crooked = s.clone()
    crooked[0, 1:] += 1.0
    crooked[1:, 0] -= 1.0

    def ends(matrix, asymmetry):
        product = Given(objective, matrix, asymmetry)
        return extreme_eigenpairs(product.eigen, d, dtype=F64, device="cpu")

    assert ends(s, 0.0).lambda_max == pytest.approx(30.0, rel=1e-6)
    assert ends(s, 0.01).lambda_max == pytest.approx(30.0, rel=1e-6)
    assert ends(crooked, 1e-9) is not None  # nobody doubted it
    with pytest.raises(NotAGradientError, match="by more than 10%"):
        ends(crooked, 0.01)
    with pytest.raises(NotAGradientError, match="by more than 5%"):
        ends(s, 0.06)


def test_a_nearly_symmetric_jacobian_has_no_lower_bound_to_vouch_for():
    torch.manual_seed(0)
    model, batch = make("spectral_norm")
    objective = Objective(model, squared, batch, layout_of(model), Ledger())
    theta, curvature = objective.layout.current(), Curvature(objective)
    assert not curvature.at(theta).symmetric
    point = Point(
        step=0, time=0.0, step_size=0.1, theta=theta, objective=objective, curvature=curvature
    )
    ends = point.spectrum()
    before = objective.ledger.n_hvps
    assert point.spectrum() is ends
    assert objective.ledger.n_hvps == before
    full = jacobian(objective)
    true = torch.linalg.eigvalsh((full + full.T) / 2)
    assert ends.failure_probability is None
    assert ends.n_products <= 40
    for value, residual, end in (
        (ends.lambda_min, ends.residual_min, float(true[0])),
        (ends.lambda_max, ends.residual_max, float(true[-1])),
    ):
        assert abs(value - end) <= max(residual, 0.02 * abs(end))


def test_a_padded_table_that_is_tied_elsewhere_is_not_taken_to_rest():
    torch.manual_seed(0)
    model = Padded(tied=True).double()
    batch = torch.randn(N, IN, dtype=F64), torch.randn(N, OUT, dtype=F64)
    objective = Objective(model, squared, batch, layout_of(model), Ledger())
    assert padding_rows(model, objective.layout)
    assert list(Curvature(objective).at(objective.layout.current()).still) == []
