"""A study: tables, findings in words and one figure, saved together."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Number = float | int | str | None


@dataclass(frozen=True)
class Table:
    """Rows of numbers or words under headings.

    Attributes:
        title: What the rows are, with what was held fixed.
        columns: Key → heading, with the unit.
        rows: One mapping per row; a key that is missing or ``None`` is an empty cell.
    """

    title: str
    columns: Mapping[str, str]
    rows: Sequence[Mapping[str, Number]]


@dataclass(frozen=True)
class Study:
    """What one study found.

    Attributes:
        name: Its command, and the stem of its files.
        settings: Everything needed to run it again.
        tables: Its tables.
        findings: Sentences, each with its numbers.
        draw: Draws the figure and saves it at a path.
    """

    name: str
    settings: Mapping[str, Any]
    tables: Sequence[Table]
    findings: Sequence[str]
    draw: Callable[[Path], None]

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the figure, JSON-ready."""
        return {
            "study": self.name,
            "settings": dict(self.settings),
            "tables": [
                {"title": t.title, "columns": dict(t.columns), "rows": [dict(r) for r in t.rows]}
                for t in self.tables
            ],
            "findings": list(self.findings),
        }

    def save(self, directory: str | Path) -> dict[str, Path]:
        """Write ``<name>.json`` and ``<name>.png`` into ``directory``; return where they are."""
        out = Path(directory)
        out.mkdir(parents=True, exist_ok=True)
        files = {"numbers": out / f"{self.name}.json", "figure": out / f"{self.name}.png"}
        text = json.dumps(self.to_dict(), indent=1, ensure_ascii=False)
        files["numbers"].write_text(text + "\n", encoding="utf-8")
        self.draw(files["figure"])
        return files
