"""The median tightness of every bound on random cases, and violations counted.

python -m benchmarks.bound_tightness [--cases 2000] [--seed 0] [--only NAME]
"""

import argparse
from collections.abc import Iterator

from benchmarks.tables import Table
from torch_gfshadow.experiments.soundness import STUDIES, run

_CASES = {"tiny": 20, "quick": 200, "full": 2000}
_HEADS = ["bound", "cases", "violations", "smallest", "median", "largest"]


def rows(names: list[str], cases: int, seed: int) -> Iterator[list[object]]:
    """Yield one row per bound."""
    for name in names:
        out = run(name, cases, seed)
        yield [
            name,
            f"{out.n_cases:,}",
            out.n_violations,
            f"{out.smallest:.3g}",
            f"{out.median:.3g}",
            f"{out.largest:.3g}",
        ]


def tables(size: str) -> list[Table]:
    """Return the table of all bounds."""
    names = list(STUDIES)[:2] if size == "tiny" else list(STUDIES)
    note = "Bound over the quantity it bounds, on random cases whose quantity is known."
    return [Table("bounds", _HEADS, list(rows(names, _CASES[size], 0)), note)]


def main() -> None:
    """Run the studies and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=list(STUDIES))
    options = parser.parse_args()
    print(f"| {' | '.join(_HEADS)} |\n|---|--:|--:|--:|--:|--:|")
    chosen = [options.only] if options.only else list(STUDIES)
    for row in rows(chosen, options.cases, options.seed):
        print("| " + " | ".join(str(cell) for cell in row) + " |", flush=True)


if __name__ == "__main__":
    main()
