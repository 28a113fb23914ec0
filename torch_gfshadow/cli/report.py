"""``gfshadow report``: what runs showed, as one HTML file that opens anywhere."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.text import Text

from torch_gfshadow.report import Run, find, load_runs, require_report, write_report
from torch_gfshadow.report.words import printable

_STYLES = {"good": "green", "note": "cyan", "warning": "yellow", "problem": "bold red"}


@click.command()
@click.argument("records", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    default="report.html",
    show_default=True,
    help="The file to write.",
)
@click.option(
    "--name", "names", multiple=True, help="What to call a run; once per file, in their order."
)
@click.option("--title", help="Heading; by default the runs' names.")
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON on stdout.")
def report(
    records: tuple[Path, ...], out: Path, names: tuple[str, ...], title: str | None, as_json: bool
) -> None:
    """Say what happened in one or several runs, and why, in words and figures.

    RECORDS are files written by loggers=["jsonl:run.jsonl"], of finished, killed or running runs,
    or folders with records.jsonl in them, such as `gfshadow demo` leaves. The file that is written
    loads nothing from the network.
    """
    require_report()
    runs = load_runs(records, names)
    write_report(runs, out, title)
    if as_json:
        click.echo(
            json.dumps({"report": str(out), "runs": [_found(run) for run in runs]}, indent=2)
        )
        return
    console = Console()
    for run in runs:
        console.print(Text(printable(run.name), style="bold"))
        for item in find(run):
            line = Text.assemble((f"{item.title}: ", _STYLES[item.level]), printable(item.text))
            console.print(line)
    console.print(f"report: {out}", markup=False, highlight=False, soft_wrap=True)


def _found(run: Run) -> dict[str, Any]:
    return {
        "name": run.name,
        "state": run.state,
        "records": len(run.records),
        "findings": [asdict(item) for item in find(run)],
    }
