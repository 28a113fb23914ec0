import gc
import math
import random
import time
import warnings
import weakref

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from zoo import IN, OUT, ZOO, Float32Only, N, layout_of, make, squared

from torch_gfshadow import curvature as curvature_module
from torch_gfshadow._differences import Referee, central_difference, choose_step, natural_step
from torch_gfshadow._symmetry import without
from torch_gfshadow.curvature import Curvature
from torch_gfshadow.errors import CurvatureError
from torch_gfshadow.ledger import Ledger
from torch_gfshadow.objective import Objective

SEED = 77

# What "auto" takes, and so which backends are wrong or refuse. A change here is news: an upstream
# fix, or a trap we no longer see.
EXPECTED = dict.fromkeys(ZOO, "func") | {
    "weight_norm": "difference",
    "weight_norm_legacy": "difference",
    "spectral_norm": "difference",
    "spectral_norm_legacy": "difference",
    "checkpointed": "double_backward",
    "checkpointed_reentrant": "difference",
    "transformer": "double_backward",
    "legacy_function": "double_backward",
    "packed": "double_backward",
    "once_differentiable": "difference",
}


def build(model, data, fn=squared, params=None, **kwargs):
    torch.manual_seed(SEED)
    return Objective(model, fn, data, layout_of(model, params), Ledger(), **kwargs)


def elsewhere(objective, seed=1):
    theta = objective.layout.current()
    generator = torch.Generator().manual_seed(seed)
    return theta + 0.1 * torch.randn(theta.shape, generator=generator, dtype=theta.dtype)


