"""Run the networks of Figure 1 one after the other, show it, write it down, and survive Ctrl-C."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from torch_gfshadow import plotting
from torch_gfshadow.cli import _tables
from torch_gfshadow.cli._group import INTERRUPTED
from torch_gfshadow.cli._options import Choices
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
from torch_gfshadow.experiments.ratios import RatioRow, read_rows
from torch_gfshadow.experiments.summary import (
    summarise_agreement,
    summarise_records,
    summarise_rows,
)
from torch_gfshadow.experiments.verdict import compare
from torch_gfshadow.loggers import read_records
from torch_gfshadow.record import Record

FIGURE_FILE, SUMMARY_FILE = "figure1.png", "summary.json"


@dataclass
class Outcome:
    """Everything known about the networks so far, and how to show it."""

    out: Path
    about: dict[str, Any] = field(default_factory=dict)
    records: dict[str, Sequence[Record]] = field(default_factory=dict)
    rows: dict[str, Sequence[RatioRow]] = field(default_factory=dict)
    networks: dict[str, dict[str, Any]] = field(default_factory=dict)

    def add_records(
        self, network: str, records: Sequence[Record], summary: Mapping[str, Any] | None
    ) -> None:
        """Add what the shadow measured."""
        self.records[network] = records
        entry = self.networks.setdefault(network, {})
        entry["shadow"] = summarise_records(records, summary)
        self._compare(network)

    def add_rows(self, network: str, rows: Sequence[RatioRow], **cost: Any) -> None:
        """Add what the ratio protocol measured."""
        self.rows[network] = rows
        self.networks.setdefault(network, {})["ratios"] = summarise_rows(rows, **cost)
        self._compare(network)

    def _compare(self, network: str) -> None:
        if network in self.records and network in self.rows:
            agreement = compare(self.records[network], self.rows[network])
            if agreement is not None:
                self.networks[network]["agreement"] = summarise_agreement(agreement)

    def finish(self, as_json: bool, keep: bool = True) -> None:
        """Draw the figure and print the summary: tables, or JSON on stdout.

        Args:
            as_json: Which of the two.
            keep: Whether to write the summary beside the figure, too.
        """
        files = {"figure": self.out / FIGURE_FILE}
        self._draw(files["figure"])
        for network in self.networks:
            files[f"{network} records"] = self.out / network / RECORDS_FILE
            files[f"{network} ratios"] = self.out / network / RATIOS_FILE
        if keep:
            files["summary"] = self.out / SUMMARY_FILE
        names = {name: str(f) for name, f in files.items() if f.is_file() or name == "summary"}
        text = json.dumps({**self.about, "networks": self.networks, "files": names}, indent=2)
        if keep:
            files["summary"].write_text(text + "\n", encoding="utf-8")
        if as_json:
            click.echo(text)
        else:
            self._print_tables(Console(), names)

    def _draw(self, path: Path) -> None:
        runs: dict[str, Sequence[Record]] = {}
        overlays: dict[str, dict[str, plotting.Curve]] = {}
        for network in self.networks:
            title = TITLES.get(network, network)
            rows = self.rows.get(network, ())
            runs[title] = self.records.get(network) or [_as_record(row) for row in rows]
            overlays[title] = {
                f"from the run at $\\eta/{r}$": (
                    [row.step for row in rows],
                    [row.distances[r] for row in rows],
                )
                for r in (rows[0].distances if rows else ())
            }
        plotting.figure1(runs, path, overlays=overlays)

    def _print_tables(self, console: Console, files: Mapping[str, str]) -> None:
        both = {n: entry for n, entry in self.networks.items() if "agreement" in entry}
        for part, table in (("shadow", _tables.shadow_table), ("ratios", _tables.ratio_table)):
            found = {n: entry[part] for n, entry in self.networks.items() if part in entry}
            if found:
                console.print(table(found))
        if both:
            console.print(_tables.agreement_table(both))
        for name, entry in self.networks.items():
            for error in entry.get("shadow", {}).get("errors", ()):
                console.print(f"{name}: caught {error}", style="red", markup=False)
            if "shadow" in entry:
                console.print(f"{name}: {entry['shadow']['verdict']['text']}")
            if "agreement" in entry:
                console.print(f"{name}: {entry['agreement']['text']}")
        for kind, path in files.items():
            console.print(f"{kind}: {path}", highlight=False, soft_wrap=True)


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

        def on_record(record: Record) -> None:
            display.record(record)
            interrupt.check()

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

        def on_row(row: RatioRow) -> None:
            display.row(row)
            interrupt.check()

        done = run_fig1_ratios(network, digits, chosen.settings, chosen.out / network, on_row)
    cost = {"n_grad_evals": done.n_grad_evals, "extra": done.extra_per_step}
    outcome.add_rows(network, done.rows, **cost)


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


def _as_record(row: RatioRow) -> Record:
    # a ratio run has no shadow: what it shares with a record is the run at η itself
    return Record(
        step=row.step,
        time=float("nan"),
        loss=row.losses.get(1),
        distance_from_init=row.distance_from_init,
    )


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
