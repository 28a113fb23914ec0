"""``gfshadow reproduce``: figures of the paper, by its own protocol, by ours, or by both."""

from __future__ import annotations

from typing import Any

import click

from torch_gfshadow.cli._options import OneOf, choices, run_options
from torch_gfshadow.cli._run import run


@click.group()
def reproduce() -> None:
    """Reproduce a figure of the paper."""


@reproduce.command()
@click.option(
    "--protocol",
    type=OneOf(["shadow", "ratios", "both"]),
    default="both",
    show_default=True,
    help="ratios: every r-th iterate of runs at η/r, r in 2, 5, 10, 20, against the run at η "
    "(the paper's, 37 extra gradients per step). shadow: gradient flow by a solver. "
    "both: whether the two agree within their error bars, and what each costs.",
)
@run_options("gfshadow-fig1")
def fig1(protocol: str, **values: Any) -> None:
    """Figure 1: how far gradient descent is from gradient flow while it trains.

    In float32 rounding blurs runs at small step sizes; each row says by how much, and
    --dtype float64 makes it negligible.
    """
    run("reproduce fig1", choices(**values), protocol)
