import collections
import gc
import random
import warnings
import weakref
from collections import OrderedDict, UserDict
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    Subset,
    TensorDataset,
)
from zoo import IN, OUT, ZOO, Checkpointed, Float32Only, N, Tied, layout_of, make, mlp, squared

import torch_gfshadow as gfs
from torch_gfshadow import _batch, _data, _sources
from torch_gfshadow.curvature import Curvature
from torch_gfshadow.errors import ObjectiveError
from torch_gfshadow.ledger import Ledger
from torch_gfshadow.objective import Objective, probing

SEED = 77


def build(model, data, fn=squared, params=None, **kwargs):
    torch.manual_seed(SEED)
    return Objective(model, fn, data, layout_of(model, params), Ledger(), **kwargs)


def elsewhere(objective):
    """A point off the model's own parameters."""
    theta = objective.layout.current()
    generator = torch.Generator().manual_seed(1)
    return theta + 0.1 * torch.randn(theta.shape, generator=generator, dtype=theta.dtype)


def really(name, theta, dtype=torch.float64):
    """Set the parameters of a twin for real and call backward."""
    twin, batch = make(name, dtype)
    layout = layout_of(twin)
    with torch.no_grad():
        for param, value in zip(layout.params, layout.unflatten(theta).values(), strict=True):
            param.copy_(value)
    torch.manual_seed(SEED)
    loss = squared(twin, batch)
    loss.backward()
    grads = [p.grad.to_dense() if p.grad.is_sparse else p.grad for p in layout.params]
    return loss.item(), layout.flatten(grads)


def fingerprint(model):
    """Everything of a live model that a measurement must leave alone, by identity and value."""
    shape = []
    for name, module in model.named_modules():
        for key, value in sorted(vars(module).items()):
            if key not in ("_parameters", "_buffers", "_modules"):
                shape.append((name, key, id(value), module.training))
        for store in (module._parameters, module._buffers):
            for key, tensor in store.items():
                grad = None if tensor is None or tensor.grad is None else tensor.grad.clone()
                value = None if tensor is None else tensor.detach().clone()
                version = None if tensor is None else tensor._version
                shape.append((name, key, id(tensor), version, value, grad))
    return shape


def assert_same(before, after):
    assert len(before) == len(after)
    for old, new in zip(before, after, strict=True):
        for a, b in zip(old, new, strict=True):
            if isinstance(a, torch.Tensor):
                assert torch.equal(a, b), old[:2]
            else:
                assert a == b, old[:2]


@pytest.mark.parametrize("name", ZOO)
def test_loss_and_gradient_are_those_of_really_setting_the_parameters(name):
    objective = build(*make(name))
    theta = elsewhere(objective)
    loss, grad = objective.loss_and_grad(theta, "flow")
    expected_loss, expected = really(name, theta)
    assert loss == pytest.approx(expected_loss, rel=1e-12)
    assert torch.allclose(grad, expected, rtol=1e-10, atol=1e-12)
    assert objective.loss(theta, "loss") == pytest.approx(expected_loss, rel=1e-12)


@pytest.mark.parametrize("name", ZOO)
def test_a_measurement_leaves_no_trace_on_the_live_model(name):
    model, batch = make(name)
    squared(model, batch)  # models that cache on themselves do so now
    some = layout_of(model).params[0]
    some.grad = torch.ones_like(some)
    before, state = fingerprint(model), torch.get_rng_state()
    objective = Objective(model, squared, batch, layout_of(model), Ledger())
    theta = elsewhere(objective)
    objective.loss_and_grad(theta, "flow")
    objective.loss(theta, "loss")
    with objective.guard():
        objective.pure(batch)(objective.layout.unflatten(theta))
    assert_same(before, fingerprint(model))
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("name", ["batchnorm", "weight_norm_legacy", "spectral_norm", "lstm"])
def test_a_measurement_that_raises_leaves_no_trace_either(name):
    model, batch = make(name)
    armed = []

    def fragile(model, batch):
        loss = squared(model, batch)
        if armed:
            raise KeyError("the user's own")
        return loss

    squared(model, batch)
    objective = build(model, batch, fragile)
    armed.append(True)
    before, state = fingerprint(model), torch.get_rng_state()
    with pytest.raises(KeyError, match="the user's own"):
        objective.loss_and_grad(elsewhere(objective), "flow")
    assert_same(before, fingerprint(model))
    assert torch.equal(state, torch.get_rng_state())
    assert not probing()


def test_training_beside_measurements_is_bit_identical():
    def train(measure):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(IN, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3))
        data = TensorDataset(torch.randn(20, IN), torch.randn(20, OUT))
        loader = DataLoader(data, batch_size=8, shuffle=True)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        objective = Objective(model, squared, loader, layout_of(model), Ledger()) if measure else 0
        for _ in range(3):
            for batch in loader:
                optimizer.zero_grad()
                squared(model, batch).backward()
                optimizer.step()
                if measure:
                    objective.loss_and_grad(elsewhere(objective), "flow")
                    objective.loss(objective.layout.current(), "loss")
        return [*model.state_dict().values(), torch.get_rng_state()]

    for plain, measured in zip(train(False), train(True), strict=True):
        assert torch.equal(plain, measured)


def test_initial_is_the_value_at_the_parameters_of_construction_and_is_paid_once():
    model, batch = make("mlp")
    objective = build(model, batch)
    loss, grad = objective.initial
    expected_loss, expected = really("mlp", objective.layout.current())
    assert loss == pytest.approx(expected_loss, rel=1e-14)
    assert torch.allclose(grad, expected, rtol=1e-12)
    assert objective.ledger.grads == {"setup": 1}
    assert objective.ledger.losses == {"setup": 1}


