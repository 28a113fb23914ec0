"""Markdown pages as programs: find their code blocks, run them in order, compare what they print.

How a page is written (CONTRIBUTING.md says it in one line):

- A ``python`` block runs in the page's one namespace, warnings are errors; a ``bash`` block runs
  by ``bash -eu``. Both work in the page's own scratch directory, in the order of the page.
- A block with ``title="train.py"`` is written to that file instead, for a later block to run.
- ``--8<-- "examples/03_halve_the_step.py"`` includes a file; it must exist, and is tested where it
  lives.
- A ``text`` block after ``<!-- prints -->`` is what the block before it prints, ``...`` standing
  for anything.
- ``<!-- needs: lightning -->`` in a page skips it where that module is missing, and
  ``<!-- not run: reason -->`` exempts the one block after it. Use it for what needs a network or
  several machines, never to be quick.
"""

from __future__ import annotations

import contextlib
import doctest
import io
import os
import re
import subprocess
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent

_FENCE = re.compile(
    r"(?:^[ \t]*<!-- (?P<mark>prints|not run: [^\n]+?) -->[ \t]*\n\s*)?"
    r"^(?P<indent>[ \t]*)```(?P<language>\w*)(?P<info>[^\n]*)\n(?P<body>.*?)^(?P=indent)```[ \t]*$",
    flags=re.M | re.S,
)
_INCLUDE = re.compile(r'^[ \t]*--8<-- "(?P<path>[^":]+)(?::[^"]*)?"[ \t]*$', flags=re.M)
_EXACT = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


@dataclass(frozen=True)
class Block:
    """One fenced block of a page."""

    language: str
    info: str
    body: str
    mark: str
    line: int

    @property
    def title(self) -> str | None:
        found = re.search(r'title="([^"]+)"', self.info)
        return found.group(1) if found else None

    @property
    def runs(self) -> bool:
        return self.language in ("python", "bash") and not self.mark.startswith("not run")


def blocks(text: str) -> list[Block]:
    """Return every fenced block of a page, in order."""
    found = []
    for match in _FENCE.finditer(text):
        indent = len(match["indent"])
        body = "".join(line[indent:] for line in match["body"].splitlines(keepends=True))
        line = text.count("\n", 0, match.start("language")) + 1
        found.append(Block(match["language"], match["info"], body, match["mark"] or "", line))
    return found


def needs(text: str) -> list[str]:
    """Return the modules a page cannot do without."""
    return re.findall(r"<!-- needs: ([\w.]+) -->", text)


def run_page(path: Path, scratch: Path) -> int:
    """Run every block of a page in ``scratch``; return how many ran.

    Raises:
        AssertionError: If a block fails, or prints something else than the page says.
    """
    namespace: dict[str, object] = {"__name__": "__main__"}
    printed, n_run = "", 0
    for block in blocks(path.read_text(encoding="utf-8")):
        where = f"{path.name}, line {block.line}"
        if block.mark == "prints":
            same = doctest.OutputChecker().check_output(block.body, printed, _EXACT)
            assert same, f"{where} says\n{block.body}\nbut it prints\n{printed}"
        included = _INCLUDE.findall(block.body)
        for name in included:
            assert (ROOT / name).is_file(), f"{where} includes {name}, which does not exist"
        if not block.runs or (included and not _INCLUDE.sub("", block.body).strip()):
            continue
        n_run += 1
        if block.title is not None:
            (scratch / block.title).write_text(block.body, encoding="utf-8")
        elif block.language == "python":
            printed = _run_python(block.body, where, namespace)
        else:
            printed = _run_bash(block.body, where, scratch)
    return n_run


def _run_python(body: str, where: str, namespace: dict[str, object]) -> str:
    out = io.StringIO()
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(out):
            warnings.simplefilter("error")
            exec(compile(body, where, "exec"), namespace)
    except Exception as error:
        raise AssertionError(f"{where}: {type(error).__name__}: {error}") from error
    return out.getvalue()


def _run_bash(body: str, where: str, scratch: Path) -> str:
    body = "\n".join(line for line in body.splitlines() if not _is_install(line, where))
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", body],
        cwd=scratch,
        env={**os.environ, "PATH": path, "PYTHONPATH": paths, "COLUMNS": "100"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, f"{where} exits with {done.returncode}:\n{done.stderr}"
    return done.stdout


def _is_install(line: str, where: str) -> bool:
    """Check an install line instead of running it: what it names must be ours to install."""
    found = re.fullmatch(r'\s*pip install "(?P<what>[^"]+)"\s*', line)
    if found is None:
        assert "pip install" not in line, f'{where}: write `pip install "NAME[EXTRA]"` on its own'
        return False
    name, _, extras = found["what"].rstrip("]").partition("[")
    folder = ROOT if name in ("torch-gfshadow", ".") else ROOT / "plugins" / name
    pyproject = folder / "pyproject.toml"
    assert pyproject.is_file(), f"{where} installs {name}, which is not in this repository"
    text = pyproject.read_text(encoding="utf-8")
    for extra in filter(None, extras.split(",")):
        assert re.search(rf"^{extra} = \[", text, flags=re.M), f"{where}: no extra {extra}"
    return True
