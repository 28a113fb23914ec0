"""Print the median tightness of every bound on random cases, and count violations.

python benchmarks/bound_tightness.py [--cases 2000] [--seed 0] [--only NAME]
"""

import argparse
import time

from torch_gfshadow.experiments.soundness import STUDIES, run


def main() -> None:
    """Run the studies and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=list(STUDIES))
    options = parser.parse_args()
    print("| bound | cases | violations | smallest | median | largest | seconds |")
    print("|---|--:|--:|--:|--:|--:|--:|")
    for name in [options.only] if options.only else STUDIES:
        began = time.perf_counter()
        out = run(name, options.cases, options.seed)
        took = time.perf_counter() - began
        print(
            f"| {name} | {out.n_cases:,} | {out.n_violations} | {out.smallest:.3g} "
            f"| {out.median:.3g} | {out.largest:.3g} | {took:.1f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
