import copy
import gc
import pickle
import weakref

import pytest
import torch
from loops import data, full_batch, loss_of, mlp, seed, sgd, shadow_of
from torch import nn

import torch_gfshadow as gfs
from torch_gfshadow.hooks import _WRAPPER_CODE, StepHooks


class Spy:
    """Counts what StepHooks calls."""

    def __init__(self, optimizer, skips=lambda: False):
        self.calls, self.errors = [], []
        self.hooks = StepHooks(
            lambda: self.calls.append("before"),
            lambda: self.calls.append("after"),
            skips,
            self.errors.append,
        )
        self.hooks.install(optimizer, lambda: self.calls.append("loaded"))


@pytest.fixture
def model():
    seed()
    model = mlp()
    loss_of(model, data()).backward()
    return model


def test_one_step_is_one_before_and_one_after(model):
    optimizer = sgd(model)
    spy = Spy(optimizer)
    optimizer.step()
    assert spy.calls == ["before", "after"]


def test_torch_still_wraps_step_in_the_code_object_we_look_for(model):
    optimizer = sgd(model)
    assert type(optimizer).step.__code__ is _WRAPPER_CODE


@pytest.mark.parametrize("warmed", [False, True])
def test_a_subclass_that_calls_super_step_takes_one_step(model, warmed):
    if warmed:  # only now is SGD.step wrapped, and its hooks fire twice
        sgd(model)

    class Mine(torch.optim.SGD):
        def step(self, closure=None):
            return super().step(closure)

    optimizer = Mine(model.parameters(), lr=0.1)
    spy = Spy(optimizer)
    for _ in range(3):
        optimizer.step()
    assert spy.calls == ["before", "after"] * 3
    optimizer.step(lambda: loss_of(model, data()))
    assert spy.calls == ["before", "after"] * 4


def test_after_a_step_that_raised_the_next_one_is_seen(model):
    class Flaky(torch.optim.SGD):
        broken = True

        def step(self, closure=None):
            if self.broken:
                raise OSError("midway")
            return super().step(closure)

    optimizer = Flaky(model.parameters(), lr=0.1)
    spy = Spy(optimizer)
    with pytest.raises(OSError, match="midway"):
        optimizer.step()
    optimizer.broken = False
    optimizer.step()
    optimizer.step()
    assert spy.calls == ["before"] + ["before", "after"] * 2


def test_a_subclass_that_retries_super_step_takes_one_step(model):
    class Fragile(torch.optim.SGD):
        raised = False

        def step(self, closure=None):
            self.raised = not self.raised
            if self.raised:
                raise OSError("first try")
            return super().step(closure)

    Fragile(model.parameters(), lr=0.1)  # now Fragile.step is wrapped, as SGD.step is

    class Retrying(Fragile):
        def step(self, closure=None):
            with pytest.raises(OSError, match="first try"):
                super().step(closure)
            return super().step(closure)

    optimizer = Retrying(model.parameters(), lr=0.1)
    spy = Spy(optimizer)
    optimizer.step()
    optimizer.step()
    assert spy.calls == ["before", "after"] * 2


@pytest.mark.parametrize("keyword", [False, True])
def test_with_a_closure_before_is_called_once_and_sees_its_gradients(model, keyword):
    optimizer = sgd(model)
    seen = []
    hooks = StepHooks(
        lambda: seen.append(model[0].weight.grad is not None),
        lambda: seen.append("after"),
        lambda: False,
        seen.append,
    )
    hooks.install(optimizer, lambda: None)
    optimizer.zero_grad()

    def closure():
        loss = loss_of(model, data())
        loss.backward()
        return loss

    out = optimizer.step(closure=closure) if keyword else optimizer.step(closure)
    assert seen == [True, "after"]
    assert isinstance(out, torch.Tensor)


def test_a_skipped_step_calls_neither(model):
    optimizer = sgd(model)
    spy = Spy(optimizer, skips=lambda: True)
    optimizer.step()
    assert spy.calls == []


