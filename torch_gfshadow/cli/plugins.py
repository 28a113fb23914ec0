"""``gfshadow plugins``: what is registered and by whom; check a package; begin a new one."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import click
from rich.console import Console
from rich.markup import escape

from torch_gfshadow.cli._options import OneOf
from torch_gfshadow.cli._tables import plugin_table
from torch_gfshadow.plugins import Plugins
from torch_gfshadow.scaffold import KINDS, Names, write_package
from torch_gfshadow.scaffold.hooks_page import hooks_page

_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout.")
_MARKS = {"pass": "[green]pass[/]", "fail": "[red]FAIL[/]", "skip": "[yellow]skip[/]"}


@click.group()
def plugins() -> None:
    """Look at registered members and their plugins, check a package, or begin a new one."""


@plugins.command(name="list")
@_JSON
def list_members(as_json: bool) -> None:
    """List every registered member with the plugin that brought it."""
    registered = Plugins()
    if as_json:
        click.echo(json.dumps(registered.describe(), indent=2))
    else:
        Console().print(plugin_table(registered.describe()))
    for error in registered.load_errors:
        click.echo(f"gfshadow: {error}", err=True)


@plugins.command()
@_JSON
def hooks(as_json: bool) -> None:
    """Print the reference of all hooks, in Markdown."""
    page = hooks_page()
    click.echo(json.dumps({"markdown": page}) if as_json else page, nl=as_json)


@plugins.command()
@click.argument("package")
@_JSON
@click.pass_context
def check(ctx: click.Context, package: str, as_json: bool) -> None:
    """Hold an installed plugin package to every contract its members have.

    Looks at its metadata and typing, how fast it loads, its hooks, each bound, initialiser,
    logger, probe, flow and solver it registers, and whether training stays bit-identical beside
    it. Exit code 1 if something fails.
    """
    from torch_gfshadow.testing.checking import check_package

    found = []
    for item in check_package(package):
        found.append(item)
        if not as_json:
            detail = f"  {escape(item.detail)}" if item.detail else ""
            line = f"{_MARKS[item.outcome]}  {escape(item.what)}{detail}"
            Console().print(line, highlight=False, soft_wrap=True)
    if as_json:
        click.echo(json.dumps([dataclasses.asdict(item) for item in found], indent=2))
    if any(item.outcome == "fail" for item in found):
        ctx.exit(1)


@plugins.command()
@click.argument("name")
@click.option("--kind", type=OneOf(KINDS), required=True, help="What the plugin brings.")
@click.option(
    "--directory",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path(),
    help="Where to put it.  [default: here]",
)
@_JSON
def new(name: str, kind: str, directory: Path, as_json: bool) -> None:
    """Write a complete plugin package: it installs, its tests pass, and it does something real.

    NAME becomes the package gfshadow-NAME, whose member is registered as NAME. What is written is
    a working example of its kind, to be replaced by yours.
    """
    taken = Plugins().names(f"{kind}s")
    written = write_package(name, kind, directory, taken=taken)
    root = directory / Names.of(name, kind).distribution
    if as_json:
        click.echo(json.dumps({"directory": str(root), "files": [str(path) for path in written]}))
        return
    for path in written:
        click.echo(path)
    click.echo(f'\nNext: cd {root} && pip install -e ".[test]" && pytest')
