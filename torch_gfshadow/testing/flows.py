"""The contract of flows: the optimizer's limit for small steps, and nothing else."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import Any

import torch
from torch import nn

from torch_gfshadow.testing.runs import toy_run


def assert_flow_is_limit(
    make: Callable[[Iterable[nn.Parameter], float], torch.optim.Optimizer],
    flow: Any,
    *,
    lr: float = 0.1,
    steps: int = 16,
    order: float = 1.0,
    **options: Any,
) -> None:
    """Assert that the optimizer converges to the flow as its step size goes to 0.

    The same flow time is run with lr, lr/2 and lr/4; the discrepancy at its end must fall by
    2^order each time, and be resolved by the solver.

    Args:
        make: Builds the optimizer from parameters and step size.
        flow: Registered name of the flow, or ``"auto"`` to have it chosen.
        lr: Largest step size.
        steps: Steps taken with it.
        order: Order of the optimizer as a discretisation of the flow.
        options: Further arguments of :func:`torch_gfshadow.attach`, for example ``plugins=[…]``.
    """
    ends = []
    for halving in range(3):
        rate, count = lr / 2**halving, steps * 2**halving
        shadow = toy_run(
            count,
            optimizer=lambda parameters, rate=rate: make(parameters, rate),  # type: ignore[misc]
            flow=flow,
            probes=(),
            **options,
        )
        last = shadow.records[-1]
        if last.discrepancy is None or last.solver_error is None:
            got = f"{last.status}: {last.status_detail}"
            raise AssertionError(f"the flow must be followed to the end, got {got}")
        if last.solver_error > 0.5 * last.discrepancy:
            got = f"{last.discrepancy:.3g} ± {last.solver_error:.1g}"
            raise AssertionError(f"the discrepancy must be resolved, got {got} at lr={rate:g}")
        ends.append(last.discrepancy)
    for coarse, fine in pairwise(ends):
        observed = math.log2(coarse / fine)
        if not observed > order - 0.35:
            shown = ", ".join(f"{end:.3g}" for end in ends)
            raise AssertionError(
                f"the discrepancy must fall with order {order:g} as lr is halved, got {shown}: "
                f"order {observed:.2f}. This flow is not the limit of this optimizer."
            )
