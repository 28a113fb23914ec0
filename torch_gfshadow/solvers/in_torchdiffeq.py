"""RKC2 inside torchdiffeq: ``odeint(func, y0, t, method="rkc2")`` after one registration call.

torchdiffeq has no public registry; ``SOLVERS`` is the table its own methods stand in.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torchdiffeq._impl.odeint import SOLVERS

from torch_gfshadow.errors import must
from torch_gfshadow.solvers.base import Node
from torch_gfshadow.solvers.rkc2 import RKC2Stepper


class _RKC2Solver:
    """The interface of torchdiffeq's solvers around a live stepper.

    The time is a component of the state, so that fields may depend on it.
    """

    def __init__(
        self,
        func: Callable[[Tensor, Tensor], Tensor],
        y0: Tensor,
        rtol: Any,
        atol: Any,
        norm: Any = None,
        first_step: float | None = None,
        max_num_steps: int = 2**31 - 1,
    ) -> None:
        if not y0.is_floating_point() or y0.requires_grad:
            got = "one that requires grad" if y0.requires_grad else str(y0.dtype)
            fix = "Use odeint_adjoint to differentiate, and a floating dtype."
            raise ValueError(must("y0", "a real tensor without gradient", got, fix))
        self._func, self._y0 = func, y0
        self._rtol, self._atol = torch.as_tensor(rtol).max(), torch.as_tensor(atol).max()
        self._first_step, self._most = first_step, max_num_steps

    @classmethod
    def valid_callbacks(cls) -> set[str]:
        """Return the callbacks that are called: none."""
        return set()

    @torch.no_grad()
    def integrate(self, t: Tensor) -> Tensor:
        """Return the solution at the increasing times ``t``, shape ``[len(t), *y0.shape]``."""
        times, y0 = t.tolist(), self._y0
        root = math.sqrt(y0.numel())
        start = torch.cat([y0.new_tensor([times[0]]), y0.reshape(-1)])
        node = Node(times[0], start, self._field(start))
        speed = float(torch.linalg.vector_norm(node.field[1:]))
        size = float(torch.linalg.vector_norm(y0))
        guess = self._first_step or 0.01 * max(size, 1e-3) / max(speed, 1e-12)
        stepper = RKC2Stepper(self._field, node, min(guess, times[-1] - times[0]))
        out = [y0]
        attempts = 0
        for time in times[1:]:
            while stepper.right.time < time:
                scale = float(torch.linalg.vector_norm(stepper.right.state[1:]))
                tolerance = float(self._atol) * root + float(self._rtol) * scale
                attempts += 1
                stepper.step(tolerance)
                if attempts > self._most or stepper.next_step < 1e-14 * max(abs(time), 1e-14):
                    raise RuntimeError(
                        f"rkc2 stands at t = {stepper.right.time:.6g} with a step of "
                        f"{stepper.next_step:.1e} after {attempts} attempts. "
                        "Loosen rtol and atol, or raise max_num_steps."
                    )
            out.append(stepper.interpolate(time)[1:].view_as(y0))
        return torch.stack(out)

    def _field(self, theta: Tensor) -> Tensor:
        slope = self._func(theta[0], theta[1:].view_as(self._y0))
        return torch.cat([theta.new_ones(1), slope.detach().reshape(-1)])


def register_with_torchdiffeq() -> None:
    """Make ``method="rkc2"`` known to ``torchdiffeq.odeint`` in this process.

    For stiff fields whose Jacobian has a real spectrum: evaluations grow like the root of the
    stiffness. ``rtol`` and ``atol`` are per component; options are ``first_step`` and
    ``max_num_steps``. No gradient flows through the solver and it has no events.

    Example:
        >>> import torch, torchdiffeq
        >>> register_with_torchdiffeq()
        >>> rates = torch.tensor([1.0, 1000.0], dtype=torch.float64)
        >>> t = torch.tensor([0.0, 1.0], dtype=torch.float64)
        >>> y0 = torch.ones(2, dtype=torch.float64)
        >>> y = torchdiffeq.odeint(
        ...     lambda t, y: -rates * y, y0, t, method="rkc2", rtol=1e-5, atol=1e-6
        ... )
        >>> round(float(y[-1, 0]), 3)
        0.368
    """
    SOLVERS["rkc2"] = _RKC2Solver