def vector(objective, seed=2, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(objective.layout.dim, generator=generator, dtype=torch.float64).to(dtype)


def jacobian(name, theta, step=1e-6):
    """Difference the gradients of a twin whose parameters are set for real: the reference."""
    twin, batch = make(name)
    layout = layout_of(twin)
    buffers = {key: value.clone() for key, value in twin.named_buffers()}

    def gradient(point):
        with torch.no_grad():
            for param, value in zip(layout.params, layout.unflatten(point).values(), strict=True):
                param.copy_(value)
            for key, value in twin.named_buffers():
                value.copy_(buffers[key])
        twin.zero_grad()
        torch.manual_seed(SEED)
        squared(twin, batch).backward()
        grads = [p.grad.to_dense() if p.grad.is_sparse else p.grad for p in layout.params]
        return layout.flatten(grads)

    def product(v):
        return (gradient(theta + step * v) - gradient(theta - step * v)) / (2 * step)

    return product


# ---- against references ---------------------------------------------------------------------


@pytest.mark.parametrize("name", ZOO)
def test_auto_is_right_for_every_model_of_the_zoo(name):
    objective = build(*make(name))
    curvature = Curvature(objective)
    theta = elsewhere(objective)
    product = curvature.at(theta)
    assert curvature.backend == EXPECTED[name]
    assert product.symmetric or "spectral" in name
    assert bool(product.still) == (name == "padded")
    v = without(vector(objective), product.still)
    reference = jacobian(name, theta)(v / v.norm()) * v.norm()
    assert float((product(v) - reference).norm() / reference.norm()) < 2e-6


@pytest.mark.parametrize("name", ["mlp", "tied", "frozen", "batchnorm_eval", "attention"])
@pytest.mark.parametrize("backend", ["func", "double_backward", "difference"])
def test_products_are_those_of_the_dense_hessian(name, backend):
    model, batch = make(name)
    objective = build(model, batch)
    theta = elsewhere(objective)
    pure = objective.pure(batch)
    with objective.guard():
        dense = torch.autograd.functional.hessian(
            lambda flat: pure(objective.layout.unflatten(flat)), theta
        )
    product = Curvature(objective, backend).at(theta)
    tolerance = 1e-6 if backend == "difference" else 1e-12
    for seed in range(3):
        v = vector(objective, seed)
        assert float((product(v) - dense @ v).norm()) <= tolerance * float((dense @ v).norm())


@pytest.mark.parametrize("backend", ["func", "double_backward", "difference"])
def test_a_quadratic_has_its_closed_form(backend):
    torch.manual_seed(0)
    a = torch.randn(6, 6, dtype=torch.float64)
    a = a + a.T
    model = nn.Linear(6, 1, bias=False).double()

    def quadratic(model, batch):
        w = model.weight[0]
        return 0.5 * w @ batch @ w

    objective = build(model, a, quadratic)
    theta = torch.randn(6, dtype=torch.float64)
    product = Curvature(objective, backend).at(theta)
    v = torch.randn(6, dtype=torch.float64)
    # The gradient is linear, so a difference has rounding only: ε·‖g‖/h at the short step.
    tolerance = 1e-5 if backend == "difference" else 1e-13
    assert torch.allclose(product(v), a @ v, rtol=tolerance, atol=tolerance)
    assert product.loss == pytest.approx(float(0.5 * theta @ a @ theta), rel=1e-13)
    assert torch.allclose(product.grad, a @ theta, rtol=1e-13)


@pytest.mark.parametrize("name", ["mlp", "batchnorm", "dropout", "lstm", "convolutional"])
def test_products_are_symmetric_and_linear(name):
    objective = build(*make(name))
    product = Curvature(objective).at(elsewhere(objective))
    u, v = vector(objective, 3), vector(objective, 4)
    assert float(u @ product(v)) == pytest.approx(float(v @ product(u)), rel=1e-9)
    assert torch.allclose(product(2 * u - v), 2 * product(u) - product(v), rtol=1e-9, atol=1e-11)


def test_an_objective_without_curvature_has_products_of_zero():
    model, (x, _) = make("mlp")
    objective = build(model, x, lambda m, b: sum(p.sum() for p in m.parameters()) + 0 * m(b).sum())
    for backend in ("func", "double_backward", "difference"):
        product = Curvature(objective, backend).at(elsewhere(objective))
        assert float(product(vector(objective)).abs().max()) < 1e-6


def test_a_vector_of_zeros_gives_zeros():
    objective = build(*make("mlp"))
    for backend in ("func", "double_backward", "difference"):
        product = Curvature(objective, backend).at(elsewhere(objective))
        assert not product(torch.zeros(objective.layout.dim, dtype=torch.float64)).any()


@pytest.mark.parametrize("name", ["mlp", "batchnorm", "dropout", "lstm", "transformer_eval"])
def test_float32_models_get_the_products_of_their_float64_twins(name):
    narrow = build(*make(name, torch.float32))
    model, batch = make(name, torch.float32)
    wide = build(model.double(), tuple(t.double() for t in batch))
    theta = elsewhere(narrow)
    v = vector(narrow, dtype=torch.float32)
    product = Curvature(narrow).at(theta)
    expected = Curvature(wide).at(theta.double())(v.double())
    assert product(v).dtype == torch.float32
    assert float((product(v).double() - expected).norm() / expected.norm()) < 1e-4


# ---- the check on first use -----------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name, taken in EXPECTED.items() if taken != "func"])
def test_a_backend_that_is_wrong_for_the_model_is_refused_if_asked_for(name):
    objective = build(*make(name))
    with pytest.raises(CurvatureError, match=r"backend must be right .* got 'func'.*hvp=\"auto\""):
        Curvature(objective, "func").at(elsewhere(objective))


def test_why_a_backend_was_rejected_is_kept():
    objective = build(*make("weight_norm"))
    curvature = Curvature(objective)
    assert curvature.backend is None
    curvature.at(elsewhere(objective))
    assert set(curvature.rejected) == {"func", "double_backward"}
    assert all("away from central differences" in why for why in curvature.rejected.values())


def kinked(width=40, n=1000, dtype=torch.float32, seed=0):
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Linear(50, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10)
    )
    return model.to(dtype), (torch.randn(n, 50, dtype=dtype), torch.randint(0, 10, (n,)))


def classified(model, batch):
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def classified_in_float32(model, batch):
    assert batch[0].dtype == torch.float32, "a constant of another precision"
    return classified(model, batch)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("fn", "dtype"),
    [
        (classified, torch.float32),
        (classified, torch.float64),
        (classified_in_float32, torch.float32),
    ],
)
def test_kinks_do_not_reject_a_right_backend(fn, dtype, seed):
    model, batch = kinked(dtype=dtype, seed=seed)
    objective = build(model, batch, fn)
    for backend in ("auto", "func", "double_backward"):
        curvature = Curvature(objective, backend)
        curvature.at(objective.layout.current())
        assert not curvature.rejected


def test_a_naive_difference_on_kinks_would_have_rejected_it():
    """The reason for the ladder of steps: the test above would prove nothing without kinks."""
    model, batch = kinked()
    objective = build(model, batch, classified)
    theta = objective.layout.current()
    v = vector(objective, dtype=torch.float32)
    v /= v.norm()
    product = Curvature(objective, "func").at(theta)(v)
    naive = central_difference(
        lambda point: objective.loss_and_grad(point, "flow")[1], theta, v, natural_step(theta)
    )
    assert float((naive - product).norm() / product.norm()) > 0.1


