"""``gfshadow reproduce``: figures of the paper, by its own protocol, by ours, or by both."""

from __future__ import annotations

from typing import Any

import click

from torch_gfshadow.cli._options import OneOf, choices, run_options
from torch_gfshadow.cli._run import run
from torch_gfshadow.cli.studies import certificates_command


@click.group()
def reproduce() -> None:
    """Reproduce a figure of the paper, or a study of its theorems."""


reproduce.add_command(certificates_command)


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
@click.option(
    "--fine-dtype",
    type=OneOf(["float32", "float64"]),
    default="float64",
    show_default=True,
    help="Precision of the runs at η/r. The paper's is float32, where by step 8,500 rounding makes "
    "the linear network's distance to the run at η/20 17 times what it should be.",
)
@run_options("gfshadow-fig1")
def fig1(protocol: str, **values: Any) -> None:
    """Figure 1: how far gradient descent is from gradient flow while it trains.

    Writes into --out: <network>/records.jsonl and <network>/ratios.jsonl, figure1.png and
    summary.json. Ctrl-C keeps what was recorded.
    """
    run("reproduce fig1", choices(**values), protocol)
