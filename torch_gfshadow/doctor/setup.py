"""Setup: what the user's factory returns, in the one shape the checks work on."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
import random
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from torch_gfshadow.errors import GFShadowError, must

_KEYS = ("model", "objective", "data", "optimizer", "train_step")
_SHAPE = "(model, objective, data), (optimizer, model, objective, data), or a mapping with these"
# Small, so that the checked steps stay near the parameters as made.
_DEFAULT_LR = 1e-3


@dataclass
class Setup:
    """A model as its user trains it, made for the doctor and the doctor's to change.

    Attributes:
        model: The module.
        objective: ``objective(model, batch)`` → scalar mean loss.
        data: What :func:`torch_gfshadow.attach` takes as ``data``.
        optimizer: The user's, or plain SGD where the factory returned none.
        train_step: One step of the user's own loop, without arguments; None for a plain one.
    """

    model: nn.Module
    objective: Callable[[nn.Module, Any], Tensor]
    data: Any
    optimizer: Any
    train_step: Callable[[], Any] | None


Factory = Callable[[], Any]


class FactoryError(GFShadowError, TypeError):
    """The factory is not one a run can be made with; one line at the command line."""


def made(factory: Factory, seed: int) -> Setup:
    """Call ``factory`` with every random stream seeded.

    Raises:
        FactoryError: If it wants arguments, or returns something else than a :class:`Setup` can be
            made of.
    """
    try:
        inspect.signature(factory).bind()
    except TypeError as error:
        fix = "Give its arguments defaults, or name a function that calls it."
        got = f"one with the signature {inspect.signature(factory)}"
        raise FactoryError(must("factory", "callable without arguments", got, fix)) from error
    except ValueError:  # built-ins have no signature
        pass
    seed_everything(seed)
    return _as_setup(factory())


def seed_everything(seed: int) -> None:
    """Seed torch's, Python's and (if anybody imported it) numpy's global streams."""
    torch.manual_seed(seed)
    random.seed(seed)
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        numpy.random.seed(seed % 2**32)


def load_factory(name: str) -> Factory:
    """Return the function ``MODULE:FACTORY`` or ``path/to/file.py:FACTORY`` names.

    Raises:
        ValueError: If there is no such module, file or function.
    """
    where, separator, attribute = name.rpartition(":")
    if not separator or not where or not attribute:
        fix = "Write e.g. my_project.models:resnet or train.py:make."
        raise ValueError(must("MODULE:FACTORY", "a module and a function in it", repr(name), fix))
    module = _from_file(Path(where)) if where.endswith(".py") else _from_path(where)
    factory = getattr(module, attribute, None)
    if not callable(factory):
        known = [n for n, value in vars(module).items() if callable(value) and n[:1] != "_"]
        fix = f"It has: {', '.join(known) or 'none'}."
        raise ValueError(must("FACTORY", f"a function in {where}", repr(attribute), fix))
    return factory  # type: ignore[no-any-return]


def _from_file(path: Path) -> Any:
    if not path.is_file():
        raise ValueError(must("MODULE", "a module or a file", repr(str(path)), "Check the path."))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(path.stem, module)
    sys.path.insert(0, str(path.parent.resolve()))
    spec.loader.exec_module(module)
    return module


def _from_path(name: str) -> Any:
    here = os.getcwd()
    if here not in sys.path:  # as `python -m` would have it
        sys.path.insert(0, here)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not (name == error.name or name.startswith(f"{error.name}.")):
            raise  # the module is there, something it imports is not
        fix = "Run from the directory it lies in, or install it."
        raise ValueError(
            must("MODULE", "a module that can be imported", repr(name), fix)
        ) from error


def _as_setup(result: Any) -> Setup:
    if isinstance(result, Mapping):
        unknown = set(result) - set(_KEYS)
        if unknown or not {"model", "objective", "data"} <= set(result):
            got = f"one with {sorted(map(str, result))}"
            fix = f"Known keys: {', '.join(_KEYS)}; the first three are needed."
            raise FactoryError(
                must("factory", "one that returns a mapping to make a run of", got, fix)
            )
        parts = dict(result)
    elif isinstance(result, tuple) and len(result) in (3, 4):
        names = ("optimizer", "model", "objective", "data")[-len(result) :]
        if isinstance(result[-1], torch.optim.Optimizer):  # as training scripts return them
            names = ("model", "objective", "data", "optimizer")[: len(result)]
        parts = dict(zip(names, result, strict=True))
    else:
        size = f" of {len(result)}" if isinstance(result, tuple) else ""
        got = f"a {type(result).__name__}{size}"
        raise FactoryError(
            must("factory", "one that returns a model to be followed", got, f"Return {_SHAPE}.")
        )
    model = parts["model"]
    if not isinstance(model, nn.Module):
        fix = f"Return {_SHAPE}, in this order."
        raise FactoryError(must("model", "a torch.nn.Module", f"a {type(model).__name__}", fix))
    optimizer = parts.get("optimizer")
    return Setup(
        model=model,
        objective=parts["objective"],
        data=parts["data"],
        optimizer=optimizer
        if optimizer is not None
        else torch.optim.SGD(model.parameters(), lr=_DEFAULT_LR),
        train_step=parts.get("train_step"),
    )
