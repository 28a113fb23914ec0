"""``gfshadow plugins``: what is registered, and by whom."""

from __future__ import annotations

import json

import click
from rich.console import Console

from torch_gfshadow.cli._tables import plugin_table
from torch_gfshadow.plugins import Plugins


@click.group()
def plugins() -> None:
    """Look at registered bounds, probes, solvers, flows, loggers and initialisers."""


@plugins.command(name="list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout.")
def list_members(as_json: bool) -> None:
    """List every registered member with the plugin that brought it."""
    registered = Plugins()
    if as_json:
        click.echo(json.dumps(registered.describe(), indent=2))
    else:
        Console().print(plugin_table(registered.describe()))
    for error in registered.load_errors:
        click.echo(f"gfshadow: {error}", err=True)
