"""``gfshadow step-size``: how large the step may be, by each bound and by measurement."""

from __future__ import annotations

import json
import math

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from torch_gfshadow._advised import Limit
from torch_gfshadow.advice import StepSizeAdvice, step_size_advice
from torch_gfshadow.cli._cases import to_json
from torch_gfshadow.cli._options import COUNT, NUMBER
from torch_gfshadow.doctor import load_factory
from torch_gfshadow.doctor.setup import made


@click.command("step-size")
@click.argument("factory", metavar="MODULE:FACTORY")
@click.option("--horizon", type=NUMBER, required=True, help="Flow time T up to which it holds.")
@click.option("--eps", type=NUMBER, required=True, help="Distance ε from the flow to be kept.")
@click.option(
    "--samples",
    type=click.IntRange(min=2),
    default=9,
    show_default=True,
    help="Points of the flow at which curvature is sampled.",
)
@click.option(
    "--max-steps",
    type=COUNT,
    default=20_000,
    show_default=True,
    help="Largest number of steps of a measurement.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of every random stream.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout.")
def step_size(
    factory: str,
    horizon: float,
    eps: float,
    samples: int,
    max_steps: int,
    seed: int,
    as_json: bool,
) -> None:
    """Find the largest step size that keeps gradient descent within ε of the flow.

    MODULE:FACTORY (or file.py:FACTORY) names a function without arguments that returns
    (model, objective, data), as for `gfshadow doctor`.
    """
    setup = made(load_factory(factory), seed)
    advice = step_size_advice(
        setup.model,
        setup.objective,
        setup.data,
        horizon=horizon,
        eps=eps,
        samples=samples,
        max_steps=max_steps,
    )
    if as_json:
        click.echo(json.dumps(to_json(advice.to_dict()), indent=2, ensure_ascii=False))
        return
    Console().print(_table(advice))


def _table(advice: StepSizeAdvice) -> Table:
    title = f"largest step size: within {advice.eps:g} of the flow up to t = {advice.horizon:g}"
    table = Table("result", "kind", "step size", "rests on", title=title)
    for limit in advice.limits:
        table.add_row(limit.name, limit.kind, _number(limit), escape(limit.status))
    return table


def _number(limit: Limit) -> str:
    if limit.step_size is not None:
        return f"{limit.step_size:.3g}"
    if limit.log_step_size is None:
        return "none"
    return f"1e{limit.log_step_size / math.log(10):.0f}"
