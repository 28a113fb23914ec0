"""Run the networks of Figure 1 one after the other, show it, write it down, and survive Ctrl-C."""

from __future__ import annotations

from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

import click
from rich.console import Console

from torch_gfshadow import plotting
from torch_gfshadow.cli._group import INTERRUPTED
from torch_gfshadow.cli._options import Choices
from torch_gfshadow.cli._outcome import Outcome
from torch_gfshadow.cli._progress import Display, GentleInterrupt
from torch_gfshadow.errors import must
from torch_gfshadow.experiments.data import Digits, mnist_digits
from torch_gfshadow.experiments.fig1 import (
    RATIOS_FILE,
    RECORDS_FILE,
    TITLES,
    run_fig1_ratios,
    run_shadow,
)
from torch_gfshadow.experiments.ratio_rows import read_rows
from torch_gfshadow.loggers import read_records

_Row = TypeVar("_Row")


def run(command: str, chosen: Choices, protocol: str) -> None:
    """Run what was chosen and print it; Ctrl-C says how to look at what there is, and exits.

    Args:
        command: How the user called it, for the summary.
        chosen: The checked options.
        protocol: ``"shadow"``, ``"ratios"`` or ``"both"``.
    """
    plotting.require_matplotlib()  # before the long part, not after it
    console = Console(stderr=True)
    with console.status("Looking for MNIST digits …"):
        digits = mnist_digits(
            chosen.n_digits, chosen.data_root, chosen.settings.seed, chosen.download
        )
    console.print(f"data: {digits.source}", highlight=False, soft_wrap=True)
    outcome = Outcome(chosen.out, _about(command, chosen, digits, protocol))
    try:
        with GentleInterrupt(console) as interrupt:
            for network in chosen.networks:
                if protocol in ("shadow", "both"):
                    _run_shadow(outcome, network, digits, chosen, console, interrupt)
                if protocol in ("ratios", "both"):
                    _run_ratios(outcome, network, digits, chosen, console, interrupt)
    except KeyboardInterrupt:
        _say_where(console, chosen.out)
        click.get_current_context().exit(INTERRUPTED)
    outcome.finish(chosen.as_json)


def redraw(out: Path, as_json: bool) -> None:
    """Draw and print again what ``out`` holds, complete or not.

    Raises:
        ValueError: If there are no records in it.
    """
    plotting.require_matplotlib()
    outcome = Outcome(out, {"command": "demo --plot-only"})
    for network in _networks_in(out):
        directory = out / network
        if (directory / RECORDS_FILE).is_file():
            file = read_records(directory / RECORDS_FILE)
            if file.records:
                outcome.add_records(network, file.records, file.summary)
        if (directory / RATIOS_FILE).is_file():
            rows = read_rows(directory / RATIOS_FILE)
            if rows:
                outcome.add_rows(network, rows)
    if not outcome.networks:
        raise ValueError(
            must(
                "--plot-only",
                f"a directory with <network>/{RECORDS_FILE}",
                str(out),
                "Run `gfshadow demo` first, and name its --out.",
            )
        )
    outcome.finish(as_json, keep=False)


def _run_shadow(
    outcome: Outcome,
    network: str,
    digits: Digits,
    chosen: Choices,
    console: Console,
    interrupt: GentleInterrupt,
) -> None:
    with Display(console, f"{network}, shadow", chosen.settings.steps) as display:
        on_record = _shown(display.record, interrupt)
        done = run_shadow(network, digits, chosen.settings, chosen.out / network, on_record)
    outcome.add_records(network, done.records, done.summary)


def _run_ratios(
    outcome: Outcome,
    network: str,
    digits: Digits,
    chosen: Choices,
    console: Console,
    interrupt: GentleInterrupt,
) -> None:
    with Display(console, f"{network}, runs at η/r", chosen.settings.steps) as display:
        on_row = _shown(display.row, interrupt)
        done = run_fig1_ratios(network, digits, chosen.settings, chosen.out / network, on_row)
    cost = {"n_grad_evals": done.n_grad_evals, "extra": done.extra_per_step}
    outcome.add_rows(network, done.rows, **cost)


def _shown(show: Callable[[_Row], None], interrupt: GentleInterrupt) -> Callable[[_Row], None]:
    """Return what shows a row as it comes, and then lets Ctrl-C in."""

    def on_row(row: _Row) -> None:
        show(row)
        interrupt.check()

    return on_row


def _say_where(console: Console, out: Path) -> None:
    console.print("Interrupted. What was recorded is complete:", highlight=False)
    for network in _networks_in(out):
        for name in (RECORDS_FILE, RATIOS_FILE):
            path = out / network / name
            if path.is_file():
                console.print(f"  {path}  {_last_step(path)}", highlight=False, soft_wrap=True)
    console.print(
        f"Draw and tabulate it with:  gfshadow demo --plot-only {out}",
        highlight=False,
        soft_wrap=True,
    )


def _last_step(path: Path) -> str:
    steps = [
        item.step
        for item in (read_records(path).records if path.name == RECORDS_FILE else read_rows(path))
    ]
    return f"({len(steps):,} rows up to step {steps[-1]:,})" if steps else "(empty)"


def _networks_in(out: Path) -> list[str]:
    return [n for n in TITLES if any((out / n / f).is_file() for f in (RECORDS_FILE, RATIOS_FILE))]


def _about(command: str, chosen: Choices, digits: Digits, protocol: str) -> dict[str, Any]:
    settings = chosen.settings
    return {
        "command": command,
        "version": metadata.version("torch-gfshadow"),
        "protocol": protocol,
        "data": digits.source,
        "settings": {
            "steps": settings.steps,
            "step_size": settings.step_size,
            "every": settings.record_period,
            "probe_every": settings.probe_period,
            "seed": settings.seed,
            "dtype": settings.dtype,
            "fine_dtype": settings.fine_dtype,
            "digits": chosen.n_digits,
            "ratios": list(settings.ratios),
            **settings.shadow,
        },
    }