def test_evaluations_are_counted_under_their_purpose_once_however_many_chunks():
    model, (x, y) = make("mlp")
    objective = build(model, [(x[:5], y[:5]), (x[5:], y[5:])])
    assert objective.n_chunks == 2
    theta = objective.layout.current()
    objective.loss_and_grad(theta, "flow")
    objective.loss_and_grad(theta, "error")
    objective.loss(theta, "loss")
    assert objective.ledger.grads == {"setup": 1, "flow": 1, "error": 1}
    assert objective.ledger.losses["loss"] == 1


def test_a_quadratic_has_its_closed_form():
    model = nn.Linear(3, 1, bias=False).double()
    h = torch.tensor([1.0, -2.0, 5.0], dtype=torch.float64)

    def quadratic(model, batch):
        return 0.5 * (batch * model.weight[0] ** 2).sum()

    objective = build(model, h, quadratic)
    theta = torch.tensor([2.0, 3.0, -1.0], dtype=torch.float64)
    loss, grad = objective.loss_and_grad(theta, "flow")
    assert loss == pytest.approx(0.5 * float((h * theta**2).sum()), rel=1e-15)
    assert torch.allclose(grad, h * theta, rtol=1e-15)


# ---- parameters -----------------------------------------------------------------------------


def test_submodule_calls_and_parameters_inside_the_objective_see_the_given_point():
    model, batch = make("mlp")

    def penalised(model, batch):
        h = model[1](model[0](batch[0]))
        penalty = sum((p**2).sum() for p in model.parameters())
        return ((model[2](h) - batch[1]) ** 2).mean() + penalty

    objective = build(model, batch, penalised)
    zero = torch.zeros(objective.layout.dim, dtype=torch.float64)
    assert objective.loss(zero, "loss") == pytest.approx(float((batch[1] ** 2).mean()))


def test_a_closure_over_the_model_sees_the_given_point_too():
    model, batch = make("mlp")
    objective = build(model, batch, lambda _, b: squared(model, b))
    theta = elsewhere(objective)
    assert torch.allclose(objective.loss_and_grad(theta, "flow")[1], really("mlp", theta)[1])


def test_tied_weights_appear_once_and_get_the_sum_of_their_gradients():
    model, batch = make("tied")
    objective = build(model, batch)
    assert objective.layout.dim == sum(p.numel() for p in Tied().parameters())
    seen = []

    def spy(model, batch):
        seen.append(model.decode.weight is model.again.weight)
        return squared(model, batch)

    build(model, batch, spy)
    assert all(seen)


def test_parameters_of_another_optimizer_are_held_fixed_and_get_no_gradient():
    model, batch = make("mlp")
    objective = build(model, batch, params=list(model[0].parameters()))
    theta = elsewhere(objective)
    assert objective.layout.dim == IN * 4 + 4
    with torch.no_grad():
        model[2].weight.mul_(2.0)  # the other optimizer steps
    loss, grad = objective.loss_and_grad(theta, "flow")
    everything = torch.cat([theta, layout_of(model[2]).current()])
    assert loss == pytest.approx(really("mlp", everything)[0], rel=1e-14)
    assert torch.allclose(grad, really("mlp", everything)[1][: len(grad)])
    assert grad.shape == (IN * 4 + 4,)
    assert all(p.grad is None for p in model.parameters())


def test_an_objective_that_calls_backward_by_itself_does_not_reach_the_live_grads():
    model, batch = make("mlp")

    def meddling(model, batch):
        squared(model, batch).backward()
        return squared(model, batch)

    build(model, batch, meddling, params=list(model[0].parameters()))
    assert all(p.grad is None for p in model.parameters())


def test_an_unused_parameter_gets_a_zero_gradient():
    model, batch = make("mlp")
    model.unused = nn.Linear(2, 2).double()
    model.forward = lambda x: model[2](model[1](model[0](x)))
    objective = build(model, batch)
    grad = objective.layout.unflatten(objective.initial[1])
    assert not grad["unused.weight"].any()
    assert grad["0.weight"].any()


def test_parameters_in_mixed_precision_get_gradients_in_the_widest():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(IN, 4), nn.Tanh(), nn.Linear(4, OUT).double())
    x, y = torch.randn(6, IN), torch.randn(6, OUT).double()

    def mixed(model, batch):
        return ((model[2](model[1](model[0](batch[0])).double()) - batch[1]) ** 2).mean()

    objective = build(model, (x, y), mixed)
    mixed(model, (x, y)).backward()
    _, grad = objective.initial
    assert grad.dtype == torch.float64
    assert torch.allclose(grad, objective.layout.flatten([p.grad for p in model.parameters()]))


def test_a_float64_point_is_evaluated_in_the_precision_of_a_float32_model():
    model, batch = make("mlp", torch.float32)
    objective = build(model, batch)
    theta = elsewhere(objective)
    wide = objective.loss_and_grad(theta.double(), "flow")
    assert wide[1].dtype == torch.float32
    assert torch.equal(wide[1], objective.loss_and_grad(theta, "flow")[1])


