"""Plugins of one session: the registries, and calls that cannot hurt a run.

Read hookspecs.py first: it lists what a plugin can do. Sessions share nothing but what
discovery.py found installed.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch_gfshadow.discovery import Owner
from torch_gfshadow.errors import PluginError
from torch_gfshadow.families import BUILTINS, KINDS, fault
from torch_gfshadow.patience import Patience
from torch_gfshadow.registry import Registry

__all__ = ["BUILTINS", "KINDS", "Plugins"]

_log = logging.getLogger(__name__)


class Plugins(Registry):
    """The plugins of one session.

    Args:
        plugins: Modules or objects with ``@hookimpl`` functions, besides the installed ones.
        disable: Entry-point or distribution names of installed plugins to leave out.
        on_error: ``"disable"`` leaves out an installed plugin that is broken, and mutes one that
            raises in a notification or is too slow; ``"raise"`` lets the exception through.

    Attributes:
        errors: Why plugins were muted, one :class:`~torch_gfshadow.errors.PluginError` each.
        load_errors: Why installed plugins were left out.

    Raises:
        PluginError: If one of ``plugins`` has a hook nobody calls, a wrong signature, no hook at
            all, or a registry hook that raises or registers a name that is taken; with
            ``on_error="raise"`` also if an installed plugin has.
        TypeError: If ``plugins`` or ``disable`` is not a sequence.
        ValueError: If ``on_error`` is neither.
    """

    def __init__(
        self,
        plugins: Sequence[object] = (),
        disable: Sequence[str] = (),
        *,
        on_error: str = "disable",
    ) -> None:
        super().__init__(plugins, disable, on_error=on_error)
        self.errors: list[PluginError] = []
        self._muted: set[Owner] = set()
        self._callers: dict[str, list[tuple[Owner, Callable[..., Any]]]] = {}
        self._patience = Patience()

    def first(self, hook: str, **kwargs: Any) -> Any:
        """Ask a ``firstresult`` hook; return the first answer that is not ``None``.

        A plugin that raises is muted, and the next one is asked.

        Raises:
            PluginError: If a plugin raises and ``on_error="raise"``; the message names it.
        """
        for owner, call in self._callers_of(hook):
            if owner in self._muted:
                continue
            try:
                answer = call(**kwargs)
            except Exception as error:
                what = fault(owner, hook, error)
                if self.on_error == "raise":
                    raise PluginError(what) from error
                self._mute(owner, hook, what, error, kwargs)
                continue
            if answer is not None:
                return answer
        return None

    def notify(self, hook: str, **kwargs: Any) -> None:
        """Tell every plugin; one that raises or is too slow is muted, and stops no other.

        The others hear of it through ``gfshadow_error``. KeyboardInterrupt and SystemExit pass.
        """
        for owner, call in self._callers_of(hook):
            if owner in self._muted:
                continue
            try:
                with self._patience.timing(owner):
                    call(**kwargs)
            except Exception as error:
                if self.on_error == "raise":
                    error.add_note(f"raised by plugin {owner} in {hook}")
                    raise
                self._mute(owner, hook, fault(owner, hook, error), error, kwargs)
            else:
                if self.on_error != "raise" and (slow := self._patience.verdict(owner)):
                    what = f"Plugin {owner} is too slow in {hook}: it {slow}."
                    self._mute(owner, hook, what, PluginError(what), kwargs)

    def _callers_of(self, hook: str) -> list[tuple[Owner, Callable[..., Any]]]:
        """Return one caller per plugin, in pluggy's order, so that each can fail alone."""
        if hook not in self._callers:
            implementations = getattr(self._manager.hook, hook).get_hookimpls()
            everyone = [item.plugin for item in implementations]
            self._callers[hook] = [
                (
                    self._owners[name],
                    self._manager.subset_hook_caller(
                        hook, [other for other in everyone if other is not plugin]
                    ),
                )
                for name, plugin in {
                    item.plugin_name: item.plugin for item in reversed(implementations)
                }.items()
            ]
        return self._callers[hook]

    def _mute(
        self, owner: Owner, hook: str, what: str, error: Exception, kwargs: Mapping[str, Any]
    ) -> None:
        self._muted.add(owner)
        _log.warning("%s It is muted for this run.", what, exc_info=error)
        # Without the traceback, whose frames would keep the session and its tensors alive.
        self.errors.append(PluginError(what))
        if hook != "gfshadow_error" and "session" in kwargs:
            self.notify("gfshadow_error", exc=error, session=kwargs["session"])
