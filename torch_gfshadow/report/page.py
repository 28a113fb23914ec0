"""Report: one HTML file that needs nothing else. Everything shown is escaped, twice over.

Jinja escapes every string; what goes to the figures travels as JSON whose ``<`` are escaped; and a
content security policy lets only our own scripts run, by their hashes, and nothing be loaded.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.resources
import importlib.util
import json
import os
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from torch_gfshadow.errors import must
from torch_gfshadow.report import tables
from torch_gfshadow.report.figures import draw
from torch_gfshadow.report.findings import find
from torch_gfshadow.report.limits import bound_rows
from torch_gfshadow.report.runs import Run

_PACKAGES = ("plotly", "jinja2")


def write_report(
    runs: Sequence[Run], path: str | os.PathLike[str], title: str | None = None
) -> Path:
    """Write the report of one or several runs.

    Args:
        runs: At least one run.
        path: The HTML file; missing folders are made, an existing file is replaced as a whole.
        title: Heading; by default the names of the runs.

    Returns:
        The path.

    Raises:
        ImportError: If plotly or jinja2 is not installed.
        OSError: If the file cannot be written.
        ValueError: If there is no run or ``path`` is a folder.
    """
    target = Path(path)
    if target.is_dir():
        raise ValueError(must("path", "a file", str(target), "Add a name, as in report.html."))
    page = render(runs, title)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        partial.write_text(page, encoding="utf-8")
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
    return target


def render(runs: Sequence[Run], title: str | None = None) -> str:
    """Return the report as HTML.

    Raises:
        ImportError: If plotly or jinja2 is not installed.
        ValueError: If there is no run.
    """
    if not runs:
        raise ValueError(must("runs", "at least one", "none", "Name a file of records."))
    require_report()
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup
    from plotly.offline import get_plotlyjs

    environment = Environment(
        loader=PackageLoader("torch_gfshadow.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    scripts = [get_plotlyjs(), _template("report.js")]
    return environment.get_template("report.html").render(
        title=title or " · ".join(run.name for run in runs),
        runs=[_shown(run) for run in runs],
        overview=tables.overview(runs),
        axis=_axis(runs),
        figures=[(figure, Markup(_json(figure.spec))) for figure in draw(runs)],
        policy=_policy(scripts),
        scripts=[Markup(script) for script in scripts],
        style=Markup(_template("report.css")),
        version=metadata.version("torch-gfshadow"),
    )


def can_report() -> bool:
    """Return whether plotly and jinja2 are installed."""
    return all(importlib.util.find_spec(package) is not None for package in _PACKAGES)


def require_report() -> None:
    """Raise the error of a missing package now, before the work.

    Raises:
        ImportError: If plotly or jinja2 is not installed.
    """
    for package in _PACKAGES:
        if importlib.util.find_spec(package) is None:
            fix = 'Run `pip install "torch-gfshadow[report]"`.'
            raise ImportError(must(package, "installed to write reports", "no such package", fix))


def _axis(runs: Sequence[Run]) -> str:
    """Return what the horizontal axis shows at first: steps, or time where paces differ."""
    paces = [run.last.time / run.last.step for run in runs if run.last.step]
    alike = not paces or not max(paces) > 1.001 * min(paces)
    return "step" if alike else "time"


def _shown(run: Run) -> dict[str, Any]:
    return {
        "name": run.name,
        "n_records": len(run.records),
        "findings": find(run),
        "bounds": bound_rows(run),
        "history": tables.history(run),
        "setup": tables.setup(run),
        "extras": tables.extras(run),
        "samples": tables.samples(run),
    }


def _json(value: Any) -> str:
    """Return JSON that cannot end the script element it stands in."""
    out = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return out.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _policy(scripts: Sequence[str]) -> str:
    hashes = (hashlib.sha256(script.encode()).digest() for script in scripts)
    allowed = " ".join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in hashes)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; "
        "img-src data: blob:; base-uri 'none'; form-action 'none'"
    )


def _template(name: str) -> str:
    folder = importlib.resources.files("torch_gfshadow.report") / "templates"
    return (folder / name).read_text(encoding="utf-8")