def test_bfloat16_chunks_are_summed_in_float32():
    torch.manual_seed(0)
    model = nn.Linear(1, 1, bias=False).bfloat16()
    n = 400
    data = [(torch.ones(1, 1, dtype=torch.bfloat16),)] * n
    objective = build(model, data, lambda m, b: m(b[0]).mean())
    # Adding 1/400 to a bfloat16 sum near 1 would be lost: the spacing there is 1/128.
    assert float(objective.initial[1]) == pytest.approx(1.0, abs=1e-2)


def test_losing_a_parameter_after_construction_is_said_and_not_ignored():
    model, batch = make("mlp")
    objective = build(model, batch)
    model[0].weight = nn.Parameter(model[0].weight.detach().clone())
    with pytest.raises(ObjectiveError, match="1 of 4 not in it"):
        objective.loss(objective.layout.current(), "loss")


def test_a_parametrization_registered_later_is_found_again():
    model, batch = make("mlp")
    objective = build(model, batch)
    theta = elsewhere(objective)
    expected = objective.loss(theta, "loss")
    nn.utils.parametrize.register_parametrization(model[0], "bias", nn.Identity())
    assert objective.loss(theta, "loss") == pytest.approx(expected, rel=1e-14)


# ---- modes and random numbers ---------------------------------------------------------------


@pytest.mark.parametrize("name", ["dropout", "lstm", "transformer", "checkpointed"])
def test_dropout_has_one_mask_at_every_evaluation_and_chunk(name):
    model, batch = make(name)
    objective = build(model, batch)
    theta = elsewhere(objective)
    first = objective.loss_and_grad(theta, "flow")
    torch.rand(7)
    again = objective.loss_and_grad(theta, "flow")
    assert first[0] == again[0]
    assert torch.equal(first[1], again[1])
    model.eval()
    assert objective.loss(theta, "loss") != pytest.approx(first[0], rel=1e-6)


def test_a_sibling_over_other_data_takes_the_random_state_of_its_own_moment():
    model, batch = make("dropout")
    objective = build(model, batch)
    theta = objective.layout.current()
    torch.manual_seed(5)
    sibling = objective.over(batch)
    torch.manual_seed(5)
    expected = squared(model, batch).item()
    assert sibling.loss(theta, "loss") == pytest.approx(expected, rel=1e-14)
    assert objective.loss(theta, "loss") != pytest.approx(expected, rel=1e-6)
    assert sibling.ledger is objective.ledger


def test_evaluation_follows_the_mode_the_model_is_in():
    model, batch = make("batchnorm")
    objective = build(model, batch)
    theta = objective.layout.current()
    in_training = objective.loss(theta, "loss")
    model.eval()
    assert objective.loss(theta, "loss") == pytest.approx(squared(model, batch).item())
    assert objective.loss(theta, "loss") != pytest.approx(in_training)


@pytest.mark.parametrize("name", ["batchnorm", "transformer", "attention", "lstm", "checkpointed"])
@pytest.mark.parametrize(
    "caller",
    [
        torch.no_grad,
        torch.inference_mode,
        lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    ],
    ids=["no_grad", "inference_mode", "autocast"],
)
def test_the_callers_mode_changes_nothing_and_is_kept(name, caller):
    model, batch = make(name, torch.float32)
    objective = build(model, batch)
    theta = elsewhere(objective)
    expected = objective.loss_and_grad(theta, "flow")
    with caller():
        grad_mode, autocast = torch.is_grad_enabled(), torch.is_autocast_enabled("cpu")
        built_inside = build(model, tuple(t.clone() for t in batch))
        for candidate in (objective, built_inside):
            loss, grad = candidate.loss_and_grad(theta.clone(), "flow")
            assert loss == pytest.approx(expected[0], rel=1e-6)
            assert torch.allclose(grad, expected[1], rtol=1e-5, atol=1e-6)
            assert candidate.loss(theta.clone(), "loss") == pytest.approx(loss, rel=1e-6)
        assert torch.is_grad_enabled() == grad_mode
        assert torch.is_autocast_enabled("cpu") == autocast


def test_frozen_parameters_and_buffers_made_in_inference_mode_are_usable():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(IN, 4), nn.BatchNorm1d(4), nn.Linear(4, OUT))
    with torch.inference_mode():
        model[0] = nn.Linear(IN, 4)
        model[1] = nn.BatchNorm1d(4)
    batch = (torch.randn(6, IN), torch.randn(6, OUT))
    objective = build(model, batch, params=list(model[2].parameters()))
    assert objective.initial[1].any()


def test_the_switches_of_fused_attention_are_put_back():
    model, batch = make("attention")
    objective = build(model, batch)
    torch.backends.cuda.enable_mem_efficient_sdp(False)
    try:
        with objective.guard():
            assert not torch.backends.cuda.flash_sdp_enabled()
            assert torch.backends.cuda.math_sdp_enabled()
        assert torch.backends.cuda.flash_sdp_enabled()
        assert not torch.backends.cuda.mem_efficient_sdp_enabled()
        assert torch.backends.mha.get_fastpath_enabled()
    finally:
        torch.backends.cuda.enable_mem_efficient_sdp(True)


def test_hooks_can_tell_our_forward_passes_from_the_users():
    model, batch = make("checkpointed")
    ours, theirs = [], []
    assert gfs.probing is probing
    model.body.register_forward_pre_hook(lambda m, a: (ours if probing() else theirs).append(1))
    build(model, batch)
    assert ours
    assert not theirs
    squared(model, batch).backward()
    assert len(theirs) == 2  # the forward pass and its recomputation
    assert not probing()


