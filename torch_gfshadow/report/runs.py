"""Runs to report on: read from files, split where a file holds several, named apart."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from torch_gfshadow.errors import must
from torch_gfshadow.loggers import RecordFile, make_header, read_records
from torch_gfshadow.record import Record

_DEFAULT_NAMES = ("records", "run", "log")


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run, in the order of its steps.

    Attributes:
        name: What the report calls it. Anybody's text: it is escaped where it is shown.
        records: At least one record; steps increase.
        header: Configuration, seed and versions, as loggers write them; ``{}`` if unknown.
        summary: The run's own totals, ``None`` if it has not got that far.
        state: ``"finished"``, ``"running"`` or ``"cut short"``.
        resumed_at: Steps at which it was taken up again.
    """

    name: str
    records: tuple[Record, ...]
    header: Mapping[str, Any] = field(default_factory=dict)
    summary: Mapping[str, Any] | None = None
    state: str = "finished"
    resumed_at: tuple[int, ...] = ()

    @property
    def anew(self) -> str:
        """When shadows were started anew, in words; empty if one shadow lived as long as the run.

        Discrepancies then count from there, not from the first step.
        """
        asked = self.header.get("configuration") or {}
        if self.last.mode == "local":
            return "before every record's step"
        if asked.get("window"):
            return f"at every {asked.get('every')}-th step and followed for {asked['window']}"
        return f"every {asked['resync_every']} steps" if asked.get("resync_every") else ""

    @property
    def last(self) -> Record:
        """The last record."""
        return self.records[-1]


class Attached(Protocol):
    """What a run has that goes on in this process: a session."""

    config: Mapping[str, Any]
    records: list[Record]


def run_of(
    session: Attached,
    summary: Mapping[str, Any],
    errors: Sequence[BaseException],
    name: str,
    state: str,
) -> Run:
    """Return a run of this process as far as it got."""
    told = [f"{type(error).__name__}: {error}" for error in errors]
    return Run(
        name=name,
        records=tuple(session.records),
        header=make_header(session.config, session.config.get("seed")),
        summary={**summary, "errors": told},
        state=state,
    )


def load_runs(paths: Sequence[str | Path], names: Sequence[str] = ()) -> list[Run]:
    """Read the runs of some files, or of every ``records.jsonl`` below some folders.

    A session that begins again at step 0 is a run of its own; one that begins later continues
    the run before it, and replaces what was recorded from its first step on.

    Args:
        paths: JSONL files of records, or folders.
        names: One name per file, in order; by default the file's or its folder's.

    Returns:
        At least one run; names differ.

    Raises:
        OSError: If a file cannot be read.
        ValueError: If a file holds no records or is no record file, or ``names`` do not fit.
    """
    files = [file for path in paths for file in _files(Path(path))]
    if names and len(names) != len(files):
        fix = "Repeat --name for each file, in order, or leave it out."
        raise ValueError(must("names", f"one per file ({len(files)})", len(names), fix))
    runs: list[Run] = []
    for index, file in enumerate(files):
        name = names[index] if names else _name_of(file)
        found = list(_split(name, read_records(file)))
        if not found:
            fix = "Write records with loggers=['jsonl:run.jsonl']."
            raise ValueError(must(str(file), "a file with records", "none", fix))
        runs += found
    return _named_apart(runs)


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    found = sorted(path.rglob("records.jsonl"))
    if not found:
        fix = "Name the JSONL file itself."
        raise ValueError(must(str(path), "a file, or a folder with records.jsonl", "neither", fix))
    return found


def _name_of(file: Path) -> str:
    return file.resolve().parent.name if file.stem in _DEFAULT_NAMES else file.stem


def _split(name: str, file: RecordFile) -> Iterator[Run]:
    """Yield the runs of a file: sessions from step 0 on, joined with what continues them."""
    state = "finished" if file.complete else "cut short"
    headers = file.headers or (file.header,)
    current: Run | None = None
    for header, records in zip(headers, file.sessions or (file.records,), strict=False):
        if not records:
            continue
        first = records[0].step
        if current is None or first <= current.records[0].step:
            if current is not None:
                yield replace(current, state="cut short")
            current = Run(name=name, records=records, header=header, state=state)
            continue
        kept = tuple(record for record in current.records if record.step < first)
        resumed = tuple(step for step in current.resumed_at if step < first)
        current = replace(current, records=kept + records, resumed_at=(*resumed, first))
    if current is not None:
        yield replace(current, summary=file.summary)


def _named_apart(runs: Sequence[Run]) -> list[Run]:
    total, seen = Counter(run.name for run in runs), Counter[str]()
    named = []
    for run in runs:
        seen[run.name] += 1
        suffix = f" ({seen[run.name]})" if total[run.name] > 1 else ""
        named.append(replace(run, name=run.name + suffix))
    return named
