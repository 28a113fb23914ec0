"""``gfshadow bound``: the results of the theory, listed, explained and evaluated."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from torch_gfshadow.cli._cases import (
    answer,
    bound_specs,
    checked,
    evaluators,
    inputs_of,
    resolve,
)
from torch_gfshadow.errors import must
from torch_gfshadow.plugins import Plugins
from torch_gfshadow.specs import BoundSpec

_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout.")


@click.group()
def bound() -> None:
    """List, explain and evaluate the bounds of the theory."""


@bound.command(name="list")
@_JSON
def list_bounds(as_json: bool) -> None:
    """List every result, where it is from, and whether it can run beside training."""
    specs = bound_specs(Plugins())
    if as_json:
        click.echo(json.dumps([_row(spec) for spec in specs.values()], indent=2, allow_nan=False))
        return
    table = Table("result", "also", "live", "says", "source", title="results of the theory")
    for spec in specs.values():
        live = "yes" if spec.live else ""
        cells = (spec.name, ", ".join(spec.parts), live, spec.summary, spec.source)
        table.add_row(*map(Text, cells))
    Console().print(table)


@bound.command()
@click.argument("name")
@_JSON
def show(name: str, as_json: bool) -> None:
    """Explain a result: its statement, its inputs, its assumptions."""
    plugins = Plugins()
    specs, known = bound_specs(plugins), evaluators(plugins)
    found = resolve(name, {**specs, **known})
    owner = next(spec for spec in specs.values() if spec.name == found or found in spec.parts)
    evaluate = known.get(found)
    module = inspect.getdoc(inspect.getmodule(evaluate or owner.factory)) or ""
    inputs = inputs_of(evaluate) if evaluate is not None else []
    words = inspect.getdoc(evaluate or owner.factory) or ""
    if as_json:
        row = {**_row(owner), "asked": found, "inputs": inputs, "statement": module, "help": words}
        click.echo(json.dumps(row, indent=2, ensure_ascii=False))
        return
    click.echo(f"{owner.name}: {owner.summary}")
    click.echo(f"source: {owner.source}" if owner.source else "source: derived here")
    if owner.live:
        click.echo(f'live: attach(..., bounds=["{owner.name}"])')
    if inputs:
        click.echo(f"inputs of {found}: {', '.join(inputs)}")
    click.echo(f"\n{module}\n\n{words}")


@bound.command(name="eval")
@click.argument("cases", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--check",
    is_flag=True,
    help="Compare with each case's `expected` within its `tolerance`; exit code 1 if one differs.",
)
@click.option("--json", "as_json", is_flag=True, help="The answers are JSON lines in any case.")
def evaluate_file(cases: Path, check: bool, as_json: bool) -> None:
    """Evaluate a file of cases: one JSON line {id, result, value, certified, status} per case.

    A case has a "result" and its "inputs". One that is refused has the value null, and the reason
    in its status.
    """
    del as_json
    listed = _load(cases)
    known = evaluators(Plugins())
    answers = []
    for case in listed:
        made = answer(case, known)
        click.echo(json.dumps(made, ensure_ascii=False, allow_nan=False))
        answers.append(made)
    if check:
        wrong = checked(listed, answers)
        for line in wrong:
            click.echo(f"gfshadow: {line}", err=True)
        click.echo(f"{len(listed) - len(wrong)} of {len(listed)} as expected", err=True)
        if wrong:
            raise SystemExit(1)


def _load(path: Path) -> list[Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(must("CASES", "a JSON file", f"{path} ({error})", "Check it.")) from error
    if isinstance(found, dict) and isinstance(found.get("cases"), list):
        found = found["cases"]
    if not isinstance(found, list):
        fix = 'Write [{"id": …, "result": …, "inputs": {…}}, …].'
        raise ValueError(must("CASES", "a list of cases", f"a {type(found).__name__}", fix))
    return found


def _row(spec: BoundSpec) -> dict[str, Any]:
    return {
        "name": spec.name,
        "parts": list(spec.parts),
        "live": spec.live,
        "evaluates": spec.evaluate is not None or bool(spec.parts),
        "summary": spec.summary,
        "source": spec.source,
    }
