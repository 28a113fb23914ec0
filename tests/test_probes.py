import inspect
import math

import pytest
import torch
from torch import nn
from zoo import layout_of, make, squared

from torch_gfshadow import probes
from torch_gfshadow.curvature import Curvature
from torch_gfshadow.errors import CurvatureError
from torch_gfshadow.ledger import Ledger
from torch_gfshadow.objective import Objective
from torch_gfshadow.plugins import Plugins
from torch_gfshadow.probes import (
    Balancedness,
    GradientAlignment,
    GradientNorm,
    LambdaMax,
    LambdaMin,
    ParameterNorm,
    Point,
    Probe,
    Trace,
)
from torch_gfshadow.probes import base as base_module
from torch_gfshadow.record import FIELDS
from torch_gfshadow.testing import assert_inert, toy_run

BUILTIN = (
    LambdaMin, LambdaMax, GradientNorm, GradientAlignment, ParameterNorm, Trace, Balancedness,
)  # fmt: skip


class Setup:
    """A small network, its dense Hessian by reference, and points to measure at."""

    def __init__(self, name="mlp", dtype=torch.float64, fn=squared, backend="auto"):
        torch.manual_seed(5)
        model, batch = make(name)
        self.model = model.to(dtype)
        batch = tuple(part.to(dtype) if part.is_floating_point() else part for part in batch)
        self.ledger = Ledger()
        self.objective = Objective(self.model, fn, batch, layout_of(self.model), self.ledger)
        self.curvature = Curvature(self.objective, backend)
        self.theta = self.objective.layout.current()
        self.batch, self.fn = batch, fn

    def point(self, **changes):
        arguments = {
            "step": 3,
            "time": 0.3,
            "step_size": 0.1,
            "theta": self.theta,
            "objective": self.objective,
            "curvature": self.curvature,
        }
        return Point(**(arguments | changes))

    def loss(self, flat):
        params = self.objective.layout.unflatten(flat)
        return torch.func.functional_call(Host(self.model, self.fn), params_of(params), self.batch)

    def dense(self):
        return torch.autograd.functional.hessian(self.loss, self.theta)


class Host(nn.Module):
    def __init__(self, model, fn):
        super().__init__()
        self.model, self.fn = model, fn

    def forward(self, *batch):
        return self.fn(self.model, batch)


def params_of(params):
    return {f"model.{name}": value for name, value in params.items()}


@pytest.fixture(scope="module")
def setup():
    return Setup()


@pytest.fixture(scope="module")
def exact(setup):
    return torch.linalg.eigh(setup.dense())