def test_what_a_forward_pass_stores_on_its_modules_is_forgotten():
    model, batch = make("mlp")
    model.calls, model.last = 0, "the user's"

    def storing(model, batch):
        model.calls += 1
        model.last = model(batch[0])
        model.fresh = model.last.detach()
        model.eval()
        return ((model.last - batch[1]) ** 2).mean()

    build(model, batch, storing)
    assert (model.calls, model.last, model.training) == (0, "the user's", True)
    assert not hasattr(model, "fresh")


class Keeping(nn.Module):
    """Keeps what people keep: outputs in lists, sums in tensors, counts in dictionaries."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(IN, OUT)
        self.outputs, self._last = [], collections.deque(maxlen=3)
        self.total, self.by_kind = torch.zeros(()), {"train": {"count": 0, "all": []}}
        self.seen, self.alias = set(), self.outputs
        self.layer.outputs = self.outputs

    def forward(self, x):
        y = self.layer(x)
        self.outputs.append(y)
        assert len(self.alias) == len(self.layer.outputs) == len(self.outputs)
        self._last.append(y)
        self.total += y.detach().sum().float()
        self.by_kind["train"]["count"] += 1
        self.by_kind["train"]["all"].append(y)
        self.seen.add(len(self.outputs))
        return y


def test_what_a_forward_pass_adds_to_a_modules_lists_and_sums_is_forgotten():
    model, batch = Keeping().double(), make("mlp")[1]
    squared(model, batch)
    total = model.total.clone()
    objective = build(model, batch)
    objective.loss_and_grad(elsewhere(objective), "flow")
    objective.loss(elsewhere(objective), "loss")
    Curvature(objective).at(elsewhere(objective))(torch.ones(objective.layout.dim).double())
    assert (len(model.outputs), len(model._last), model.seen) == (1, 1, {1})
    assert model.alias is model.outputs is model.layer.outputs
    assert model.by_kind["train"]["count"] == len(model.by_kind["train"]["all"]) == 1
    assert torch.equal(model.total, total)


class Teacher(nn.Module):
    """A frozen encoder that follows the trained one inside forward, as in self-supervision."""

    def __init__(self, how):
        super().__init__()
        self.student, self.head = nn.Linear(IN, OUT), nn.Linear(OUT, OUT)
        self.teacher = nn.Linear(IN, OUT).requires_grad_(False)
        self.how = how

    def forward(self, x):
        pairs = list(zip(self.teacher.parameters(), self.student.parameters(), strict=True))
        with torch.no_grad():
            if self.how == "foreach":
                torch._foreach_lerp_([t for t, _ in pairs], [s for _, s in pairs], 0.1)
            for teacher, student in pairs:
                if self.how == "in place":
                    teacher.mul_(0.9).add_(student, alpha=0.1)
                elif self.how == "data in place":
                    teacher.data.mul_(0.9).add_(student.data, alpha=0.1)
                elif self.how == "data":
                    teacher.data = 0.9 * teacher.data + 0.1 * student.data
        return self.head(self.student(x)) - self.teacher(x)


@pytest.mark.parametrize("how", ["in place", "data in place", "foreach", "data"])
def test_a_forward_pass_that_moves_frozen_parameters_does_not_move_the_live_ones(how):
    torch.manual_seed(0)
    model, batch = Teacher(how).double(), make("mlp")[1]
    trained = [p for p in model.parameters() if p.requires_grad]
    before = [p.detach().clone() for p in model.parameters()]
    objective = build(model, batch, params=trained)
    theta = elsewhere(objective)
    first, out = objective.loss_and_grad(theta, "flow"), torch.zeros_like(theta)
    assert objective.loss(theta, "loss") == first[0] == objective.loss_and_grad(theta, "flow")[0]
    assert objective.add_grad(out, theta, 1.0, "flow") == first[0]
    assert torch.equal(out, first[1])
    assert all(torch.equal(*pair) for pair in zip(before, model.parameters(), strict=True))


def test_a_point_is_not_moved_by_a_forward_pass_that_limits_a_norm():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(9, IN, max_norm=0.5), nn.Flatten(), nn.Linear(2 * IN, OUT))
    words = torch.randint(0, 5, (6, 2))
    before = model[0].weight.detach().clone()
    batch = words, torch.randn(6, OUT)
    objective = build(model, batch)
    assert torch.equal(before, model[0].weight)
    theta, out = objective.layout.current(), torch.zeros(objective.layout.dim)
    kept = theta.clone()
    loss, grad = objective.loss_and_grad(theta, "flow")
    assert objective.add_grad(out, None, 1.0, "audit") == loss
    assert torch.equal(out, grad)
    assert torch.equal(theta, kept)
    assert torch.equal(before, model[0].weight)
    assert float(squared(model, batch).detach()) == loss


def test_an_objective_that_differentiates_by_the_parameters_can_be_followed():
    model, batch = make("mlp")

    def penalised(model, batch):
        loss = squared(model, batch)
        grads = torch.autograd.grad(loss, list(model.parameters()), create_graph=True)
        return loss + sum((g**2).sum() for g in grads)

    objective = build(model, batch, penalised)
    theta = objective.layout.current()
    assert objective.loss(theta, "loss") == pytest.approx(objective.initial[0], rel=1e-12)


# ---- wrappers -------------------------------------------------------------------------------


def test_compiled_models_are_evaluated_eagerly():
    model, batch = make("mlp")
    plain = build(model, batch).initial[1]
    received = []

    def spy(model, batch):
        received.append(model)
        return squared(model, batch)

    def never(graph, inputs):
        raise AssertionError("compiled")

    for compiled in (
        torch.compile(model, backend=never),
        nn.Sequential(torch.compile(model, backend=never)),
    ):
        objective = build(compiled, batch, spy, params=list(model.parameters()))
        assert torch.equal(objective.initial[1], plain)
    assert received[0] is model
    model.compile(backend=never)
    assert torch.equal(build(model, batch).initial[1], plain)


def test_a_compiled_objective_is_called_by_its_original():
    def never(graph, inputs):
        raise AssertionError("compiled")

    model, batch = make("mlp")
    plain = build(model, batch).initial[1]
    assert torch.equal(build(model, batch, torch.compile(squared, backend=never)).initial[1], plain)


def test_distributed_wrappers_are_looked_through(tmp_path):
    model, batch = make("mlp")
    plain = build(model, batch).initial[1]
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1
    )
    try:
        wrapped = nn.parallel.DistributedDataParallel(model)
        received = []

        def spy(model, batch):
            received.append(model)
            return squared(model, batch)

        objective = build(wrapped, batch, spy)
        assert torch.equal(objective.initial[1], plain)
        assert received[0] is model
    finally:
        torch.distributed.destroy_process_group()


class TwoRanks:
    """Stands for a second rank with the same data and, by its share, three times the samples."""

    def share_of(self, samples, device):
        assert samples == N
        return 0.25

    def mean(self, tensor, weight):
        return 8 * weight * tensor


def test_values_are_averaged_over_ranks_by_their_samples():
    model, batch = make("mlp")
    objective = build(model, batch)
    doubled = build(model, batch, ranks=TwoRanks())
    theta = elsewhere(objective)
    assert doubled.loss(theta, "loss") == pytest.approx(2 * objective.loss(theta, "loss"))
    expected = objective.loss_and_grad(theta, "flow")
    loss, grad = doubled.loss_and_grad(theta, "flow")
    assert loss == pytest.approx(2 * expected[0])
    assert torch.equal(grad, 2 * expected[1])


def test_scripted_models_work():
    model, batch = make("mlp")
    plain = build(model, batch)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scripted = torch.jit.script(model)
    objective = build(scripted, batch)
    theta = elsewhere(plain)
    expected = plain.loss_and_grad(theta, "flow")[1]
    assert torch.allclose(objective.loss_and_grad(theta, "flow")[1], expected, rtol=1e-12)
    assert torch.allclose(objective.layout.current(), plain.layout.current())


def test_a_dropped_objective_is_freed():
    model, batch = make("mlp")
    objective = build(model, batch)
    dead = weakref.ref(objective)
    gc.disable()
    try:
        del objective
        assert dead() is None
    finally:
        gc.enable()


# ---- data -----------------------------------------------------------------------------------


def full(n=11):
    torch.manual_seed(0)
    model = mlp().double()
    x, y = torch.randn(n, IN, dtype=torch.float64), torch.randn(n, OUT, dtype=torch.float64)
    return model, x, y


class Pairs(Dataset):
    def __init__(self, x, y):
        self.x, self.y = x, y

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        return self.x[i], self.y[i]


class Stream(IterableDataset):
    def __init__(self, x, y):
        self.x, self.y = x, y

    def __iter__(self):
        return zip(self.x, self.y, strict=True)


class Iterates:
    """Somebody else's loader."""

    def __init__(self, batches):
        self.batches = batches

    def __iter__(self):
        return iter(self.batches)


