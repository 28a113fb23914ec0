"""What the networks of a run showed so far: its figure, its summary, its tables."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from torch_gfshadow import plotting
from torch_gfshadow.cli import _tables
from torch_gfshadow.experiments.fig1 import RATIOS_FILE, RECORDS_FILE, TITLES
from torch_gfshadow.experiments.networks import CONVOLUTIONS
from torch_gfshadow.experiments.ratio_rows import RatioRow
from torch_gfshadow.experiments.summary import (
    summarise_agreement,
    summarise_records,
    summarise_rows,
)
from torch_gfshadow.experiments.verdict import compare
from torch_gfshadow.record import Record
from torch_gfshadow.report import can_report, load_runs, write_report

SUMMARY_FILE, REPORT_FILE = "summary.json", "report.html"


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
        """Draw the figure, write the report and print the summary: tables, or JSON on stdout.

        Args:
            as_json: Which of the two.
            keep: Whether to write the summary beside the figure, too.
        """
        files = {"figure": self.out / self._figure_file()}
        self._draw(files["figure"])
        files["report"] = self.out / REPORT_FILE
        self._report(files["report"])
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

    def _figure_file(self) -> str:
        """Return the name after the figure of the paper the networks are from."""
        return "figure3.png" if set(self.networks) <= set(CONVOLUTIONS) else "figure1.png"

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

    def _report(self, path: Path) -> None:
        networks = [n for n in self.records if (self.out / n / RECORDS_FILE).is_file()]
        if not networks or not can_report():
            return
        files = [self.out / network / RECORDS_FILE for network in networks]
        runs = load_runs(files, [TITLES.get(network, network) for network in networks])
        write_report(runs, path, "Gradient descent beside gradient flow")

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
                for bound, cell in entry["shadow"]["bounds"].items():
                    if cell.get("kind") == "failed":
                        console.print(f"{name}: {bound}, {cell['why']}", highlight=False)
            if "agreement" in entry:
                console.print(f"{name}: {entry['agreement']['text']}")
        for kind, path in files.items():
            console.print(f"{kind}: {path}", highlight=False, soft_wrap=True)


def _as_record(row: RatioRow) -> Record:
    # a ratio run has no shadow: what it shares with a record is the run at η itself
    return Record(
        step=row.step,
        time=float("nan"),
        loss=row.losses.get(1),
        distance_from_init=row.distance_from_init,
    )
