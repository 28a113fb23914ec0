"""The setting of Proposition 3 and Theorem 4: three numbers, from scalars or from matrices.

A deep linear network with one output (d_n = 1), the square loss, whitened inputs (Λ_xx = I),
labels scaled so that ‖Λ_yx‖_F = 1, and balanced initial weights. What matters is then only the
depth n, the size r_0 = ‖W_{n:1,0}‖_F ∈ (0, 0.2] and the alignment ν ∈ (−1, 1], the cosine between
W_{n:1,0} and Λ_yx.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from torch_gfshadow.balance import nearest_balanced, unbalancedness
from torch_gfshadow.bounds._inputs import layers as matrices
from torch_gfshadow.bounds._inputs import matrix
from torch_gfshadow.bounds._losses import loss_name
from torch_gfshadow.bounds._scalars import ROUNDING, depth, held, number, vouched
from torch_gfshadow.bounds.base import Assumption
from torch_gfshadow.errors import AssumptionError, must

LARGEST_START = 0.2
WHITE, BALANCED = 1e-8, 1e-10
"""How far Λ_xx may be from I, ‖Λ_yx‖ from 1, and a start from balanced, to count as rounding."""


@dataclass(frozen=True, slots=True)
class Setting:
    """Depth, size and alignment of a balanced start, with what the constants are made of.

    Attributes:
        n: Number of weight matrices.
        r0: ‖W_{n:1,0}‖_F.
        nu: Cosine between W_{n:1,0} and Λ_yx.
        assumptions: How the hypotheses were checked.
    """

    n: int
    r0: float
    nu: float
    assumptions: tuple[Assumption, ...]

    @classmethod
    def of(cls, n: Any, r0: Any, nu: Any) -> Setting:
        """Check the three numbers.

        Raises:
            AssumptionError: If n < 2, or r0 or ν is out of range.
        """
        layers = depth(n)
        start = number(
            "r0 = ‖W_{n:1}‖_F at the start",
            r0,
            f"in (0, {LARGEST_START}]",
            lambda x: 0.0 < x <= LARGEST_START * (1.0 + ROUNDING),
            "At 0 the flow never leaves; scale the initial weights to at most 0.2.",
        )
        cosine = number(
            "nu, the cosine between W_{n:1} and Λ_yx,",
            nu,
            "in (−1, 1]",
            lambda x: -1.0 < x <= 1.0 + ROUNDING,
            "From ν = −1 the flow runs into the origin; draw another start.",
        )
        checked = (
            held("n ≥ 2", f"n = {layers}"),
            held("0 < ‖W_{n:1,0}‖_F ≤ 0.2", f"{start:g}"),
            held("ν ≠ −1", f"ν = {cosine:g}"),
            vouched("d_n = 1, square loss, Λ_xx = I, ‖Λ_yx‖_F = 1, balanced start"),
        )
        return cls(layers, start, min(cosine, 1.0), checked)

    @property
    def log_q(self) -> float:
        """Log max{1, (1−ν)/(1+ν)}, without the quotient, which overflows near ν = −1."""
        return max(0.0, self._log_ratio)

    @property
    def log_p(self) -> float:
        """Log max{1, 1.5 (1−ν)/(1+ν)}."""
        return max(0.0, math.log(1.5) + self._log_ratio)

    @property
    def _log_ratio(self) -> float:
        return math.log1p(-self.nu) - math.log1p(self.nu) if self.nu < 1.0 else -math.inf

    def log_l(self, accuracy: float) -> float:
        """Return L = ln(15 n q / (r_0 min{1, accuracy})), the logarithm in Equations 17 to 20."""
        return math.log(15 * self.n) + self.log_q - math.log(self.r0) - min(0.0, math.log(accuracy))


def setting_of(
    weights: Sequence[Any], inputs: Any, targets: Any, loss: str = "square", *, exact: bool = True
) -> tuple[Setting, float]:
    """Read the setting off a network and its data, checking every hypothesis.

    Args:
        weights: W_1, …, W_n, the input's layer first; W_n has one row.
        inputs: The rows x_i, shape ``[S, d_0]``, whitened.
        targets: One number per row.
        loss: Must be the square loss.
        exact: Refuse weights that are not balanced. Otherwise the setting is that of the nearest
            balanced weights.

    Returns:
        The setting, and the distance ‖θ_0 − θ_s‖ of the weights from the balanced ones it is of.

    Raises:
        AssumptionError: If a hypothesis fails; the message has the number.
    """
    if loss_name(loss) not in ("square", "squared", "mse"):
        fix = "Proposition 3 and Theorem 4 are about ½ mean (Wx − y)²."
        raise AssumptionError(must("loss", "the square loss", repr(loss), fix))
    layers = [torch.from_numpy(w) for w in matrices("Ws", weights)]
    if layers[-1].shape[0] != 1:
        fix = "Proposition 3 and Theorem 4 are about one output."
        raise AssumptionError(must("d_n", "1", layers[-1].shape[0], fix))
    x = tensor("X", inputs, (None, layers[0].shape[1]))
    y = labels(targets, len(x))
    covariance = x.T @ x / len(x)
    white = float(torch.linalg.matrix_norm(covariance - torch.eye(x.shape[1]).to(x), 2))
    if white > WHITE:
        fix = "Transform them with torch_gfshadow.whitening.whiten."
        raise AssumptionError(must("‖Λ_xx − I‖ of X", f"at most {WHITE:g}", f"{white:.6g}", fix))
    target = y @ x / len(x)
    scale = float(torch.linalg.vector_norm(target))
    if abs(scale - 1.0) > WHITE:
        fix = "Divide Y by it, as torch_gfshadow.whitening.whiten does."
        raise AssumptionError(must("‖Λ_yx‖_F of X, Y", "1", f"{scale:.12g}", fix))
    residual = unbalancedness(layers)
    if exact and residual > BALANCED:
        fix = (
            "Use torch_gfshadow.inits.balanced_, in float64, or the approximately balanced "
            "extension."
        )
        condition = f"at most {BALANCED:g}"
        raise AssumptionError(must("unbalancedness of the weights", condition, residual, fix))
    balanced, gap = nearest_balanced(layers)
    row = balanced[0]
    for weight in balanced[1:]:
        row = weight @ row
    size = float(torch.linalg.vector_norm(row))
    if size == 0.0:
        fix = "Zero is a saddle, which the flow never leaves."
        raise AssumptionError(must("‖W_{n:1}‖_F at the start", "in (0, 0.2]", size, fix))
    made = Setting.of(len(layers), size, float(row.reshape(-1) @ target) / (size * scale))
    checked = (
        *made.assumptions[:3],
        held("d_n = 1, square loss", "W_n has one row"),
        held("Λ_xx = I", f"‖Λ_xx − I‖ = {white:.1e}"),
        held("‖Λ_yx‖_F = 1", f"‖Λ_yx‖_F − 1 = {scale - 1.0:.1e}"),
        held("balanced start", f"max_j ‖W_{{j+1}}ᵀW_{{j+1}} − W_jW_jᵀ‖ = {residual:.1e}"),
    )
    return Setting(made.n, made.r0, made.nu, checked), gap


def tensor(name: str, value: Any, shape: tuple[int | None, ...] = (None, None)) -> Tensor:
    """Return a matrix as a float64 tensor on the CPU; ``None`` matches any size.

    Raises:
        AssumptionError: If it is not an array of numbers, of another shape, or not finite.
    """
    return torch.from_numpy(matrix(name, value, shape))


def labels(value: Any, n_samples: int) -> Tensor:
    """Return one number per sample, shape ``[S]``, from a vector or a column."""
    is_list = isinstance(value, (list, tuple))
    if not is_list and not hasattr(value, "ndim"):
        return tensor("Y", value, (n_samples, 1))[:, 0]
    flat = all(not hasattr(y, "__len__") for y in value) if is_list else value.ndim == 1
    column = ([[y] for y in value] if is_list else value[:, None]) if flat else value
    return tensor("Y", column, (n_samples, 1))[:, 0]
