"""What results on weight matrices accept: numbers as float64 arrays, or a refusal with the number.

Lists, NumPy arrays and torch tensors on any device are taken; parameters are read, never kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from torch_gfshadow.errors import AssumptionError, must

Matrix = NDArray[np.float64]
"""A float64 matrix, or a stack of them along leading axes."""


def matrix(name: str, value: Any, shape: tuple[int | None, ...] = (None, None)) -> Matrix:
    """Return ``value`` as a float64 array of this ``shape``; ``None`` matches any size ≥ 1.

    Raises:
        AssumptionError: If it is not an array of numbers, of another shape, or not finite.
    """
    if isinstance(value, torch.Tensor):
        value = value.detach().to("cpu", torch.float64).numpy()
    try:
        array = np.array(value, dtype=np.float64, order="C")  # one layout, one rounding
    except (TypeError, ValueError, OverflowError) as error:
        got = f"{type(value).__name__} ({error})"
        fix = "Give rows of equal length, or an array."
        raise AssumptionError(must(name, "an array of numbers", got, fix)) from error
    wanted = " × ".join("any" if size is None else str(size) for size in shape)
    pairs = zip(array.shape, shape, strict=False)
    fits = len(array.shape) == len(shape) and all(s is None or a == s for a, s in pairs)
    if not fits or 0 in array.shape:
        got = " × ".join(map(str, array.shape)) or "a single number"
        fix = "Layer j maps the output of layer j − 1; samples are rows."
        raise AssumptionError(must(name, f"of shape {wanted}", got, fix))
    if not np.isfinite(array).all():
        bad = array[~np.isfinite(array)].flat[0]
        raise AssumptionError(must(name, "finite", bad, "Stop before the run diverges."))
    return array


def layers(name: str, value: Any, *, at_least: int = 2) -> tuple[Matrix, ...]:
    """Return W_1, …, W_n as float64 matrices whose shapes chain.

    Raises:
        AssumptionError: If there are fewer than ``at_least``, or one does not fit the one before.
    """
    if isinstance(value, (str, bytes, dict)) or not hasattr(value, "__len__"):
        fix = "Give W_1, …, W_n, the input's layer first."
        raise AssumptionError(must(name, "a list of matrices", type(value).__name__, fix))
    if len(value) < at_least:
        fix = "The result is about products of layers; depth n counts weight matrices."
        raise AssumptionError(must(f"depth of {name}", f"at least {at_least}", len(value), fix))
    found: list[Matrix] = []
    for index, item in enumerate(value):
        columns = found[-1].shape[0] if found else None
        found.append(matrix(f"{name}[{index}]", item, (None, columns)))
    return tuple(found)


def like(name: str, value: Any, shapes: Sequence[tuple[int, ...]]) -> tuple[Matrix, ...]:
    """Return one matrix per shape in ``shapes``.

    Raises:
        AssumptionError: If there are more or fewer, or one has another shape.
    """
    if not hasattr(value, "__len__") or len(value) != len(shapes):
        got = f"{len(value)} matrices" if hasattr(value, "__len__") else type(value).__name__
        fix = "It changes every weight matrix."
        raise AssumptionError(must(name, f"a list of {len(shapes)} matrices", got, fix))
    pairs = enumerate(zip(value, shapes, strict=True))
    return tuple(matrix(f"{name}[{i}]", item, shape) for i, (item, shape) in pairs)
