"""The families of members that plugins register: what they promise, and how one is made."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch_gfshadow.discovery import Owner
from torch_gfshadow.errors import PluginError, must, unknown_name
from torch_gfshadow.specs import (
    BoundSpec,
    FlowSpec,
    InitSpec,
    LoggerSpec,
    ProbeSpec,
    SolverSpec,
    Spec,
)

Family = dict[str, tuple[Spec, Owner]]

PREFIX = "gfshadow_"
BUILTINS = tuple(
    f"torch_gfshadow.{family}"
    for family in ("loggers", "probes", "flows", "solvers", "bounds", "inits")
)
KINDS: Mapping[str, type[Spec]] = {
    "loggers": LoggerSpec,
    "probes": ProbeSpec,
    "flows": FlowSpec,
    "solvers": SolverSpec,
    "bounds": BoundSpec,
    "inits": InitSpec,
}
_SINGLE = {"flows": "flow", "solvers": "solver"}
"""Families of which a run has one member, and the name of attach()'s argument for it."""
# What an instance must have to stand in for a name; the other families are checked where used.
_MEMBERS = {
    "loggers": ("start", "write", "finish"),
    "probes": ("name", "measure"),
    "bounds": ("name", "requires", "update"),
}


def collect(kind: str, known: Family, owner: Owner, call: Callable[[], Any]) -> Family:
    """Return what one plugin registers under a family.

    Args:
        kind: One of ``KINDS``.
        known: What is registered there already.
        owner: The plugin.
        call: Calls its hook.

    Raises:
        PluginError: If the plugin raises, yields something else, or takes a name that is taken.
    """
    family: Family = {}
    hook = PREFIX + kind
    try:
        specs = [spec for answer in call() for spec in answer]
    except Exception as error:
        raise PluginError(fault(owner, hook, error)) from error
    for spec in specs:
        if not isinstance(spec, KINDS[kind]):
            wanted = f"a list of {KINDS[kind].__name__}"
            fix = "Build them with torch_gfshadow.specs."
            raise PluginError(must(f"{hook} of {owner}", wanted, repr(spec), fix))
        if taken := (known | family).get(spec.name):
            raise PluginError(
                f"{kind} must have one owner per name, got {spec.name!r} from {taken[1]} "
                f"and from {owner}. Rename one, or disable one of the plugins. "
                f"Registered: {', '.join(sorted(known | family))}."
            )
        family[spec.name] = spec, owner
    return family


def build(kind: str, family: Family, item: object) -> Any:
    """Make a member of a family from its name, or check an instance; see ``Plugins.build``."""
    argument_of = _SINGLE.get(kind, kind)
    if not isinstance(item, str):
        flaw = "is a class" if isinstance(item, type) else _missing(kind, item)
        if flaw:
            fix = f"Registered: {', '.join(family)}."
            got = f"{item!r}, which {flaw}"
            one = "a registered name or an instance"
            many = "registered names or instances"
            raise TypeError(must(argument_of, one if kind in _SINGLE else many, got, fix))
        return item
    name, has_argument, argument = item.partition(":")
    if name not in family:
        raise ValueError(unknown_name(argument_of, name, family))
    spec, owner = family[name]
    if isinstance(spec, BoundSpec) and not spec.live:
        live = ", ".join(n for n, (s, _) in family.items() if getattr(s, "live", False))
        fix = f"{name} is a statement on given numbers: `gfshadow bound show {name}`. Live: {live}."
        raise ValueError(must(kind, "limits along a run", repr(name), fix))
    arguments = (argument,) if has_argument else ()
    if not _accepts(spec.factory, arguments):
        example = repr(name) if has_argument else repr(f"{name}:<argument>")
        raise ValueError(must(argument_of, example, repr(item), f"{name}: {spec.summary}."))
    member = spec.factory(*arguments)
    if flaw := _missing(kind, member):
        raise PluginError(f"Plugin {owner} built {member!r} for {name!r}, which {flaw}.")
    return member


def row(name: str, kind: str, summary: str, owner: Owner, source: str) -> dict[str, str]:
    """Return one line of ``Plugins.describe``."""
    plugin = "built-in" if owner.name in BUILTINS else owner.distribution or owner.name
    return {
        "name": name,
        "kind": kind,
        "summary": summary,
        "plugin": plugin,
        "version": owner.version,
        "source": source,
    }


def fault(owner: Owner, hook: str, error: Exception) -> str:
    """Say which plugin raised, where and what."""
    return f"Plugin {owner} raised in {hook}: {type(error).__name__}: {error}."


def _missing(kind: str, member: object) -> str:
    if member is None:
        return "is None"
    missing = [name for name in _MEMBERS.get(kind, ()) if not hasattr(member, name)]
    return f"lacks {', '.join(missing)}" if missing else ""


def _accepts(factory: Callable[..., Any], arguments: tuple[str, ...]) -> bool:
    try:
        inspect.signature(factory).bind(*arguments)
    except TypeError:
        return False
    except ValueError:  # a built-in without a signature: let the call decide
        return True
    return True
