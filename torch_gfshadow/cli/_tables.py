"""The closing tables: one column per network, one row per quantity."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from rich.table import Table
from rich.text import Text

Networks = Mapping[str, Mapping[str, Any]]
Cell = Callable[[Mapping[str, Any]], str]


def shadow_table(networks: Networks) -> Table:
    """Return what the shadow measured and what it cost.

    Args:
        networks: Title → what :func:`~torch_gfshadow.experiments.summary.summarise_records` says.
    """
    rows: list[tuple[str, Cell]] = [
        ("steps", lambda s: f"{s['steps']:,}"),
        ("loss at the end", lambda s: _number(s["loss"])),
        ("distance from initialisation", lambda s: _number(s["distance_from_init"])),
        ("discrepancy from gradient flow", lambda s: _pair(s["discrepancy"], s["solver_error"])),
        ("  of the distance travelled", lambda s: _percent(s["relative_discrepancy"])),
        ("  error bar / discrepancy", lambda s: _percent(s["relative_error"])),
        ("λ_min at the end", lambda s: _pair(s["lambda_min"], s["lambda_min_residual"])),
        ("λ_max at the end", lambda s: _pair(s["lambda_max"], s["lambda_max_residual"])),
    ]
    bounds = dict.fromkeys(name for summary in networks.values() for name in summary["bounds"])
    for name in bounds:
        rows += [(f"bound {name}", _bound(name)), ("  over what it limits", _tightness(name))]
    rows += [
        ("gradients per step", lambda s: _number(s["grad_evals_per_step"])),
        ("  without the probes", _without_probes),
    ]
    purposes: dict[str, None] = {}
    for summary in networks.values():
        purposes |= dict.fromkeys(summary["grad_evals_per_step_by_purpose"])
    rows += [(f"  for {purpose}", _for_purpose(purpose)) for purpose in purposes]
    rows += [
        ("Hessian products per step", lambda s: _number(s["hvps_per_step"])),
        ("seconds spent by the shadow", lambda s: _number(s["seconds"])),
        ("  over the rest of the loop's", lambda s: _percent(s["overhead"])),
        ("solver", lambda s: s["solver"]),
        ("gradient audit", lambda s: s["audit"]),
        ("records by status", _statuses),
        ("verdict", lambda s: s["verdict"]["level"]),
    ]
    return _table("gradient descent and its gradient-flow shadow", networks, rows)


def ratio_table(networks: Networks) -> Table:
    """Return the distances of the ratio protocol and what it cost."""
    ratios = sorted({int(r) for s in networks.values() for r in s["distances"]})
    rows: list[tuple[str, Cell]] = [
        ("steps", lambda s: f"{s['steps']:,}"),
        ("distance from initialisation", lambda s: _number(s["distance_from_init"])),
    ]
    rows += [(f"distance to the run at η/{r}", _distance(r)) for r in ratios]
    rows += [
        (
            "extrapolated to step size zero",
            lambda s: _pair(s["extrapolated"], s["extrapolated_error"]),
        ),
        ("rounding summed up by the finest", lambda s: _number(list(s["rounding"].values())[-1])),
        ("extra gradients per step", lambda s: _number(s["extra_grad_evals_per_step"])),
    ]
    return _table("the paper's protocol: runs at η/r", networks, rows)


def agreement_table(networks: Networks) -> Table:
    """Return the two protocols side by side.

    Args:
        networks: Title → ``{"shadow": …, "ratios": …, "agreement": …}``.
    """

    def first_order(s: Mapping[str, Any]) -> str:
        finest = max(int(r) for r in s["ratios"]["distances"])
        distance = s["ratios"]["distances"][str(finest)]
        return f"{_number(distance / (1 - 1 / finest))}"

    rows: list[tuple[str, Cell]] = [
        ("discrepancy by the shadow", lambda s: _side(s["agreement"]["shadow"])),
        ("  by runs at η/r, extrapolated", lambda s: _side(s["agreement"]["ratios"])),
        ("  by the finest run / (1 − 1/r)", first_order),
        ("agree within the error bars", lambda s: "yes" if s["agreement"]["agree"] else "NO"),
        ("  at so many of all records", lambda s: _percent(s["agreement"]["share"])),
        ("gradients per step, shadow", lambda s: _without_probes(s["shadow"])),
        (
            "gradients per step, runs at η/r",
            lambda s: _number(s["ratios"]["extra_grad_evals_per_step"]),
        ),
    ]
    return _table("do the two protocols agree, and at what price?", networks, rows)


def plugin_table(rows: list[dict[str, str]]) -> Table:
    """Return one row per registered member of a family."""
    table = Table(title="registered members", title_justify="left")
    for column in ("kind", "name", "plugin"):
        table.add_column(column, no_wrap=True)
    table.add_column("summary")
    for row in rows:
        plugin = row["plugin"]
        if plugin != "built-in":
            plugin = f"{plugin} {row['version']}".rstrip()
        # as Text: a plugin's own words may look like markup
        table.add_row(*map(Text, (row["kind"], row["name"], plugin, row["summary"])))
    return table


def _table(title: str, networks: Networks, rows: list[tuple[str, Cell]]) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column("")
    for name in networks:
        table.add_column(name, justify="right")
    for label, cell in rows:
        table.add_row(label, *(cell(summary) for summary in networks.values()))
    return table


def _without_probes(summary: Mapping[str, Any]) -> str:
    value = summary["grad_evals_per_step_excluding_probes"]
    if value is None:
        return f"≤ {_number(summary['grad_evals_per_step'])}"
    return _number(value)


def _statuses(summary: Mapping[str, Any]) -> str:
    counts: Mapping[str, int] = summary["status_counts"]
    if len(counts) == 1:
        return next(iter(counts))
    return ", ".join(f"{status} {n:,}" for status, n in counts.items())


def _bound(name: str) -> Cell:
    return lambda s: _number(s["bounds"].get(name, {}).get("value"))


def _tightness(name: str) -> Cell:
    """How many times what was measured the bound is, and of what kind."""

    def cell(summary: Mapping[str, Any]) -> str:
        found = summary["bounds"].get(name)
        if found is None:
            return "-"
        times = "" if found.get("tightness") is None else f"{found['tightness']:.3g} ×, "
        return f"{times}{found.get('kind', 'estimated')}"

    return cell


def _for_purpose(purpose: str) -> Cell:
    return lambda s: _number(s["grad_evals_per_step_by_purpose"].get(purpose, 0))


def _distance(ratio: int) -> Cell:
    return lambda s: _number(s["distances"].get(str(ratio)))


def _side(side: Mapping[str, float]) -> str:
    return _pair(side["discrepancy"], side["error"])


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _pair(value: float | None, error: float | None) -> str:
    if value is None:
        return "-"
    return _number(value) if error is None else f"{value:.3g} ± {error:.1g}"


def _percent(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.0%}" if value >= 0.1 or value == 0 else f"{100 * value:.2g}%"
