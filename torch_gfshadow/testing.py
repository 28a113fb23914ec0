"""The kit for plugin authors: make records, isolate plugins, and check them against their contract.

Needs no test runner: every ``assert_…`` raises AssertionError with a sentence.
"""

from __future__ import annotations

import gc
import os
import random
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from torch_gfshadow.attach import attach
from torch_gfshadow.discovery import LOAD, forget_installed
from torch_gfshadow.errors import GFShadowError, PluginError
from torch_gfshadow.handle import Shadow
from torch_gfshadow.loggers import Logger, make_header
from torch_gfshadow.plugins import Plugins
from torch_gfshadow.record import Record
from torch_gfshadow.status import Status


def make_record(step: int = 3, **fields: Any) -> Record:
    """Return a plausible record of step ``step``; ``fields`` replace what it holds."""
    values: dict[str, Any] = {
        "step": step,
        "time": 0.1 * step,
        "step_size": 0.1,
        "loss": 1.0 / (1 + abs(step)),
        "grad_norm": 0.5,
        "distance_from_init": 0.3,
        "discrepancy": 1e-3 / 3,
        "relative_discrepancy": 1e-2 / 9,
        "solver_error": 1e-5,
        "local_defect": 0.02,
        "lambda_min": -0.7,
        "lambda_min_residual": 1e-3,
        "lambda_max": 4.0,
        "lambda_max_residual": 1e-2,
        "edge": 0.4,
        "audit": "match",
    }
    return Record(**{**values, **fields})


@contextmanager
def isolated_plugins(load: Sequence[str] = ()) -> Iterator[None]:
    """Inside the block only the installed plugins named in ``load`` exist, none by default.

    What was loaded before is forgotten on entry and on exit, so tests do not see each other.
    """
    before = os.environ.get(LOAD)
    os.environ[LOAD] = ",".join(load)
    forget_installed()
    try:
        yield
    finally:
        forget_installed()
        if before is None:
            del os.environ[LOAD]
        else:
            os.environ[LOAD] = before


def toy_run(steps: int = 20, **options: Any) -> Shadow:
    """Train a small smooth network by gradient descent with a shadow beside it.

    Full batch, float64, step size 0.1, on the CPU; the same run each time. No installed plugin
    takes part, and no random state outside is touched.

    Args:
        steps: Optimizer steps to take.
        options: Arguments of :func:`torch_gfshadow.attach`, for example ``plugins=[mine]``.
            ``on_error="raise"`` unless given.

    Returns:
        The shadow, detached: loggers are finished, records stay.
    """
    with isolated_plugins(), _own_random_state():
        model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1)).double()
        data = _toy_data()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        given = {"data": data, "on_error": "raise", **options}
        with attach(optimizer, model, _toy_loss, **given) as shadow:
            for _ in range(steps):
                optimizer.zero_grad()
                _toy_loss(model, data).backward()  # type: ignore[no-untyped-call]
                optimizer.step()
    return shadow


def assert_inert(plugin: object | None = None, *, steps: int = 10, **options: Any) -> None:
    """Assert that training is bit-identical with and without a shadow that uses ``plugin``.

    The run has what is easily disturbed: dropout, batch normalisation, shuffled minibatches,
    momentum. Parameters, buffers, gradients and train flags are compared after every step, and
    the random states of torch, NumPy and Python.

    Args:
        plugin: The plugin; ``None`` checks ``options`` alone.
        steps: Optimizer steps to compare.
        options: Arguments of :func:`torch_gfshadow.attach` that put the plugin to use, for
            example ``probes=["mine"]``. ``flow="gradient_flow"`` and ``on_error="raise"``
            unless given.
    """
    if plugin is not None:
        options = {**options, "plugins": [plugin]}
    expected, got = _disturbable_run(steps, None), _disturbable_run(steps, options)
    for step, (plain, shadowed) in enumerate(zip(expected, got, strict=True), 1):
        changed = [name for name, value in plain.items() if not _same(value, shadowed[name])]
        if changed:
            names = ", ".join(changed)
            raise AssertionError(f"training was disturbed: at step {step} {names} differ")


def assert_hooks_valid(plugin: object) -> None:
    """Assert that every hook of ``plugin`` exists, has a known signature, and registers specs.

    Args:
        plugin: The module or object that ``plugins=[...]`` or the entry point names.
    """
    with isolated_plugins():
        try:
            Plugins([plugin], on_error="raise")
        except PluginError as error:
            raise AssertionError(str(error)) from error


def assert_logger_contract(
    make: Callable[[Path], Logger], directory: Path, *, writes_files: bool = True
) -> None:
    """Assert everything the tracker and the user rely on in a logger.

    Construction opens nothing; ``start``, ``write``, ``finish`` work in this order, a second time
    too, and whatever a record holds; ``finish`` may be repeated or come first; a record outside
    is an error; nothing it is given is changed; no tensor is kept alive; no random number is
    drawn; and a target that cannot be written is a ValueError that names it.

    Args:
        make: Builds a logger that writes to the path it is given.
        directory: An empty directory to write in.
        writes_files: Whether the path means anything; if not, no bad path is tried.
    """
    target = directory / "new" / "target"
    logger = make(target)
    if not isinstance(logger, Logger):
        raise AssertionError(f"{logger!r} has no start, write and finish")
    if any(directory.iterdir()):
        raise AssertionError("constructing a logger must open nothing: start() does")
    random_state, torch_state = random.getstate(), torch.get_rng_state()

    logger.finish({})
    _assert_refuses(logger, "before start()")
    for _ in range(2):
        _assert_writes(logger)
        _assert_refuses(logger, "after finish()")
        logger.finish({})
    _assert_writes(make(target))
    if random.getstate() != random_state or not torch.equal(torch.get_rng_state(), torch_state):
        raise AssertionError("a logger must draw no random number: it would change the run")
    if writes_files:
        _assert_names_bad_target(make, directory)


