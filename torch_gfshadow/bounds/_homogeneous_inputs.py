"""What the non-linear and the weight-sharing version accept, checked."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from torch_gfshadow.bounds._scalars import finite, listed
from torch_gfshadow.errors import AssumptionError, must

LOSSES = ("square", "logistic", "cross_entropy")


def samples(X: Any, Y: Any, loss: str, widths: tuple[int, int]) -> tuple[Tensor, Tensor]:  # noqa: N803
    """Return checked inputs ``[S, d_0]`` and targets for ``loss``.

    Raises:
        AssumptionError: If the loss is unknown, a shape does not fit or a number is not finite.
    """
    x, y = matrix("X", X), matrix("Y", Y)
    if loss not in LOSSES:
        fix = "The bound needs a loss that is convex in the output."
        raise AssumptionError(must("loss", f"one of {', '.join(LOSSES)}", repr(loss), fix))
    if x.shape[1] != widths[0] or not len(x):
        fix = "One row per sample, one column per input of the first layer."
        raise AssumptionError(must("X", f"S × {widths[0]}, S ≥ 1", list(x.shape), fix))
    if loss == "cross_entropy":
        y = y.reshape(-1)
        if (
            len(y) != len(x)
            or bool((y != y.round()).any())
            or not 0 <= y.min() <= y.max() < widths[1]
        ):
            fix = f"One class from 0 to {widths[1] - 1} per sample."
            raise AssumptionError(must("Y", f"{len(x)} class labels", y.tolist()[:5], fix))
        return x, y.long()
    if list(y.shape) != [len(x), widths[1]]:
        fix = "One row per sample, one column per output."
        raise AssumptionError(must("Y", f"{len(x)} × {widths[1]}", list(y.shape), fix))
    if loss == "logistic" and not bool((y.abs() == 1.0).all()):
        bad = float(y[y.abs() != 1.0][0])
        raise AssumptionError(must("Y", "±1 for the logistic loss", bad, "Map 0 to −1."))
    return x, y


def matrix(argument: str, value: Any) -> Tensor:
    """Return ``value`` as a float64 matrix.

    Raises:
        AssumptionError: If it is none, or a number in it is not finite.
    """
    try:
        out = torch.as_tensor(value, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        fix = "Give rows of equal length."
        raise AssumptionError(
            must(argument, "a matrix of numbers", repr(value)[:60], fix)
        ) from error
    if out.dim() == 1 and argument == "Y":
        out = out[:, None]
    if out.dim() == 1 and argument.startswith("weights"):
        out = out[None]
    if out.dim() != 2:
        raise AssumptionError(must(argument, "a matrix", f"shape {list(out.shape)}", "Give rows."))
    if not bool(out.isfinite().all()):
        raise AssumptionError(must(argument, "finite", "NaN or infinity in it", "Clean the data."))
    return out


def two_numbers(slope_negative: Any, slope_positive: Any) -> tuple[float, float]:
    """Return the slopes for z < 0 and z ≥ 0.

    Raises:
        AssumptionError: If one of them is not a finite number.
    """
    found = []
    for name, value in (("slope_negative", slope_negative), ("slope_positive", slope_positive)):
        found.append(finite(name, value, "ReLU has 0 and 1."))
    return found[0], found[1]


def at_least_two(argument: str, layers: Any) -> None:
    """Refuse a network of one layer.

    Raises:
        AssumptionError: If there are fewer than two layers, or it is no list.
    """
    count = len(listed(argument, layers, "matrices"))
    if count < 2:
        fix = "With one layer f is convex and λ_min ≥ 0."
        raise AssumptionError(must(argument, "two or more layers", count, fix))