class Duck:
    def __init__(self, x, y):
        self.x, self.y = x, y

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        if i >= len(self):
            raise IndexError
        return self.x[i], self.y[i]


SOURCES = OrderedDict(
    batch=lambda x, y: (x, y),
    list_batch=lambda x, y: [x, y],
    batches=lambda x, y: [(x[:4], y[:4]), (x[4:8], y[4:8]), (x[8:], y[8:])],
    tensor_dataset=TensorDataset,
    dataset=Pairs,
    subset=lambda x, y: Subset(Pairs(torch.cat([x, x]), torch.cat([y, y])), range(len(x))),
    duck=Duck,
    stream=Stream,
    loader=lambda x, y: DataLoader(Pairs(x, y), batch_size=4),
    shuffled=lambda x, y: DataLoader(Pairs(x, y), batch_size=4, shuffle=True),
    sampled=lambda x, y: DataLoader(
        Pairs(x, y), batch_size=3, sampler=RandomSampler(range(len(x)), generator=torch.Generator())
    ),
    unbatched=lambda x, y: DataLoader([(x[:7], y[:7]), (x[7:], y[7:])], batch_size=None),
    stream_loader=lambda x, y: DataLoader(Stream(x, y), batch_size=4),
    iterable=lambda x, y: Iterates([(x[:7], y[:7]), (x[7:], y[7:]), (x[:0], y[:0])]),
    returns_batch=lambda x, y: lambda: (x, y),
    returns_loader=lambda x, y: lambda: DataLoader(Pairs(x, y), batch_size=4),
    returns_iterator=lambda x, y: lambda: iter([(x[:7], y[:7]), (x[7:], y[7:])]),
)