@pytest.mark.parametrize(
    "make_wrong", [lambda h: 1.05 * h, lambda h: 0 * h, lambda h: h + math.nan]
)
@pytest.mark.parametrize("fn", [classified, classified_in_float32])
def test_kinks_do_not_accept_a_wrong_backend(fn, make_wrong, monkeypatch):
    right = curvature_module.LINEARISE["func"]

    def wrong(*args):
        linearised = right(*args)
        return type(linearised)(
            linearised.loss,
            linearised.grads,
            lambda v: [make_wrong(h) for h in linearised.product(v)],
        )

    monkeypatch.setitem(curvature_module.LINEARISE, "func", wrong)
    model, batch = kinked()
    curvature = Curvature(build(model, batch, fn))
    curvature.at(curvature.objective.layout.current())
    assert curvature.backend == "double_backward"


def test_a_backend_that_cannot_run_in_the_models_own_precision_is_rejected(monkeypatch):
    right = curvature_module.LINEARISE["func"]

    def fine_only(sandbox, params, batch, dtype):
        if dtype is None:
            raise NotImplementedError("no float32 kernel")
        return right(sandbox, params, batch, dtype)

    monkeypatch.setitem(curvature_module.LINEARISE, "func", fine_only)
    curvature = Curvature(build(*make("mlp", torch.float32)))
    curvature.at(curvature.objective.layout.current())
    assert curvature.backend == "double_backward"
    assert curvature.rejected["func"] == "NotImplementedError: no float32 kernel"


def test_the_referee_falls_back_to_the_models_own_precision():
    torch.manual_seed(0)
    model = Float32Only()
    batch = (torch.randn(20, IN), torch.randn(20, OUT))
    objective = build(model, batch)
    referee = Referee(objective.sandbox, objective.layout.current(), batch)
    assert referee.dtype is None
    assert len(referee.batch[0]) == 8
    curvature = Curvature(objective)
    curvature.at(elsewhere(objective))
    assert curvature.backend == "func"


def test_the_referee_takes_the_whole_batch_where_a_part_of_it_cannot_be_evaluated():
    model, batch = make("mlp")

    def whole(model, batch):
        assert len(batch[0]) == N, "needs all samples"
        return squared(model, batch)

    objective = build(model, batch, whole)
    assert Referee(objective.sandbox, objective.layout.current(), batch).batch is batch
    Curvature(objective, "func").at(elsewhere(objective))


def test_the_check_is_made_once_per_mode_of_the_model():
    model, batch = make("transformer")
    objective = build(model.eval(), batch)
    curvature = Curvature(objective)
    theta = objective.layout.current()
    curvature.at(theta)
    assert curvature.backend == "func"
    checks = objective.ledger.grads["setup"]
    curvature.at(theta)
    assert objective.ledger.grads["setup"] == checks
    model.train()
    curvature.at(theta)
    assert curvature.backend == "double_backward"
    model.eval()
    curvature.at(theta)
    assert curvature.backend == "func"


def test_unknown_backends_are_refused():
    objective = build(*make("mlp"))
    with pytest.raises(ValueError, match=r"registered name, got 'fun'.*Did you mean 'func'"):
        Curvature(objective, "fun")


# ---- differences ----------------------------------------------------------------------------


class NormInFloat32(nn.Module):
    """What the language models of Hugging Face do: norm and loss round to float32 inside."""

    def __init__(self, dtype):
        super().__init__()
        self.dtype = dtype
        self.scale = nn.Parameter(torch.ones(IN))

    def forward(self, x):
        wide = x.to(self.dtype)
        return self.scale * (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True))).to(x.dtype)


def normed(inside, outside):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(IN, IN), nn.Tanh(), NormInFloat32(inside), nn.Linear(IN, 8), nn.Tanh(),
        nn.Linear(8, OUT),
    )  # fmt: skip
    return model.to(outside)


