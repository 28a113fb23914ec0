"""One command for every table and figure of docs/performance.md.

    python -m benchmarks [NAME ...] [--quick] [--write]

Counts first, time ratios of runs taken in turn second. Peers come from their registries:
``pip install torchode pyhessian hessian-eigenthings curvlinops-for-pytorch``; what is not
installed has a row that says so.
"""

from __future__ import annotations

import argparse
import time
from importlib import import_module
from pathlib import Path

import torch

from benchmarks.tables import machine, write

NAMES = ("flow", "kinks", "eigen", "referee", "memory", "idle", "scaling", "bound_tightness")
NAMES += ("calibration", "calibration_batch", "ranks", "budget")
PAGE = Path(__file__).parent.parent / "docs" / "performance.md"


def main() -> None:
    """Run the benchmarks asked for; print their tables, or write them into the page."""
    parser = argparse.ArgumentParser(
        "python -m benchmarks", description="Every table of docs/performance.md."
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)}")
    parser.add_argument("--quick", action="store_true", help="minutes instead of an hour")
    parser.add_argument("--write", action="store_true", help="into docs/performance.md")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    unknown = set(options.names) - set(NAMES)
    if unknown:
        parser.error(f"NAME must be one of {', '.join(NAMES)}, got {', '.join(sorted(unknown))}")
    torch.set_num_threads(options.threads)
    size = "quick" if options.quick else "full"
    print(machine(), flush=True)
    for name in options.names or NAMES:
        start = time.perf_counter()
        command = f"python -m benchmarks {name}{' --quick' if options.quick else ''}"
        for table in import_module(f"benchmarks.{name}").tables(size):
            print(f"\n{table.markdown()}", flush=True)
            if options.write and name != "bound_tightness":  # docs/theory.md has it, by hand
                write(PAGE, table, f"`{command}`")
        print(f"\n{name}: {time.perf_counter() - start:.0f} s", flush=True)
    if options.write:
        write(PAGE, None, machine())


if __name__ == "__main__":
    main()
