"""A pytest plugin: ``pytest -p torch_gfshadow.testing.fixtures``, or ``addopts`` in pyproject.toml.

Not loaded by itself: that would import torch into every test run on the machine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from torch_gfshadow.handle import Shadow
from torch_gfshadow.record import Record
from torch_gfshadow.testing.isolation import isolated_plugins
from torch_gfshadow.testing.records import hostile_records, make_record
from torch_gfshadow.testing.runs import toy_run


@pytest.fixture
def gfshadow_isolated() -> Iterator[None]:
    """Hide every installed plugin during the test."""
    with isolated_plugins():
        yield


@pytest.fixture
def gfshadow_record() -> Callable[..., Record]:
    """Return :func:`torch_gfshadow.testing.make_record`."""
    return make_record


@pytest.fixture
def gfshadow_hostile_records() -> list[Record]:
    """Return records that are hard to write."""
    return hostile_records()


@pytest.fixture
def gfshadow_toy_run() -> Callable[..., Shadow]:
    """Return :func:`torch_gfshadow.testing.toy_run`: a small training run with a shadow."""
    return toy_run
