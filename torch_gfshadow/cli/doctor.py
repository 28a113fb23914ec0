"""``gfshadow doctor``: the self-checks on the user's own model."""

from __future__ import annotations

import json
import sys

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from torch_gfshadow.doctor import Diagnosis, diagnose, load_factory

_MARKS = {
    "ok": "[green]ok[/]",
    "note": "[yellow]note[/]",
    "unknown": "[yellow]unknown[/]",
    "wrong": "[bold red]wrong[/]",
}


@click.command()
@click.argument("factory", metavar="MODULE:FACTORY")
@click.option(
    "--steps",
    type=click.IntRange(min=1),
    default=20,
    show_default=True,
    help="Optimizer steps of the runs compared with and without the shadow.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of every random stream.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout.")
def doctor(factory: str, steps: int, seed: int, as_json: bool) -> None:
    """Check a model of yours before a long run depends on it.

    MODULE:FACTORY (or file.py:FACTORY) names a function without arguments that returns
    (model, objective, data), (optimizer, model, objective, data), or a mapping with these keys,
    in which "train_step" may be one step of your own loop. It is called several times.

    Exits with 1 if something is wrong.
    """
    make = load_factory(factory)
    if as_json:
        diagnosis = diagnose(make, steps=steps, seed=seed)
        click.echo(json.dumps(diagnosis.to_dict(), indent=2))
    else:
        with Console(stderr=True).status("examining the model …"):
            diagnosis = diagnose(make, steps=steps, seed=seed)
        _show(diagnosis)
    sys.exit(0 if diagnosis.healthy else 1)


def _show(diagnosis: Diagnosis) -> None:
    console = Console()
    table = Table(show_edge=False, pad_edge=False)
    for column in ("check", "", "what was found, and what to do"):
        table.add_column(column)
    for finding in diagnosis.findings:
        text = escape(finding.found)
        if finding.advice:
            text += f"\n[italic]{escape(finding.advice)}[/]"
        table.add_row(finding.check, _MARKS[finding.level], text)
    console.print(table)
    if diagnosis.cost:
        console.print(_price(diagnosis), highlight=False)
    verdict = "nothing is wrong" if diagnosis.healthy else "something is wrong, see above"
    console.print(f"Diagnosis: {verdict}.", highlight=False)


def _price(diagnosis: Diagnosis) -> str:
    cost = diagnosis.cost
    parts = [
        f"One gradient of the objective takes {cost['gradient_over_step']:.2g} training steps, "
        f"one Hessian product {cost['product_over_gradient']:.2g} gradients. ",
        f"The flow took {cost['flow_gradients_per_step']:.2g} gradients per step over these "
        "first, dearest steps",
    ]
    if cost["products_per_probe"] is not None:
        parts.append(f", a warm probe {cost['products_per_probe']} Hessian products")
    parts.append(
        f". Probing every {cost['probe_every']} steps, the shadow would take about "
        f"{cost['share_of_loop']:.0%} of the loop's time."
    )
    return "".join(parts)
