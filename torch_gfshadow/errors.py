"""What the library raises. Bad arguments are plain ValueError or TypeError, at construction."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class GFShadowError(Exception):
    """Base of everything that goes wrong at run time inside torch_gfshadow."""


class ObjectiveError(GFShadowError, ValueError):
    """The objective cannot be used: not scalar, not finite, not deterministic, no graph."""


class FlowError(GFShadowError):
    """The gradient flow cannot be continued."""


class OverBudgetError(GFShadowError):
    """The next evaluation cannot be paid for out of ``budget=``; the shadow ends here."""


class CurvatureError(GFShadowError):
    """No Hessian-product backend is right for this model."""


class NotAGradientError(CurvatureError):
    """The gradient that training uses is not that of a function, so there is no Hessian."""


class AssumptionError(GFShadowError, ValueError):
    """A hypothesis of a theorem is violated; the message names it and gives the number."""


class PluginError(GFShadowError):
    """A plugin is broken; the message names it, its version and the hook."""


def must(argument: str, condition: str, got: object, fix: str) -> str:
    """Return our one form: ``<argument> must be <condition>, got <value>. <fix>``."""
    return f"{argument} must be {condition}, got {got}. {fix}"


def unknown_name(kind: str, name: str, known: Iterable[str]) -> str:
    """Return the message for a name nobody registered, with the nearest known one."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    return f"{kind} must be a registered name, got {name!r}. Registered: {', '.join(names)}.{hint}"
