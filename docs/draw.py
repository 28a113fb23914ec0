"""Draw the pictures of the documentation anew: run every example and figure, keep what it drew.

python docs/draw.py [name …]
"""

from __future__ import annotations

import os
import runpy
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def main(names: list[str]) -> None:
    """Run the examples named, or all, in a folder of their own and move their pictures here."""
    target = ROOT / "docs" / "pictures"
    target.mkdir(exist_ok=True)
    scripts = [*(ROOT / "examples").glob("*.py"), *(ROOT / "docs" / "_figures").glob("*.py")]
    for example in sorted(scripts):
        if names and example.stem not in names:
            continue
        with tempfile.TemporaryDirectory() as scratch:
            os.chdir(scratch)
            runpy.run_path(str(example), run_name="__main__")
            for picture in Path(scratch).glob("*.png"):
                (target / picture.name).write_bytes(picture.read_bytes())
            os.chdir(ROOT)


if __name__ == "__main__":
    main(sys.argv[1:])
