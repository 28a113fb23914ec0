"""Registry: what the plugins of one session bring, by family and name, and who brought it.

Read next: ``plugins``, which calls those that listen. Built-in families come through the same
hooks as anybody's.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module, metadata
from typing import Any

import pluggy

from torch_gfshadow import hookspecs
from torch_gfshadow.discovery import DISABLED, Installed, Owner, discover
from torch_gfshadow.errors import PluginError, unknown_name
from torch_gfshadow.families import BUILTINS, KINDS, PREFIX, Family, build, collect, row
from torch_gfshadow.hookspecs import PROJECT
from torch_gfshadow.plugin_checks import check_arguments, check_plugin, owner_of
from torch_gfshadow.specs import Spec

TRACE = "TORCH_GFSHADOW_TRACE_PLUGINS"

_log = logging.getLogger(__name__)


class Registry:
    """The registered plugins, and the members of every family.

    Arguments and errors are those of :class:`~torch_gfshadow.plugins.Plugins`.
    """

    def __init__(self, plugins: Sequence[object], disable: Sequence[str], *, on_error: str) -> None:
        check_arguments(plugins, disable, on_error)
        self.on_error = on_error
        self._owners: dict[str, Owner] = {}
        self._manager = pluggy.PluginManager(PROJECT)
        self._manager.add_hookspecs(hookspecs)
        if os.environ.get(TRACE, "0") not in ("", "0"):
            self._manager.add_hookcall_monitoring(_trace, lambda *_: None)
        self._registry: dict[str, Family] = {kind: {} for kind in KINDS}
        self._made: dict[int, tuple[object, Owner]] = {}
        version = _own_version()
        for name in BUILTINS:
            self._register(import_module(name), Owner(name, "torch-gfshadow", version))
        self.load_errors: list[PluginError] = []
        for item in discover(disable):
            self._register_installed(item)
        for plugin in plugins:
            if not self._is_registered(plugin):  # also installed, and passed as an object
                self._register(plugin, owner_of(plugin))

    def names(self, kind: str) -> list[str]:
        """Return the registered names of a family, built-ins first."""
        return list(self._family(kind))

    def specs(self, kind: str) -> dict[str, Spec]:
        """Return name → spec of a family."""
        return {name: spec for name, (spec, _) in self._family(kind).items()}

    def build(self, kind: str, item: object) -> Any:
        """Make a member of a family.

        Args:
            kind: One of ``KINDS``: ``"loggers"``, ``"probes"`` …
            item: ``"name"``, ``"name:argument"``, or an instance, which is returned as it is.

        Returns:
            The member.

        Raises:
            PluginError: If a registered factory builds something else than its family promises.
            TypeError: If an instance lacks what its family promises.
            ValueError: If the name is unknown, or needs an argument or takes none.
        """
        member = build(kind, self._family(kind), item)
        if isinstance(item, str):
            self._made[id(member)] = member, self._family(kind)[item.partition(":")[0]][1]
        return member

    def brought(self, member: object) -> bool:
        """Say whether a plugin brought the factory that made ``member``."""
        _, owner = self._made.get(id(member), (None, None))
        return owner is not None and owner.name not in BUILTINS

    def origin(self, member: object) -> str:
        """Return `` (package version)`` of the plugin that brought ``member``, or nothing."""
        if not self.brought(member):
            return ""
        owner = self._made[id(member)][1]
        return f" ({f'{owner.distribution or owner.name} {owner.version}'.strip()})"

    def describe(self) -> list[dict[str, str]]:
        """Return one row per registered member: name, kind, summary, plugin, version, source.

        A plugin that registers nothing but listens has one row of kind ``hooks``.
        """
        rows = [
            row(spec.name, kind, spec.summary, owner, spec.source)
            for kind in KINDS
            for spec, owner in self._family(kind).values()
        ]
        seen = {owner for kind in KINDS for _, owner in self._family(kind).values()}
        for key, owner in self._owners.items():
            if owner not in seen:
                hooks = ", ".join(sorted(self._hooks_of(self._manager.get_plugin(key))))
                rows.append(row(owner.name, "hooks", hooks, owner, ""))
        return rows

    def _family(self, kind: str) -> Family:
        if kind not in self._registry:
            raise ValueError(unknown_name("kind", kind, KINDS))
        return self._registry[kind]

    def _is_registered(self, plugin: object) -> bool:
        return any(plugin is known for known in self._manager.get_plugins())

    def _register_installed(self, item: Installed) -> None:
        try:
            if item.error is not None:  # discovery has warned of it
                self.load_errors.append(item.error)
            else:
                self._register(item.plugin, item.owner)
        except PluginError as error:
            if self.on_error == "raise":
                raise
            self.load_errors.append(error)
            _log.warning(
                "%s The plugin is left out; repair or uninstall it, or set %s=%s.",
                error,
                DISABLED,
                item.owner.name,
            )

    def _register(self, plugin: object, owner: Owner) -> None:
        """Register a plugin and what it brings, all of it or nothing."""
        check_plugin(self._manager, plugin, owner)
        key = unique = f"{owner.distribution}:{owner.name}"
        while unique in self._owners:  # two instances of one class
            unique += "'"
        if unique != key:
            owner = Owner(owner.name + unique[len(key) :], owner.distribution, owner.version)
        try:
            self._manager.register(plugin, unique)
        except (pluggy.PluginValidationError, ValueError) as error:
            if self._manager.has_plugin(unique):  # registered before it was found invalid
                self._manager.unregister(name=unique)
            raise PluginError(f"Plugin {owner} cannot be registered: {error}") from error
        others = [other for other in self._manager.get_plugins() if other is not plugin]
        try:
            brought = {
                kind: collect(
                    kind,
                    self._registry[kind],
                    owner,
                    self._manager.subset_hook_caller(PREFIX + kind, others),
                )
                for kind in KINDS
            }
        except PluginError:
            self._manager.unregister(name=unique)
            raise
        for kind, family in brought.items():
            self._registry[kind].update(family)
        self._owners[unique] = owner

    def _hooks_of(self, plugin: object) -> list[str]:
        return [caller.name for caller in self._manager.get_hookcallers(plugin) or ()]


def _trace(hook: str, implementations: Sequence[Any], kwargs: Mapping[str, object]) -> None:
    listeners = ", ".join(item.plugin_name for item in implementations)
    print(f"torch_gfshadow: {hook}({', '.join(kwargs)}) -> {listeners}", file=sys.stderr)


def _own_version() -> str:
    try:
        return metadata.version("torch-gfshadow")
    except metadata.PackageNotFoundError:
        return ""