def quadratic_point(hessian, theta, **changes):
    """A point of f(θ) = ½θᵀHθ."""
    model = nn.Linear(len(theta), 1, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(theta[None])

    def objective(model, batch):
        return 0.5 * (model.weight @ batch[0] @ model.weight.T).squeeze()

    objective = Objective(model, objective, (hessian,), layout_of(model), Ledger())
    arguments = {
        "step": 0,
        "time": 0.0,
        "step_size": None,
        "theta": theta,
        "objective": objective,
        "curvature": Curvature(objective),
    }
    return Point(**(arguments | changes))


# Eigenvalues


def test_lambda_min_is_the_dense_hessians_within_its_residual(setup, exact):
    measured = LambdaMin(tol=1e-3).measure(setup.point())
    values = exact.eigenvalues
    scale = float(values.abs().max())
    assert measured["lambda_min"] == pytest.approx(float(values[0]), abs=1e-3 * scale)
    assert measured["lambda_min"] >= float(values[0]) - 1e-9
    assert measured["lower_bound"] <= float(values[0])
    assert measured["failure_probability"] == 0.01
    assert measured["converged"] is True
    nearest = (values - measured["lambda_min"]).abs().min()
    assert float(nearest) <= measured["lambda_min_residual"] + 1e-9
    inside = (values >= measured["value_minus_residual"] - 1e-9) & (
        values <= measured["lambda_min"] + measured["lambda_min_residual"] + 1e-9
    )
    assert bool(inside.any())


def test_after_a_warm_start_no_lower_bound_is_claimed(setup):
    first = setup.point().spectrum()
    measured = LambdaMin(tol=1e-3).measure(setup.point(previous=first))
    assert measured["failure_probability"] is None
    assert measured["lower_bound"] is None
    expected = measured["lambda_min"] - measured["lambda_min_residual"]
    assert measured["value_minus_residual"] == expected


def test_lambda_max_is_the_dense_hessians_and_the_edge_is_eta_times_it(setup, exact):
    measured = LambdaMax(tol=1e-3).measure(setup.point(step_size=0.25))
    top = float(exact.eigenvalues[-1])
    assert measured["lambda_max"] == pytest.approx(top, rel=1e-4)
    assert measured["edge"] == 0.25 * measured["lambda_max"]
    assert measured["lambda_max_residual"] <= 1e-3 * top


@pytest.mark.parametrize("step_size", [None, 0.0])
def test_there_is_no_edge_before_the_first_step(setup, step_size):
    assert "edge" not in LambdaMax().measure(setup.point(step_size=step_size))


def test_the_residual_is_that_of_the_hessian_and_not_of_the_search(setup, exact):
    point = setup.point()
    measured = LambdaMax().measure(point)
    ends = point.spectrum()
    true = setup.dense() @ ends.vector_max - ends.lambda_max * ends.vector_max
    assert measured["lambda_max_residual"] == pytest.approx(float(true.norm()), rel=1e-4, abs=1e-9)


def test_negative_curvature_is_found_where_power_iteration_sees_the_larger_end():
    # Near zero a deep linear network has an almost sign-symmetric spectrum: |λ_min| ≈ λ_max.
    setup = Setup()
    setup.theta = 0.01 * setup.theta
    values = torch.linalg.eigvalsh(setup.dense())
    point = setup.point()
    measured = {**LambdaMin().measure(point), **LambdaMax().measure(point)}
    assert measured["lambda_min"] == pytest.approx(float(values[0]), rel=0.01)
    assert measured["lambda_max"] == pytest.approx(float(values[-1]), rel=0.01)


def test_float32_models_are_probed_in_float32():
    setup = Setup(dtype=torch.float32)
    point = setup.point(theta=setup.theta.double())  # the tracker may carry float64
    measured = {**LambdaMin().measure(point), **LambdaMax().measure(point)}
    values = torch.linalg.eigvalsh(setup.dense())
    assert point.spectrum().vector_min.dtype == torch.float32
    assert measured["lambda_min"] == pytest.approx(float(values[0]), rel=0.02)
    assert measured["lambda_max"] == pytest.approx(float(values[-1]), rel=0.01)


def test_bfloat16_models_are_searched_in_float32():
    setup = Setup(dtype=torch.bfloat16, backend="difference")
    ends = setup.point().spectrum(tol=0.2, max_products=20)
    assert ends.vector_min.dtype == torch.float32
    assert ends.lambda_min <= ends.lambda_max


# Sharing


def test_nothing_is_evaluated_before_a_probe_asks(setup):
    before = setup.ledger.by_purpose()
    point = setup.point()
    ParameterNorm().measure(point)
    assert setup.ledger.by_purpose() == before
    assert not point.linearised
    assert not point.spectrum_known


def test_all_probes_of_a_point_share_one_linearisation_and_one_spectrum(setup):
    setup.point().hessian(setup.theta)  # the first use checks the backend
    grads, hvps = setup.ledger.n_grads, setup.ledger.n_hvps
    point = setup.point()
    LambdaMin().measure(point)
    assert setup.ledger.n_hvps - hvps == point.spectrum().n_products
    spent = setup.ledger.n_hvps
    LambdaMax().measure(point)
    GradientAlignment().measure(point)
    GradientNorm().measure(point)
    assert setup.ledger.n_hvps == spent
    assert setup.ledger.n_grads - grads == 1
    assert setup.ledger.hvps["probes"] > 0


def test_loss_and_gradient_come_with_the_linearisation(setup):
    point = setup.point()
    point.spectrum()
    grads = setup.ledger.n_grads
    flat = setup.theta.clone().requires_grad_()
    loss = setup.loss(flat)
    assert point.loss == pytest.approx(loss.item(), rel=1e-12)
    assert torch.allclose(point.grad, torch.autograd.grad(loss, flat)[0])
    assert setup.ledger.n_grads == grads


def test_without_the_hessian_loss_and_gradient_cost_one_gradient(setup):
    point = setup.point()
    grads, hvps = setup.ledger.n_grads, setup.ledger.n_hvps
    norm = GradientNorm().measure(point)["value"]
    assert norm == pytest.approx(float(point.grad.norm()))
    assert math.isfinite(point.loss)
    assert (setup.ledger.n_grads - grads, setup.ledger.n_hvps - hvps) == (1, 0)


def test_a_tighter_demand_continues_and_keeps_the_cold_lower_bound(setup, exact):
    point = setup.point()
    loose = point.spectrum(tol=0.1)
    hvps = setup.ledger.n_hvps
    tight = point.spectrum(tol=1e-6)
    assert setup.ledger.n_hvps > hvps
    assert max(tight.residual_min, tight.residual_max) < loose.residual_min
    assert tight.failure_probability == 0.01
    assert tight.lower_bound <= loose.lower_bound
    assert tight.age == 0
    spent = setup.ledger.n_hvps
    assert point.spectrum(tol=0.01) is tight
    assert setup.ledger.n_hvps == spent


def test_a_spent_budget_is_not_spent_again_unless_more_is_offered(setup):
    point = setup.point()
    short = point.spectrum(tol=1e-8, max_products=4)
    assert not short.converged
    assert point.spectrum(tol=1e-9, max_products=4) is short
    assert point.spectrum(tol=1e-8, max_products=200).converged


def test_a_failed_spectrum_is_tried_once(setup):
    point = setup.point(theta=torch.full_like(setup.theta, math.nan))
    with pytest.raises(CurvatureError, match="must be finite"):
        LambdaMin().measure(point)
    hvps = setup.ledger.n_hvps
    with pytest.raises(CurvatureError, match="must be finite"):
        LambdaMax().measure(point)
    assert setup.ledger.n_hvps == hvps
    assert not point.spectrum_known


# From point to point


def test_the_next_point_starts_from_the_previous_spectrum(setup):
    first = setup.point().spectrum()
    second = setup.point(previous=first).spectrum()
    assert second.age == 1
    assert second.n_products < first.n_products
    assert second.failure_probability is None


def test_asking_for_more_at_a_point_keeps_what_is_known_of_the_turning(setup):
    step = 0.02 * torch.randn(len(setup.theta), generator=torch.Generator().manual_seed(1))
    spectrum = None
    for k in range(4):
        point = setup.point(theta=setup.theta + k * step, previous=spectrum)
        spectrum = point.spectrum()
    assert spectrum.recycled.turns != (None, None)
    tight = point.spectrum(tol=1e-7, max_products=500)
    assert tight is not spectrum
    assert torch.equal(tight.recycled.before, spectrum.recycled.before)
    assert tight.recycled.turns == spectrum.recycled.turns


def test_every_so_often_a_spectrum_starts_from_a_random_vector_again(setup, monkeypatch):
    monkeypatch.setattr(base_module, "REFRESH", 3)
    spectrum, ages = None, []
    for _ in range(9):
        spectrum = setup.point(previous=spectrum).spectrum()
        ages.append(spectrum.age)
        assert (spectrum.failure_probability is None) == (spectrum.age > 0)
    assert ages == [0, 1, 2, 3, 0, 1, 2, 3, 0]


def test_each_random_start_is_a_new_one(setup):
    # One that hides an eigenvector must not hide it again.
    first, later = (setup.point(step=step).spectrum() for step in (3, 4))
    assert not torch.equal(first.vector_min, later.vector_min)
    assert torch.equal(first.vector_min, setup.point(step=3).spectrum().vector_min)


def test_a_spectrum_of_another_model_is_not_a_start(setup):
    other = Setup("tied").point().spectrum()
    assert len(other.vector_min) != len(setup.theta)
    assert setup.point(previous=other).spectrum().age == 0


def test_the_seed_decides_the_random_start(setup):
    one, same, other = (setup.point(seed=seed).spectrum() for seed in (0, 0, 1))
    assert torch.equal(one.vector_min, same.vector_min)
    assert not torch.equal(one.vector_min, other.vector_min)


# The other members


def test_gradient_norm_is_the_norm_here():
    theta = torch.tensor([3.0, -1.0], dtype=torch.float64)
    hessian = torch.diag(torch.tensor([1.0, 4.0], dtype=torch.float64))
    point = quadratic_point(hessian, theta)
    assert GradientNorm().measure(point) == {"value": pytest.approx(5.0)}


def test_alignment_is_the_absolute_cosine_with_each_end():
    # ∇f = Hθ = (−4, 0, 3) with eigenvalues −2, 1, 3: cosines 4/5 and 3/5.
    hessian = torch.diag(torch.tensor([-2.0, 1.0, 3.0], dtype=torch.float64))
    theta = torch.tensor([2.0, 0.0, 1.0], dtype=torch.float64)
    for sign in (1.0, -1.0):
        measured = GradientAlignment().measure(quadratic_point(hessian, sign * theta))
        assert measured == {"min": pytest.approx(0.8), "max": pytest.approx(0.6)}


def test_alignment_at_a_stationary_point_is_refused():
    hessian = torch.eye(3, dtype=torch.float64)
    point = quadratic_point(hessian, torch.ones(3, dtype=torch.float64))
    point.theta = torch.zeros(3, dtype=torch.float64)
    with pytest.raises(CurvatureError, match=r"gradient must be nonzero and finite, got norm 0\.0"):
        GradientAlignment().measure(point)


def test_a_gradient_that_is_not_finite_is_refused(setup):
    point = setup.point(theta=torch.full_like(setup.theta, math.nan))
    with pytest.raises(CurvatureError, match="gradient must be finite, got nan"):
        GradientNorm().measure(point)


def test_parameter_norm_is_the_norm_of_theta(setup):
    point = setup.point(theta=torch.tensor([3.0, 4.0]))
    assert ParameterNorm().measure(point) == {"value": 5.0}


def test_trace_is_exact_for_a_diagonal_hessian():
    # zᵀDz = tr D for every sign vector.
    hessian = torch.diag(torch.tensor([-2.0, 1.0, 3.0], dtype=torch.float64))
    measured = Trace(samples=3).measure(
        quadratic_point(hessian, torch.ones(3, dtype=torch.float64))
    )
    assert measured["value"] == pytest.approx(2.0)
    assert measured["standard_error"] == pytest.approx(0.0, abs=1e-12)
    assert measured["samples"] == 3


def test_the_standard_error_of_the_trace_is_the_scatter_over_seeds(setup, exact):
    trace = float(exact.eigenvalues.sum())
    point = setup.point()
    measured = [Trace(samples=8, seed=seed).measure(point) for seed in range(60)]
    misses = torch.tensor([m["value"] - trace for m in measured])
    claimed = torch.tensor([m["standard_error"] for m in measured])
    scatter = float(misses.square().mean().sqrt())
    assert float(claimed.square().mean().sqrt()) == pytest.approx(scatter, rel=0.35)
    assert abs(float(misses.mean())) < 4 * scatter / math.sqrt(60)


def test_trace_takes_the_same_signs_at_every_step_and_one_product_per_sample(setup):
    hvps = setup.ledger.n_hvps
    one = Trace(samples=5).measure(setup.point())
    assert setup.ledger.n_hvps - hvps == 5
    assert Trace(samples=5).measure(setup.point(step=9)) == one


def test_trace_of_a_hessian_that_is_not_finite_is_refused(setup):
    point = setup.point(theta=torch.full_like(setup.theta, math.nan))
    with pytest.raises(CurvatureError, match="zᵀHz must be finite, got nan"):
        Trace().measure(point)


def test_probes_are_right_inside_the_callers_autocast(setup):
    plain = [cls().measure(setup.point()) for cls in BUILTIN]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert [cls().measure(setup.point()) for cls in BUILTIN] == plain


# Protocol and registration


@pytest.mark.parametrize("cls", BUILTIN)
def test_every_member_is_a_probe_with_a_period(cls):
    assert isinstance(cls(), Probe)
    assert cls().every is None
    assert cls(every=50).every == 50
    with pytest.raises(ValueError, match="every must be at least 1, got 0"):
        cls(every=0)


@pytest.mark.parametrize("cls", BUILTIN)
def test_what_is_not_a_field_of_the_record_is_json_ready(setup, cls):
    for key, value in cls().measure(setup.point()).items():
        assert isinstance(value, (float, int, bool, type(None)))
        if key in FIELDS:
            assert type(value) is float


def test_exactly_the_eigenvalue_probes_write_fields_of_the_record(setup):
    written = {
        cls.name: {key for key in cls().measure(setup.point()) if key in FIELDS} for cls in BUILTIN
    }
    assert written.pop("lambda_min") == {"lambda_min", "lambda_min_residual"}
    assert written.pop("lambda_max") == {"lambda_max", "lambda_max_residual", "edge"}
    assert set().union(*written.values()) == set()


def test_every_member_is_registered_under_its_own_name():
    specs = probes.gfshadow_probes()
    assert {spec.name: spec.factory for spec in specs} == {cls.name: cls for cls in BUILTIN}
    registry = Plugins()
    assert {spec.name for spec in specs} <= set(registry.specs("probes"))
    for cls in BUILTIN:
        assert isinstance(registry.build("probes", cls.name), cls)
        assert inspect.getdoc(cls)


def test_a_name_may_carry_an_argument():
    registry = Plugins()
    assert registry.build("probes", "lambda_min:0.001").tol == 0.001
    assert registry.build("probes", "trace:32").samples == 32


@pytest.mark.parametrize("cls", [LambdaMin, LambdaMax, GradientAlignment])
@pytest.mark.parametrize("tol", [0.0, -1.0, math.nan, math.inf, "tight"])
def test_a_tolerance_that_is_none_is_refused(cls, tol):
    with pytest.raises(ValueError, match="tol must be positive and finite"):
        cls(tol=tol)


@pytest.mark.parametrize("cls", [LambdaMin, LambdaMax, GradientAlignment])
def test_a_budget_of_nothing_is_refused(cls):
    with pytest.raises(ValueError, match="max_products must be at least 1, got 0"):
        cls(max_products=0)


@pytest.mark.parametrize("samples", [1, 0, -3, "many", 2.5])
def test_a_trace_of_fewer_than_two_samples_is_refused(samples):
    with pytest.raises(ValueError, match="samples must be an integer of at least 2"):
        Trace(samples=samples)


# In a run


def test_a_run_records_what_the_probes_measure_and_starts_warm():
    shadow = toy_run(4, probe_every=1, probes=[cls.name for cls in BUILTIN])
    for record in shadow.records:
        assert record.lambda_min < record.lambda_max
        assert record.lambda_min_residual <= 0.01 * max(
            abs(record.lambda_min), 0.005 * record.lambda_max
        )
        assert set(record.extras) >= {cls.name for cls in BUILTIN}
        assert record.extras["lambda_min"]["failure_probability"] == (
            0.01 if record.step == 0 else None
        )
        if record.step_size:
            assert record.edge == record.step_size * record.lambda_max


def test_a_probe_with_a_period_is_measured_at_its_multiples():
    shadow = toy_run(6, probe_every=1, probes=[LambdaMax(), Trace(samples=2, every=3)])
    assert [r.step for r in shadow.records if "trace" in r.extras] == [0, 3, 6]
    assert all(r.lambda_max is not None for r in shadow.records)


def test_probes_leave_no_trace_in_training():
    assert_inert(probes=[cls.name for cls in BUILTIN], probe_every=2)


def test_slq_comes_as_an_instance_and_its_moments_are_the_hessians():
    shadow = toy_run(4, probes=["lambda_min", probes.SLQ(steps=40, vectors=3, every=2)])
    measured = [record for record in shadow.records if "slq" in record.extras]
    assert {record.step for record in measured} == {0, 2, 4}
    nodes, weights = (measured[-1].extras["slq"][key] for key in ("nodes", "weights"))
    assert math.fsum(weights) == pytest.approx(1.0)
    assert nodes[0] == pytest.approx(measured[-1].lambda_min, rel=0.05, abs=0.02)