@pytest.mark.parametrize("kept", [True, False], ids=["kept", "walked_again"])
@pytest.mark.parametrize("source", SOURCES)
def test_every_kind_of_data_gives_the_full_mean_exactly(source, kept, monkeypatch):
    if not kept:
        monkeypatch.setattr(_data, "CACHE_BYTES", 1)
    monkeypatch.setattr(_sources, "CHUNK_SIZE", 4)
    model, x, y = full()
    expected = build(model, (x, y))
    state = torch.get_rng_state()
    objective = Objective(model, squared, SOURCES[source](x, y), expected.layout, Ledger())
    theta = elsewhere(expected)
    loss, grad = objective.loss_and_grad(theta, "flow")
    assert loss == pytest.approx(expected.loss(theta, "loss"), rel=1e-13)
    assert torch.allclose(grad, expected.loss_and_grad(theta, "flow")[1], rtol=1e-11)
    assert objective.loss(theta, "loss") == pytest.approx(loss, rel=1e-13)
    weights = [weight for _, weight in objective.chunks()]
    assert sum(weights) == pytest.approx(1.0, abs=1e-15)
    assert len(weights) == objective.n_chunks
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("kept", [True, False], ids=["kept", "walked_again"])
def test_every_walk_yields_the_same_batches_and_moves_no_stream(kept, monkeypatch):
    if not kept:
        monkeypatch.setattr(_data, "CACHE_BYTES", 1)
    model, x, y = full()

    class Augmented(Pairs):
        def __getitem__(self, i):
            noise = torch.rand(()) + random.random() + np.random.rand()  # noqa: NPY002
            return self.x[i] + noise, self.y[i]

    own, sampler_own = torch.Generator(), torch.Generator()
    data = Augmented(x, y)
    sampler = RandomSampler(data, generator=sampler_own)
    loader = DataLoader(data, batch_size=4, sampler=sampler, generator=own)
    streams = (
        torch.get_rng_state,
        own.get_state,
        sampler_own.get_state,
        lambda: torch.tensor(random.getstate()[1]),
        lambda: torch.tensor(np.random.get_state()[1].astype("int64")),  # noqa: NPY002
    )
    before = [read() for read in streams]
    objective = Objective(model, squared, loader, layout_of(model), Ledger())
    walks = [[batch[0].clone() for batch, _ in objective.chunks()] for _ in range(2)]
    partial = objective.chunks()
    next(partial)
    for old, read in zip(before, streams, strict=True):
        assert torch.equal(old, read())
    for a, b in zip(*walks, strict=True):
        assert torch.equal(a, b)


def test_walking_a_loader_does_not_restart_the_users_epoch():
    model, x, y = full()
    loader = DataLoader(Pairs(x, y), batch_size=4, num_workers=1, persistent_workers=True)
    theirs = iter(loader)
    first = next(theirs)
    objective = Objective(model, squared, loader, layout_of(model), Ledger())
    objective.loss(objective.layout.current(), "loss")
    rest = list(theirs)
    assert torch.equal(torch.cat([first[0], *(batch[0] for batch in rest)]), x)
    del theirs, loader


def test_unequal_batches_are_weighted_by_their_size():
    model = nn.Linear(1, 1, bias=False).double()
    data = [(torch.full((n, 1), value).double(),) for n, value in ((1, 6.0), (2, 3.0), (3, 2.0))]
    objective = build(model, data, lambda m, b: m(b[0]).mean())
    assert float(objective.initial[1]) == pytest.approx((6 + 6 + 6) / 6)
    assert [weight for _, weight in objective.chunks()] == pytest.approx([1 / 6, 1 / 3, 1 / 2])


def test_a_dropped_last_batch_stays_dropped():
    model, x, y = full(11)
    loader = DataLoader(Pairs(x, y), batch_size=4, drop_last=True)
    objective = build(model, loader)
    assert objective.n_chunks == 2
    assert objective.initial[0] == pytest.approx(build(model, (x[:8], y[:8])).initial[0])


def test_batches_keep_their_class():
    class Encoding(UserDict):
        pass

    model, x, y = full()
    seen = []

    def fn(model, batch):
        seen.append(batch)
        return ((model(batch["x"]) - batch["y"]) ** 2).mean()

    with torch.inference_mode():
        frozen = Encoding(x=x.clone(), y=y.clone())
    build(model, frozen, fn)
    assert type(seen[0]) is Encoding
    assert frozen["x"].is_inference()
    assert not seen[0]["x"].is_inference()
    plain = Encoding(x=x, y=y)
    build(model, plain, fn)
    assert seen[-1] is plain


def test_big_data_are_walked_again_and_small_ones_once(monkeypatch):
    model, x, y = full()
    reads = []

    class Counted(Pairs):
        def __getitem__(self, i):
            reads.append(i)
            return super().__getitem__(i)

    monkeypatch.setattr(_sources, "CHUNK_SIZE", 4)
    objective = build(model, Counted(x, y))
    assert len(reads) == 11
    objective.loss(objective.layout.current(), "loss")
    assert len(reads) == 11
    monkeypatch.setattr(_data, "CACHE_BYTES", 1)
    reads.clear()
    objective = build(model, Counted(x, y))
    reads.clear()
    objective.loss(objective.layout.current(), "loss")
    assert len(reads) == 11


@pytest.mark.parametrize("after", [7, 15], ids=["shrinks", "grows"])
def test_data_that_change_between_walks_are_refused(after, monkeypatch):
    model, x, y = full(11)
    data = Pairs(x, y)
    monkeypatch.setattr(_sources, "CHUNK_SIZE", 4)
    monkeypatch.setattr(_data, "CACHE_BYTES", 1)
    objective = build(model, data)
    data.x, data.y = torch.randn(after, IN).double(), torch.randn(after, OUT).double()
    with pytest.raises(ValueError, match="the same at every walk, got not the 3 batches of 11"):
        objective.loss(objective.layout.current(), "loss")