@pytest.mark.parametrize("backend", ["auto", "difference"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_rounding_inside_the_model_neither_rejects_a_right_backend_nor_drowns_a_product(
    backend, dtype
):
    batch = make("mlp")[1]
    exact = build(normed(torch.float64, torch.float64), batch)
    objective = build(normed(torch.float32, dtype), tuple(t.to(dtype) for t in batch))
    curvature = Curvature(objective, backend)
    theta = elsewhere(objective)
    product = curvature.at(theta)
    assert curvature.backend == ("func" if backend == "auto" else "difference")
    v = vector(objective, dtype=dtype)
    reference = Curvature(exact, "double_backward").at(theta.double())(v.double())
    assert float((product(v).double() - reference).norm() / reference.norm()) < 1e-3


def test_differences_of_a_kinked_model_see_no_kinks():
    model, batch = kinked()
    objective = build(model, batch, classified)
    theta, v = objective.layout.current(), vector(objective, dtype=torch.float32)
    exact = Curvature(objective, "func").at(theta)(v)
    difference = Curvature(objective, "difference").at(theta)(v)
    assert float((difference - exact).norm() / exact.norm()) < 1e-4


def test_differences_are_taken_in_float64_where_that_is_the_same_function():
    model, batch = make("mlp", torch.float32)
    objective = build(model, batch)
    step, _ = choose_step(objective.sandbox, objective.layout.current(), batch)
    assert step.dtype == torch.float64
    torch.manual_seed(0)
    batch = (torch.randn(20, IN), torch.randn(20, OUT))
    objective = build(Float32Only(), batch)
    step, _ = choose_step(objective.sandbox, objective.layout.current(), batch)
    assert step.dtype is None


def test_float32_differences_of_a_smooth_model_are_right_to_a_percent():
    torch.manual_seed(0)
    batch = (torch.randn(20, IN), torch.randn(20, OUT))
    objective = build(Float32Only(), batch)
    theta = elsewhere(objective)
    difference, exact = (Curvature(objective, b).at(theta) for b in ("difference", "func"))
    for seed in range(3):
        v = vector(objective, seed, torch.float32)
        assert float((difference(v) - exact(v)).norm() / exact(v).norm()) < 1e-2


def test_a_point_at_the_origin_has_a_step():
    model, batch = make("mlp")
    objective = build(model, batch)
    zero = torch.zeros(objective.layout.dim, dtype=torch.float64)
    v = vector(objective)
    difference, exact = (Curvature(objective, b).at(zero) for b in ("difference", "func"))
    assert torch.allclose(difference(v), exact(v), atol=1e-5)


# ---- what a product is ----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mlp", "weight_norm", "checkpointed"])
def test_loss_and_gradient_are_by_products(name):
    objective = build(*make(name))
    theta = elsewhere(objective)
    product = Curvature(objective).at(theta)
    loss, grad = objective.loss_and_grad(theta, "flow")
    assert product.loss == pytest.approx(loss, rel=1e-12)
    assert torch.allclose(product.grad, grad, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("backend", ["func", "double_backward", "difference"])
@pytest.mark.parametrize("max_graphs", [8, 0], ids=["kept", "linearised_again"])
def test_chunks_add_up_with_graphs_kept_or_not(backend, max_graphs):
    model, (x, y) = make("mlp")
    whole = build(model, (x, y))
    parts = build(model, [(x[:5], y[:5]), (x[5:], y[5:])])
    theta, v = elsewhere(whole), vector(whole)
    product = Curvature(parts, backend, max_graphs=max_graphs).at(theta, "bounds")
    reference = Curvature(whole, "func").at(theta)
    tolerance = 1e-5 if backend == "difference" else 1e-11
    assert torch.allclose(product(v), reference(v), rtol=tolerance, atol=tolerance)
    assert torch.allclose(product.grad, reference.grad, rtol=1e-12)
    assert product.loss == pytest.approx(reference.loss, rel=1e-13)


def test_graphs_that_do_not_fit_are_made_again_chunk_by_chunk(monkeypatch):
    model, (x, y) = make("mlp")
    objective = build(model, [(x[:5], y[:5]), (x[5:], y[5:])])
    curvature = Curvature(objective, "func")
    theta, v = elsewhere(objective), vector(objective)
    expected = curvature.at(theta)(v)
    right, kept = curvature_module.LINEARISE["func"], []

    def small_device(*args):
        gc.collect()
        kept[:] = [ref for ref in kept if ref() is not None]
        if kept:
            raise torch.OutOfMemoryError("two do not fit")
        linearised = right(*args)
        kept.append(weakref.ref(linearised))
        return linearised

    monkeypatch.setitem(curvature_module.LINEARISE, "func", small_device)
    product = curvature.at(theta)
    assert torch.equal(product(v), expected)
    assert product.loss == pytest.approx(objective.loss(theta, "loss"), rel=1e-13)


@pytest.mark.parametrize("wrap", ["script", "compile", "inner_compile"])
def test_scripted_and_compiled_models_have_right_products(wrap):
    model, batch = make("mlp")
    objective = build(model, batch)
    theta, v = elsewhere(objective), vector(objective)
    expected = Curvature(objective, "double_backward").at(theta)(v)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped = {
            "script": torch.jit.script,
            "compile": lambda m: torch.compile(m, backend="eager"),
            "inner_compile": lambda m: nn.Sequential(torch.compile(m, backend="eager")),
        }[wrap](model)
        result = Curvature(build(wrapped, batch)).at(theta)(v)
    assert torch.allclose(result, expected, rtol=1e-5, atol=1e-6)


def test_a_loader_is_walked_without_moving_any_stream():
    model, (x, y) = make("dropout", n=40)
    loader = DataLoader(TensorDataset(x, y), batch_size=16, shuffle=True)
    objective = build(model, loader)
    state = torch.get_rng_state()
    for max_graphs in (8, 0):
        product = Curvature(objective, max_graphs=max_graphs).at(elsewhere(objective))
        assert torch.equal(product(vector(objective)), product(vector(objective)))
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize(
    ("backend", "max_graphs", "grads"),
    [("func", 8, 1), ("func", 0, 3), ("double_backward", 8, 1), ("difference", 8, 6)],
)
def test_the_ledger_counts_products_and_the_gradients_they_take(backend, max_graphs, grads):
    model, (x, y) = make("mlp")
    objective = build(model, [(x[:5], y[:5]), (x[5:], y[5:])])
    product = Curvature(objective, backend, max_graphs=max_graphs).at(
        elsewhere(objective), "bounds"
    )
    for _ in range(3):
        product(vector(objective))
    assert objective.ledger.hvps["bounds"] == 3
    assert objective.ledger.grads["bounds"] == grads


def test_a_product_belongs_to_its_point_whatever_happens_to_the_vector_it_was_given():
    model, batch = make("mlp")
    objective = build(model, batch)
    theta, v = elsewhere(objective), vector(objective)
    for backend in ("func", "double_backward", "difference"):
        point = theta.clone()
        product = Curvature(objective, backend).at(point)
        expected = product(v)
        point.mul_(3.0)
        with torch.no_grad():
            model[0].weight.add_(1.0)
        assert torch.equal(product(v), expected)


def test_vectors_of_another_shape_are_refused():
    objective = build(*make("mlp"))
    product = Curvature(objective).at(elsewhere(objective))
    with pytest.raises(ValueError, match=r"vector must be of shape \[39\], got \[38\]"):
        product(torch.zeros(38, dtype=torch.float64))


def test_products_are_averaged_over_ranks_once():
    calls = []

    class Ranks:
        def share_of(self, samples, device):
            return 0.5

        def mean(self, tensor, weight):
            calls.append(tensor.shape)
            return 4 * weight * tensor

    model, batch = make("mlp")
    single, double = build(model, batch), build(model, batch, ranks=Ranks())
    theta, v = elsewhere(single), vector(single)
    for backend in ("func", "difference"):
        product = Curvature(double, backend).at(theta)
        calls.clear()
        result = product(v)
        assert calls == [v.shape]
        expected = 2 * Curvature(single, backend).at(theta)(v)
        assert torch.allclose(result, expected, rtol=1e-12)


def test_the_objective_can_be_replaced_by_a_sibling_on_another_batch():
    model, (x, y) = make("mlp")
    objective = build(model, (x, y))
    curvature = Curvature(objective)
    theta, v = elsewhere(objective), vector(objective)
    curvature.at(theta)
    checks = objective.ledger.grads["setup"]
    curvature.objective = objective.over((x[:4], y[:4]))
    expected = Curvature(build(model, (x[:4], y[:4])), "func").at(theta)(v)
    assert torch.allclose(curvature.at(theta)(v), expected, rtol=1e-12)
    assert objective.ledger.grads["setup"] == checks


def test_mixed_precision_parameters_have_products_in_the_widest():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(IN, 4), nn.Tanh(), nn.Linear(4, OUT).double())
    x, y = torch.randn(6, IN), torch.randn(6, OUT).double()

    def mixed(model, batch):
        hidden = model[1](model[0](batch[0].to(model[0].weight.dtype))).double()
        return ((model[2](hidden) - batch[1]) ** 2).mean()

    objective = build(model, (x, y), mixed)
    theta, v = objective.layout.current(), vector(objective)
    product = Curvature(objective)
    result = product.at(theta)(v)
    assert product.backend == "func"
    assert result.dtype == torch.float64
    wide = build(model.double(), (x.double(), y), mixed)
    assert torch.allclose(result, Curvature(wide).at(theta)(v), rtol=1e-4, atol=1e-5)


# ---- inertness ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ZOO)
def test_products_leave_no_trace(name):
    model, batch = make(name)
    objective = build(model, batch)
    stores = [(m, dict(vars(m)), dict(m._parameters), dict(m._buffers)) for m in model.modules()]
    values = [t.detach().clone() for t in [*model.parameters(), *model.buffers()]]
    versions = [t._version for t in [*model.parameters(), *model.buffers()]]
    state, python_state = torch.get_rng_state(), random.getstate()
    for backend in ("auto", "difference"):
        product = Curvature(objective, backend).at(elsewhere(objective))
        product(vector(objective))
    for module, attributes, parameters, buffers in stores:
        for now, then in (
            (vars(module), attributes),
            (module._parameters, parameters),
            (module._buffers, buffers),
        ):
            assert now.keys() == then.keys()
            assert all(now[key] is then[key] for key in then)
    live = [*model.parameters(), *model.buffers()]
    assert all(torch.equal(a, b) for a, b in zip(live, values, strict=True))
    assert [t._version for t in live] == versions
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(state, torch.get_rng_state())
    assert python_state == random.getstate()


@pytest.mark.parametrize("backend", ["func", "double_backward", "difference"])
@pytest.mark.parametrize(
    "caller",
    [torch.no_grad, torch.inference_mode, lambda: torch.autocast("cpu", dtype=torch.bfloat16)],
    ids=["no_grad", "inference_mode", "autocast"],
)
@pytest.mark.parametrize("name", ["batchnorm", "attention", "lstm"])
def test_the_callers_mode_changes_nothing(name, caller, backend):
    objective = build(*make(name, torch.float32))
    theta, v = elsewhere(objective), vector(objective, dtype=torch.float32)
    expected = Curvature(objective, backend).at(theta)(v)
    with caller():
        product = Curvature(objective, backend).at(theta.clone())
        assert torch.allclose(product(v.clone()), expected, rtol=1e-3, atol=1e-5)
        assert product.grad.shape == v.shape
    assert torch.allclose(product(v), expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("backend", ["func", "double_backward"])
def test_dropping_a_product_frees_its_graph_without_the_garbage_collector(backend):
    model, batch = make("mlp")
    alive = weakref.WeakSet()

    class Marker:
        pass

    class Sentinel(torch.autograd.Function):
        """Leaves a marker in the graph that lives as long as its node."""

        @staticmethod
        def forward(x):
            return x.clone()

        @staticmethod
        def setup_context(ctx, inputs, output):
            ctx.sentinel = Marker()
            alive.add(ctx.sentinel)

        @staticmethod
        def backward(ctx, g):
            return g

    def watched(model, batch):
        hidden = model[1](Sentinel.apply(model[0](batch[0])))
        return ((model[2](hidden) - batch[1]) ** 2).mean()

    objective = build(model, batch, watched)
    curvature = Curvature(objective, backend)
    theta, v = elsewhere(objective), vector(objective)
    curvature.at(theta)
    gc.collect()
    alive.clear()
    gc.disable()
    try:
        product = curvature.at(theta)
        product(v)
        product(v)
        assert alive
        del product
        assert not alive
    finally:
        gc.enable()


def test_one_product_costs_at_most_one_and_a_half_gradients():
    """Paired, in processor time, against our own gradient; the best of many on a shared machine."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(784, 50), nn.Tanh(), nn.Linear(50, 50), nn.Tanh(), nn.Linear(50, 10)
    )
    objective = build(model, (torch.randn(500, 784), torch.randint(0, 10, (500,))), classified)
    theta, v = objective.layout.current(), vector(objective, dtype=torch.float32)
    product = Curvature(objective).at(theta)

    def cost(action):
        start = time.thread_time()
        action()
        return time.thread_time() - start

    ratios = sorted(
        cost(lambda: product(v)) / cost(lambda: objective.loss_and_grad(theta, "flow"))
        for _ in range(40)
    )
    assert ratios[len(ratios) // 4] < 1.5
