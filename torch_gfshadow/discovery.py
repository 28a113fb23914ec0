"""What is installed: entry points of the group ``torch_gfshadow``, loaded at first use.

Read plugins.py next: it registers what is found here.
"""

from __future__ import annotations

import difflib
import functools
import os
import re
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import metadata

from torch_gfshadow.errors import PluginError, must, unknown_name
from torch_gfshadow.hookspecs import PROJECT

LOAD = "TORCH_GFSHADOW_LOAD_PLUGINS"
DISABLED = "TORCH_GFSHADOW_DISABLED_PLUGINS"


@dataclass(frozen=True, slots=True)
class Owner:
    """Who a plugin is, as every message about it says.

    Attributes:
        name: Entry point name of an installed plugin, module or class name of any other.
        distribution: Name of the installed package; empty for an object passed in code.
        version: Version of that package, as far as known.
    """

    name: str
    distribution: str = ""
    version: str = ""

    def __str__(self) -> str:
        package = f"{self.distribution} {self.version}".strip()
        return f"{self.name} ({package})" if package else self.name

    def answers_to(self, names: Iterable[str]) -> bool:
        """Say whether one of ``names`` is this entry point or this distribution."""
        return self.name in names or _normal(self.distribution) in {_normal(n) for n in names}


@dataclass(frozen=True, slots=True)
class Installed:
    """One installed entry point: the plugin, or why it could not be loaded."""

    owner: Owner
    plugin: object = None
    error: PluginError | None = None


def discover(disable: Sequence[str] = ()) -> list[Installed]:
    """Load what is installed under the entry-point group ``torch_gfshadow``, each at most once.

    One that cannot be imported is warned about, kept as an ``error``, and stops nothing.

    Args:
        disable: Entry-point or distribution names to leave alone, besides the environment's.

    Returns:
        The plugins in the order of their names.

    Raises:
        PluginError: If the environment asks for a plugin that is not installed.
        TypeError: If ``disable`` holds something else than names.
        ValueError: If it names a plugin that is not installed: a misspelt name would leave it on.
    """
    wanted = os.environ.get(LOAD)
    off = {*disable, *_names(os.environ.get(DISABLED, ""))}
    found = _entry_points()
    for name in disable:
        _check_installed(name, [owner for owner, _ in found])
    if wanted is not None:
        for name in _names(wanted):
            if not any(owner.answers_to({name}) for owner, _ in found):
                raise PluginError(unknown_name(LOAD, name, [owner.name for owner, _ in found]))
        found = tuple(pair for pair in found if pair[0].answers_to(_names(wanted)))
    return [_load(owner, entry) for owner, entry in found if not owner.answers_to(off)]


def forget_installed() -> None:
    """Look for installed plugins again at next use; for tests."""
    _entry_points.cache_clear()
    _load.cache_clear()


@functools.cache
def _entry_points() -> tuple[tuple[Owner, metadata.EntryPoint], ...]:
    pairs = [
        (
            Owner(entry.name, entry.dist.name, entry.dist.version)
            if entry.dist
            else Owner(entry.name),
            entry,
        )
        for entry in metadata.entry_points(group=PROJECT)
    ]
    return tuple(sorted(pairs, key=lambda pair: (pair[0].name, pair[0].distribution)))


@functools.cache
def _load(owner: Owner, entry: metadata.EntryPoint) -> Installed:
    try:
        return Installed(owner, entry.load())
    except Exception as error:
        fault = PluginError(
            f"Plugin {owner} could not be loaded: {type(error).__name__}: {error}. "
            f"It is left out; repair or uninstall it, or set {DISABLED}={owner.name}."
        )
        fault.__cause__ = error
        warnings.warn(str(fault), RuntimeWarning, stacklevel=2)
        return Installed(owner, error=fault)


def _check_installed(name: object, owners: Sequence[Owner]) -> None:
    if not isinstance(name, str):
        fix = 'Name what `gfshadow plugins list` shows: disable_plugins=["slq"].'
        raise TypeError(must("disable_plugins", "a list of names", repr(name), fix))
    if not any(owner.answers_to({name}) for owner in owners):
        known = {part for owner in owners for part in (owner.name, owner.distribution) if part}
        close = difflib.get_close_matches(name, sorted(known), n=3)
        hint = f"Did you mean {' or '.join(map(repr, close))}? " if close else ""
        shown = ", ".join(str(owner) for owner in owners) or "none"
        condition = "made of names of installed plugins"
        raise ValueError(
            must("disable_plugins", condition, repr(name), f"{hint}Installed: {shown}.")
        )


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _normal(distribution: str) -> str:
    return re.sub(r"[-_.]+", "-", distribution).lower()
