"""``gfshadow reproduce``: figures of the paper, by its own protocol, by ours, or by both."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from torch_gfshadow.cli._options import OneOf, choices, run_options
from torch_gfshadow.cli._run import run
from torch_gfshadow.cli.studies import STUDIES
from torch_gfshadow.experiments.networks import CONVOLUTIONS


@click.group()
def reproduce() -> None:
    """Reproduce a figure of the paper, or a study of its theorems."""


for study in STUDIES:
    reproduce.add_command(study)


def protocols(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add --protocol and --fine-dtype."""
    for option in (
        click.option(
            "--fine-dtype",
            type=OneOf(["float32", "float64"]),
            default="float64",
            show_default=True,
            help="Precision of the runs at η/r. The paper's is float32, where by step 8,500 "
            "rounding makes the linear network's distance to the run at η/20 17 times what it "
            "should be.",
        ),
        click.option(
            "--protocol",
            type=OneOf(["shadow", "ratios", "both"]),
            default="both",
            show_default=True,
            help="ratios: every r-th iterate of runs at η/r, r in 2, 5, 10, 20, against the run at "
            "η (the paper's, 37 extra gradients per step). shadow: gradient flow by a solver. "
            "both: whether the two agree within their error bars, and what each costs.",
        ),
    ):
        command = option(command)
    return command


@reproduce.command()
@protocols
@run_options("gfshadow-fig1")
def fig1(protocol: str, **values: Any) -> None:
    """Figure 1: how far gradient descent is from gradient flow while it trains.

    Writes into --out: <network>/records.jsonl and <network>/ratios.jsonl, figure1.png and
    summary.json. Ctrl-C keeps what was recorded.
    """
    run("reproduce fig1", choices(**values), protocol)


@reproduce.command()
@protocols
@run_options("gfshadow-fig3", CONVOLUTIONS)
def fig3(protocol: str, **values: Any) -> None:
    """Figure 3: the same for two convolutional networks (hours in full; try --quick first).

    adapted to the theory (stride 2, no biases, no pooling), and off the shelf (LeNet-5: biases,
    max-pooling). Writes what fig1 does, with figure3.png.
    """
    run("reproduce fig3", choices(both=CONVOLUTIONS, **values), protocol)
