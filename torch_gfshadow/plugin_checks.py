"""What may be registered as a plugin: everything pluggy would silently ignore is refused."""

from __future__ import annotations

import inspect
from collections.abc import Sequence

import pluggy

from torch_gfshadow import hookspecs
from torch_gfshadow.discovery import Owner
from torch_gfshadow.errors import PluginError, must, unknown_name
from torch_gfshadow.families import PREFIX


def check_arguments(plugins: object, disable: object, on_error: str) -> None:
    """Refuse arguments of the wrong kind.

    Raises:
        TypeError: If one of the first two is not a list.
        ValueError: If ``on_error`` is neither of its values.
    """
    for argument, value in (("plugins", plugins), ("disable_plugins", disable)):
        if isinstance(value, str) or not isinstance(value, Sequence):
            raise TypeError(must(argument, "a list", repr(value), f"Write {argument}=[...]."))
    if on_error not in ("disable", "raise"):
        fix = "With 'disable' training goes on; 'raise' is for tests."
        raise ValueError(must("on_error", "'disable' or 'raise'", repr(on_error), fix))


def check_plugin(manager: pluggy.PluginManager, plugin: object, owner: Owner) -> None:
    """Refuse an object that is no plugin, or has a hook that nobody calls.

    Raises:
        PluginError: With what is wrong and what to do.
    """
    if isinstance(plugin, type):
        fix = f"Pass {plugin.__name__}()."
        raise PluginError(must(f"Plugin {owner}", "a module or an instance", repr(plugin), fix))
    try:
        hash(plugin)
    except TypeError as error:
        fix = "Give its class a __hash__, for example @dataclass(eq=False)."
        raise PluginError(must(f"Plugin {owner}", "hashable", repr(plugin), fix)) from error
    known = [name for name in dir(hookspecs) if name.startswith(PREFIX)]
    n_hooks = 0
    for name in dir(plugin):
        options = manager.parse_hookimpl_opts(plugin, name)
        if options is None:
            if name.startswith(PREFIX) and inspect.isroutine(getattr(plugin, name)):
                fix = "Decorate it with torch_gfshadow.hookimpl, or rename it."
                raise PluginError(must(f"{name} of plugin {owner}", "a @hookimpl", "none", fix))
            continue
        n_hooks += 1
        hook = options.get("specname") or name
        if hook not in known and not options.get("optionalhook"):
            raise PluginError(unknown_name(f"Hook of plugin {owner}", hook, known))
    if not n_hooks:
        fix = "Decorate its functions with torch_gfshadow.hookimpl."
        raise PluginError(must(f"Plugin {owner}", "an object with hooks", repr(plugin), fix))


def owner_of(plugin: object) -> Owner:
    """Return the name a plugin object goes by."""
    name = getattr(plugin, "__name__", None) or type(plugin).__name__
    return Owner(str(name), version=str(getattr(plugin, "__version__", "")))
