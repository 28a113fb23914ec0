"""The contract of loggers."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from torch_gfshadow.errors import GFShadowError
from torch_gfshadow.loggers import Logger, make_header
from torch_gfshadow.testing.isolation import random_states, same
from torch_gfshadow.testing.records import hostile_records, make_record


def assert_logger_contract(
    make: Callable[[Path], Logger], directory: Path, *, writes_files: bool = True
) -> None:
    """Assert everything the tracker and the user rely on in a logger.

    Construction opens nothing; ``start``, ``write``, ``finish`` work in this order, a second time
    too, and whatever a record holds; ``finish`` may be repeated or come first; a record outside
    is an error; nothing it is given is changed; no tensor is kept alive; no random number is
    drawn; and a target that cannot be written is a ValueError that names it.

    Args:
        make: Builds a logger that writes to the path it is given.
        directory: An empty directory to write in.
        writes_files: Whether the path means anything; if not, no bad path is tried.
    """
    target = directory / "new" / "target"
    logger = make(target)
    if not isinstance(logger, Logger):
        raise AssertionError(f"{logger!r} has no start, write and finish")
    if any(directory.iterdir()):
        raise AssertionError("constructing a logger must open nothing: start() does")
    before = random_states()

    logger.finish({})
    _assert_refuses(logger, "before start()")
    for _ in range(2):
        _assert_writes(logger)
        _assert_refuses(logger, "after finish()")
        logger.finish({})
    _assert_writes(make(target))
    after = random_states()
    if not all(same(value, after[name]) for name, value in before.items()):
        raise AssertionError("a logger must draw no random number: it would change the run")
    if writes_files:
        _assert_names_bad_target(make, directory)


def _assert_writes(logger: Logger) -> None:
    """Run one session; the mappings are read-only, so changing one raises by itself."""
    logger.start(_frozen(make_header({"every": 1}, seed=0)))
    for record in hostile_records():
        before = repr(record)
        logger.write(record)
        if repr(record) != before:
            raise AssertionError(f"write() changed {before} into {record!r}")
    tensor = torch.ones((), dtype=torch.float64)
    alive = weakref.ref(tensor)
    logger.write(make_record(4, extras={"plugin": {"tensor": tensor}}))
    del tensor
    gc.collect()
    if alive() is not None:
        raise AssertionError("a logger must keep no tensor alive: keep to_dict() of the record")
    logger.finish(_frozen({"n_records": 5, "final_discrepancy": float("nan")}))


def _frozen(mapping: Mapping[str, Any]) -> Mapping[str, Any]:
    return MappingProxyType(
        {
            key: _frozen(value) if isinstance(value, Mapping) else value
            for key, value in mapping.items()
        }
    )


def _assert_refuses(logger: Logger, when: str) -> None:
    try:
        logger.write(make_record())
    except GFShadowError:
        return
    raise AssertionError(f"write() {when} must raise GFShadowError, not lose the record")


def _assert_names_bad_target(make: Callable[[Path], Logger], directory: Path) -> None:
    blocked = directory / "a file"
    blocked.write_text("")
    target = blocked / "target"
    try:
        make(target)
    except ValueError as error:
        if str(target) not in str(error):
            raise AssertionError(f"the message must name {target}, got {error}") from error
        return
    raise AssertionError(f"make({str(target)!r}) must raise ValueError: its parent is a file")