def hostile_records() -> list[Record]:
    """Return records that are hard to write: gaps, NaN, infinities, text, nesting, extremes."""
    return [
        Record(step=0, time=0.0),
        make_record(1),
        make_record(2, loss=float("nan"), edge=float("inf"), discrepancy=5e-324, time=1 / 3),
        make_record(
            3,
            bounds={"theorem2": {"value": 0.1 + 0.2, "certified": False, "status": "ok"}},
            extras={"plugin": {"list": [1, 2.5, None], "text": 'a "quoted", cell\nλ → ∞'}},
            status=Status.UNRESOLVED,
            status_detail='two\nlines, "quoted", λ',
        ),
    ]


def _disturbable_run(steps: int, options: dict[str, Any] | None) -> list[dict[str, Any]]:
    """Train, with a shadow unless ``options`` is ``None``; return what can be seen at each step."""
    seen = []
    with isolated_plugins(), _own_random_state():
        layers = nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.2), nn.Linear(8, 1)
        model = nn.Sequential(*layers).double()
        x, y = _toy_data()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.5)
        shadow = None
        if options is not None:
            defaults = {"data": (x, y), "flow": "gradient_flow", "on_error": "raise"}
            given = {**defaults, **options}
            shadow = attach(optimizer, model, _toy_loss, **given)
        for _ in range(steps):
            rows = torch.randperm(len(x))[:16]
            optimizer.zero_grad()
            _toy_loss(model, (x[rows], y[rows])).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            seen.append(_visible(model))
        if shadow is not None:
            shadow.detach()
    return seen


def _visible(model: nn.Module) -> dict[str, Any]:
    seen: dict[str, Any] = {
        "torch's random state": torch.get_rng_state(),
        "NumPy's random state": np.random.get_state()[1].tolist(),  # type: ignore[index] # noqa: NPY002
        "Python's random state": random.getstate(),
        "the train flag": [module.training for module in model.modules()],
    }
    for name, parameter in model.named_parameters():
        seen[f"gradient of {name}"] = None if parameter.grad is None else parameter.grad.clone()
        seen[f"parameter {name}"] = parameter.detach().clone()
    return seen | {f"buffer {name}": buffer.clone() for name, buffer in model.named_buffers()}


def _same(a: Any, b: Any) -> bool:
    return (
        torch.equal(a, b) if isinstance(a, Tensor) and isinstance(b, Tensor) else a is b or a == b
    )


def _toy_data() -> tuple[Tensor, Tensor]:
    x = torch.randn(32, 4, dtype=torch.float64)
    return x, torch.sin(x.sum(1, keepdim=True))


def _toy_loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    x, y = batch
    error: Tensor = model(x) - y
    return 0.5 * error.square().mean()


@contextmanager
def _own_random_state() -> Iterator[None]:
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        np.random.seed(0)  # noqa: NPY002
        random.seed(0)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002


def _assert_writes(logger: Logger) -> None:
    """Run one session; the mappings are read-only, so changing one raises by itself."""
    logger.start(_frozen(make_header({"every": 1}, seed=0)))
    for record in hostile_records():
        before = repr(record)
        logger.write(record)
        if repr(record) != before:
            raise AssertionError(f"write() changed {before} into {record!r}")
    tensor = torch.ones((), dtype=torch.float64)
    alive = weakref.ref(tensor)
    logger.write(make_record(4, extras={"plugin": {"tensor": tensor}}))
    del tensor
    gc.collect()
    if alive() is not None:
        raise AssertionError("a logger must keep no tensor alive: keep to_dict() of the record")
    logger.finish(_frozen({"n_records": 5, "final_discrepancy": float("nan")}))


def _frozen(mapping: Mapping[str, Any]) -> Mapping[str, Any]:
    return MappingProxyType(
        {
            key: _frozen(value) if isinstance(value, Mapping) else value
            for key, value in mapping.items()
        }
    )


def _assert_refuses(logger: Logger, when: str) -> None:
    try:
        logger.write(make_record())
    except GFShadowError:
        return
    raise AssertionError(f"write() {when} must raise GFShadowError, not lose the record")


def _assert_names_bad_target(make: Callable[[Path], Logger], directory: Path) -> None:
    blocked = directory / "a file"
    blocked.write_text("")
    target = blocked / "target"
    try:
        make(target)
    except ValueError as error:
        if str(target) not in str(error):
            raise AssertionError(f"the message must name {target}, got {error}") from error
        return
    raise AssertionError(f"make({str(target)!r}) must raise ValueError: its parent is a file")
