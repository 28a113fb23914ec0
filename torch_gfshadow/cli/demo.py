"""``gfshadow demo``: the paper's Figure 1 with the shadow beside gradient descent."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from torch_gfshadow.cli._options import choices, run_options
from torch_gfshadow.cli._run import redraw, run


@click.command()
@run_options("gfshadow-demo")
@click.option(
    "--plot-only",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Run nothing: draw and tabulate the records that an earlier --out DIR holds.",
)
def demo(plot_only: Path | None, **values: Any) -> None:
    """Run gradient descent and its gradient-flow shadow on real digits.

    The protocol of Figure 1 of Elkabetz and Cohen (arXiv:2107.06608): fully connected
    784-50-50-10 networks without biases, linear and ReLU, cross-entropy, full batch of 1,000 MNIST
    digits, plain SGD at η = 0.001, 10,000 steps. Where the paper compares with smaller step sizes,
    the shadow integrates gradient flow itself and says how accurately.

    Writes into --out: <network>/records.jsonl (every record, complete at any time), figure1.png,
    report.html and summary.json. Ctrl-C keeps what was recorded.
    """
    if plot_only is not None:
        redraw(plot_only, values["as_json"])
    else:
        run("demo", choices(**values), "shadow")