def test_the_loaders_of_accelerate_are_read_beside_the_accelerators_state():
    model, x, y = full()

    class Shard(DataLoader):
        def __iter__(self):
            raise AssertionError("tells the accelerator that an epoch begins")

    loader = Shard(Pairs(x, y), batch_size=4)
    loader.base_dataloader = DataLoader(Pairs(x, y), batch_size=4)
    loader.device = torch.device("cpu")
    expected = build(model, (x, y)).initial[0]
    assert build(model, loader).initial[0] == pytest.approx(expected, rel=1e-13)


# ---- refusals -------------------------------------------------------------------------------


def refused(match, model, data, fn=squared, error=ObjectiveError, params=None):
    before, state = fingerprint(model), torch.get_rng_state()
    with pytest.raises(error, match=match) as caught:
        Objective(model, fn, data, layout_of(model, params), Ledger())
    assert_same(before, fingerprint(model))
    assert torch.equal(state, torch.get_rng_state())
    return caught.value


def test_what_is_not_a_model_is_refused():
    model, batch = make("mlp")
    with pytest.raises(TypeError, match=r"model must be a torch.nn.Module, got a list"):
        Objective([model], squared, batch, layout_of(model), Ledger())


def test_what_is_not_a_function_of_model_and_batch_is_refused():
    model, batch = make("mlp")
    refused("objective must be a function .* got a float", model, batch, 0.5, TypeError)
    refused("two arguments", model, batch, lambda model: 0.0, TypeError)
    refused("two arguments", model, batch, lambda model, x, y: 0.0, TypeError)


def test_a_loss_that_is_not_a_scalar_tensor_is_refused():
    model, batch = make("mlp")
    refused(r"scalar tensor, got a Tensor of shape \[12, 3\]", model, batch, lambda m, b: m(b[0]))
    refused("got a float", model, batch, lambda m, b: squared(m, b).item())
    refused("got a NoneType", model, batch, lambda m, b: None)


def test_a_loss_of_one_element_is_a_scalar():
    model, batch = make("mlp")
    objective = build(model, batch, lambda m, b: squared(m, b).reshape(1, 1))
    assert objective.initial[0] == pytest.approx(build(model, batch).initial[0])


def test_a_loss_that_is_not_finite_is_refused():
    model, batch = make("mlp")
    refused("finite, with its gradient, got nan", model, batch, lambda m, b: squared(m, b) / 0 * 0)
    refused("finite, with its gradient, got inf", model, batch, lambda m, b: squared(m, b) / 0)
    refused("gradient of NaN", model, batch, lambda m, b: (m(b[0]) * 0).abs().sqrt().sum())


def test_a_loss_that_is_not_deterministic_is_refused():
    model, batch = make("mlp")
    counter = iter(range(100))
    error = refused(
        r"^objective must be deterministic, got \S+ and \S+ from two evaluations .*eval",
        model,
        batch,
        lambda m, b: squared(m, b) * (1 + 1e-3 * next(counter)),
    )
    assert isinstance(error, ValueError)
    refused("deterministic", model, batch, lambda m, b: squared(m, b) * (1 + random.random()))


def test_a_loss_without_a_graph_is_refused():
    model, batch = make("mlp")
    refused("a loss without a graph", model, batch, lambda m, b: squared(m, b).detach())
    refused("without a graph", model, batch, torch.no_grad()(squared))
    with torch.inference_mode():
        refused("without a graph", model, batch, torch.inference_mode()(squared))


def test_a_loss_of_other_parameters_is_refused():
    model, batch = make("mlp")
    other = mlp().double()
    refused("depends on none of them", model, batch, lambda m, b: squared(other, b))


def test_a_gradient_that_happens_to_vanish_is_not_refused():
    model, (x, _) = make("mlp")
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
    objective = build(model, (x, torch.zeros(len(x), OUT, dtype=x.dtype)))
    assert not objective.initial[1].any()


def test_data_in_another_precision_is_one_clear_message():
    model, (x, y) = make("mlp", torch.float32)
    error = refused(
        r"runs on the data, got RuntimeError \(.*\)\. The batch holds torch.float64, the "
        r"parameters are torch.float32: cast",
        model,
        (x.double(), y),
    )
    assert isinstance(error.__cause__, RuntimeError)
    refused("no floating-point tensor, only torch.int64", model, (x.long(), y.long()))


def test_data_on_another_device_is_one_clear_message():
    model, (x, y) = make("mlp")
    refused("The batch is on meta, the parameters are on cpu: move", model, (x.to("meta"), y))


def test_the_users_own_error_is_chained():
    model, batch = make("mlp")
    error = refused("KeyError", model, batch, lambda m, b: {}["labels"])
    assert isinstance(error.__cause__, KeyError)


@pytest.mark.parametrize(
    ("data", "error", "match"),
    [
        ([], ValueError, "data must be non-empty"),
        (lambda: iter([]), ValueError, "data must be non-empty"),
        (torch.zeros(0, IN), ValueError, "data must be non-empty"),
        (TensorDataset(torch.zeros(0, IN)), ValueError, "data must be non-empty"),
        (None, TypeError, "data must be a batch, .* got None"),
        ((x for x in "ab"), TypeError, "got a generator. A one-shot iterator"),
        ([{"a": 1}, {"a": 2}], ValueError, "whose size can be read"),
    ],
    ids=["list", "iterator", "tensor", "dataset", "none", "generator", "sizeless"],
)
def test_unusable_data_are_refused(data, error, match):
    model, _ = make("mlp")
    refused(match, model, data, error=error)


