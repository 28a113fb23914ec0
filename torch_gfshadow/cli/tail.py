"""``gfshadow tail``: follow a run in the terminal while it writes its records."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import click
from rich.console import Console
from rich.live import Live

from torch_gfshadow.cli._live import LiveView
from torch_gfshadow.errors import must
from torch_gfshadow.loggers import ConsoleLogger, Follower
from torch_gfshadow.record import Record


@click.command()
@click.argument("records", type=click.Path(path_type=Path))
@click.option(
    "--interval",
    type=click.FloatRange(0.01, 3600.0),
    default=0.5,
    show_default=True,
    metavar="SECONDS",
    help="Time between looks at the file.",
)
@click.option(
    "--every", type=click.IntRange(1), default=1, help="Where lines are printed: one in N."
)
@click.option("--once", is_flag=True, help="Show what there is and leave.")
@click.option("--keep", is_flag=True, help="Stay when the run has finished; it may be resumed.")
@click.option("--json", "as_json", is_flag=True, help="Print every record as a line of JSON.")
def tail(records: Path, interval: float, every: int, once: bool, keep: bool, as_json: bool) -> None:
    """Follow a run that writes RECORDS (loggers=["jsonl:run.jsonl"]).

    On a terminal a panel shows the latest values and their course; into a pipe goes one line per
    record. Waits for a file that is not there yet. Ends with the run, or with Ctrl-C.
    """
    if records.is_dir():
        fix = "Name the JSONL file in it."
        raise ValueError(must("RECORDS", "a file", f"the folder {records}", fix))
    if once and not records.exists():
        fix = "Leave --once out to wait for it."
        raise ValueError(must("RECORDS", "a file", f"{records}, which does not exist", fix))
    console = Console()
    follower = Follower(records)
    try:
        if as_json or not console.is_terminal:
            _print(follower, interval, every, once, keep, as_json)
        else:
            _show(follower, console, interval, once, keep)
    except KeyboardInterrupt:
        return


def _show(follower: Follower, console: Console, interval: float, once: bool, keep: bool) -> None:
    view = LiveView(str(follower.path))
    with Live(view, console=console, auto_refresh=False) as live:
        while True:
            for item in follower.poll():
                view.add(item)
            live.refresh()
            if once or (view.finished and not keep):
                return
            time.sleep(interval)


def _print(
    follower: Follower, interval: float, every: int, once: bool, keep: bool, as_json: bool
) -> None:
    # the console logger's own lines, on standard output
    logger = ConsoleLogger(every, Console(file=sys.stdout))
    logger.start({})
    n_records = 0
    while True:
        finished = False
        for item in follower.poll():
            finished = not isinstance(item, Record) and item.get("type") == "summary"
            if not isinstance(item, Record):
                continue
            if not as_json:
                logger.write(item)
            elif n_records % every == 0:
                click.echo(json.dumps(item.to_dict(), allow_nan=False))
            n_records += 1
        sys.stdout.flush()
        if once or (finished and not keep):
            logger.finish({})
            return
        time.sleep(interval)