def test_loading_a_state_is_told(model):
    optimizer = sgd(model)
    spy = Spy(optimizer)
    optimizer.load_state_dict(optimizer.state_dict())
    assert spy.calls == ["loaded"]


@pytest.mark.parametrize("phase", ["before", "after", "skips"])
def test_hooks_may_be_removed_from_inside_while_other_hooks_follow(model, phase):
    optimizer = sgd(model)

    def broken():
        raise OSError(phase)

    def quiet():
        return False

    hooks = StepHooks(
        broken if phase == "before" else quiet,
        broken if phase == "after" else quiet,
        broken if phase == "skips" else quiet,
        lambda error: (errors.append(error), hooks.remove()),
    )
    errors, others = [], []
    hooks.install(optimizer, lambda: None)
    optimizer.register_step_pre_hook(lambda *_: others.append("pre"))
    optimizer.register_step_post_hook(lambda *_: others.append("post"))
    optimizer.step()
    optimizer.step()
    assert [str(e) for e in errors] == [phase]
    assert others == ["pre", "post"] * 2
    hooks.remove()
    assert len(optimizer._optimizer_step_pre_hooks) == 1
    assert len(optimizer._optimizer_step_post_hooks) == 1


def test_removed_hooks_leave_the_tables_as_they_were(model):
    optimizer = sgd(model)
    spy = Spy(optimizer)
    spy.hooks.remove()
    optimizer.step()
    assert spy.calls == []
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks
    assert not optimizer._optimizer_load_state_dict_post_hooks


def test_hooks_copy_and_pickle_to_nothing(model):
    optimizer = sgd(model)
    spy = Spy(optimizer)
    for hook in optimizer._optimizer_step_pre_hooks.values():
        for twin in (copy.deepcopy(hook), pickle.loads(pickle.dumps(hook))):
            assert twin(optimizer, (), {}) is None
    assert spy.calls == []


def test_before_and_after_run_outside_inference_mode_and_graphs(model):
    optimizer = sgd(model)
    seen = []
    hooks = StepHooks(
        lambda: seen.append((torch.is_inference_mode_enabled(), torch.is_grad_enabled())),
        lambda: seen.append((torch.is_inference_mode_enabled(), torch.is_grad_enabled())),
        lambda: False,
        seen.append,
    )
    hooks.install(optimizer, lambda: None)
    with torch.inference_mode():
        optimizer.step()
    with torch.enable_grad():
        optimizer.step()
    assert seen == [(False, False)] * 4


def test_interrupts_are_not_swallowed(model):
    optimizer = sgd(model)

    def interrupted():
        raise KeyboardInterrupt

    failures = []
    hooks = StepHooks(interrupted, lambda: None, lambda: False, failures.append)
    hooks.install(optimizer, lambda: None)
    with pytest.raises(KeyboardInterrupt):
        optimizer.step()
    assert failures == []


@pytest.mark.parametrize("fails", [False, True])
def test_the_optimizer_is_held_weakly(fails):
    seed()
    model = mlp()
    optimizer = sgd(model)
    calls = []

    def objective(model, batch):
        calls.append(1)
        if fails and len(calls) > 20:
            raise OSError("gone")
        return loss_of(model, batch)

    shadow = gfs.attach(optimizer, model, objective, data=data(), probes=())
    if fails:
        with pytest.warns(RuntimeWarning, match="gone"):
            full_batch(optimizer, model, 60)
    else:
        full_batch(optimizer, model, 2)
    ref = weakref.ref(optimizer)
    del optimizer
    gc.collect()
    assert ref() is None
    assert len(shadow.records) >= 2
    shadow.detach()


def test_a_model_can_be_copied_while_its_optimizer_is_watched():
    seed()
    model = mlp()
    optimizer = sgd(model)
    shadow_of(optimizer, model)
    full_batch(optimizer, model, 1)
    twin_model, twin = copy.deepcopy((model, optimizer))
    assert not twin._optimizer_step_pre_hooks
    assert twin.param_groups[0]["params"][0] is next(twin_model.parameters())
    assert isinstance(twin_model, nn.Sequential)