def test_one_batch_needs_no_size():
    model, batch = make("mlp")
    objective = build(model, object(), lambda m, b: squared(m, batch))
    assert [weight for _, weight in objective.chunks()] == [1.0]


def test_a_model_of_float32_constants_is_evaluated_in_its_own_precision():
    torch.manual_seed(0)
    model = Float32Only()
    objective = build(model, (torch.randn(6, IN), torch.randn(6, OUT)))
    assert objective.initial[1].dtype == torch.float32


def test_evaluation_needs_no_default_device():
    """Every tensor follows the parameters: on meta, nothing could be mixed with the CPU."""
    from torch_gfshadow._sandbox import Sandbox

    model = mlp().to("meta")
    layout = layout_of(model)
    sandbox = Sandbox(model, squared, layout)
    batch = (torch.empty(4, IN, device="meta"), torch.empty(4, OUT, device="meta"))
    with sandbox.guard():
        params = sandbox.params_at(layout.current(), requires_grad=True)
        loss, grads = sandbox.grads(params, batch)
    assert loss.device.type == "meta"
    assert layout.flatten(grads).device.type == "meta"


def test_checkpointed_models_recompute_at_the_given_point():
    """After the swap has ended, recomputation would find the live parameters instead."""
    model, batch = make("checkpointed")
    objective = build(model, batch)
    zero = torch.zeros(objective.layout.dim, dtype=torch.float64)
    grad = objective.layout.unflatten(objective.loss_and_grad(zero, "flow")[1])
    assert not grad["body.0.weight"].any()
    assert isinstance(model, Checkpointed)
    assert grad["head.bias"].any()


@pytest.mark.parametrize("earlier", [False, True], ids=["silent", "refusing"])
def test_reentrant_checkpoints_reach_their_parameters(earlier):
    """autograd.grad says "unused" if nothing before the checkpoint is trained, else it raises."""
    model, batch = make("checkpointed_reentrant")
    outside = torch.ones((), dtype=torch.float64, requires_grad=True)
    outside.grad = torch.full_like(outside, 5.0)

    def fn(model, batch):
        x = batch[0] * model.head.bias.sum() if earlier else batch[0]
        if earlier:
            body = torch.utils.checkpoint.checkpoint(model.body, x, use_reentrant=True)
            return outside * ((model.head(body) - batch[1]) ** 2).mean()
        return outside * squared(model, (x, batch[1]))

    objective = build(model, batch, fn)
    torch.manual_seed(SEED)
    fn(model, batch).backward()
    expected = objective.layout.flatten([p.grad for p in model.parameters()])
    assert torch.allclose(objective.initial[1], expected, rtol=1e-12)
    assert objective.initial[1][: IN * 4].all()
    for p in model.parameters():
        p.grad = None
    outside.grad = torch.full_like(outside, 5.0)
    assert torch.equal(
        objective.loss_and_grad(objective.layout.current(), "flow")[1], objective.initial[1]
    )
    assert all(p.grad is None for p in model.parameters())
    assert outside.grad == 5.0


def test_classification_with_integer_targets():
    torch.manual_seed(0)
    model = mlp()
    x, y = torch.randn(9, IN), torch.randint(0, OUT, (9,))

    def fn(model, batch):
        return nn.functional.cross_entropy(model(batch[0]), batch[1])

    objective = build(model, TensorDataset(x, y), fn)
    assert objective.initial[0] == pytest.approx(fn(model, (x, y)).item(), rel=1e-6)


@dataclass(frozen=True)
class Row:
    inputs: torch.Tensor
    targets: torch.Tensor
    name: str = "row"

    def __post_init__(self):
        assert self.name == "row"


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
@pytest.mark.parametrize("layout", [torch.sparse_coo, torch.sparse_csr])
def test_batches_may_be_sparse(layout):
    torch.manual_seed(0)
    model, x = nn.Linear(IN, OUT).double(), torch.randn(N, IN, dtype=torch.float64).relu()
    y = torch.randn(N, OUT, dtype=torch.float64)

    def product(model, batch):
        seen = batch[0] @ model.weight.t() + model.bias
        return 0.5 * (seen - batch[1]).square().sum(1).mean()

    sparse = build(model, (x.to_sparse(layout=layout), y), product)
    plain = build(model, (x, y), product)
    theta = elsewhere(plain)
    assert torch.allclose(
        sparse.loss_and_grad(theta, "flow")[1], plain.loss_and_grad(theta, "flow")[1]
    )
    v = torch.ones_like(theta)
    products = [Curvature(f).at(theta)(v) for f in (sparse, plain)]
    assert torch.allclose(*products, rtol=1e-6)


def test_batches_may_be_dataclasses():
    x, y = torch.randn(7, IN), torch.randn(7, OUT)
    rows = [Row(x[:5], y[:5]), Row(x[5:], y[5:])]
    chunks = _data.Chunks(rows)
    assert [(batch.inputs.shape[0], weight) for batch, weight in chunks] == [(5, 5 / 7), (2, 2 / 7)]
    assert [weight for _, weight in _data.Chunks(rows[0])] == [1.0]
    first = _batch.head(rows[0], 2)
    assert isinstance(first, Row)
    assert torch.equal(first.inputs, x[:2])
    assert torch.equal(first.targets, y[:2])
    assert rows[0].inputs.shape[0] == 5
    assert _batch.map_tensors(lambda t: t, rows[0]) is rows[0]
