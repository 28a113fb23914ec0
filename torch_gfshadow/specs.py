"""What a registry hook yields: frozen descriptions of one member of a family."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    """One registered member: ``factory(*args)`` builds it, ``summary`` is its one-line help.

    ``"name:argument"`` in ``attach(...)`` calls ``factory("argument")``.
    """

    name: str
    factory: Callable[..., Any]
    summary: str
    source: str = ""

    def __post_init__(self) -> None:
        if not self.name or not self.name.replace("_", "").replace("-", "").isalnum():
            raise ValueError(
                f"name must be letters, digits, '-' and '_', got {self.name!r}. "
                "Choose a name that can stand in attach(...) and in a column header."
            )
        if not callable(self.factory):
            raise TypeError(
                f"factory must be callable, got {self.factory!r}. Pass the class or a function."
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class BoundSpec(Spec):
    """A result of the theory; ``source`` cites it.

    ``factory()`` returns an object of the ``Bound`` protocol, for ``attach(bounds=[name])``.
    ``evaluate(**inputs)`` returns an ``Evaluation`` of the result on given numbers, for
    ``gfshadow bound eval``. A result that is no limit along a run has only the latter: then
    ``live`` is false, and ``factory`` is the function that states it. ``parts`` are its single
    equations and the names they go by in files of cases: ``{"eq19": evaluate}``.
    """

    evaluate: Callable[..., Any] | None = None
    live: bool = True
    parts: Mapping[str, Callable[..., Any]] = field(default_factory=dict, hash=False)


class InitSpec(Spec):
    """An initialiser: ``factory(...)`` returns a function that changes parameters in place."""

    __slots__ = ()


class LoggerSpec(Spec):
    """A sink for records: ``factory(target)`` returns an object of the ``Logger`` protocol."""

    __slots__ = ()


class ProbeSpec(Spec):
    """A measurement at a point: ``factory()`` returns an object of the ``Probe`` protocol."""

    __slots__ = ()


class FlowSpec(Spec):
    """A continuous limit: ``factory(...)`` returns an object of the ``Flow`` protocol."""

    __slots__ = ()


class SolverSpec(Spec):
    """An ODE stepper: ``factory(...)`` returns a solver configuration (see ``solvers.base``)."""

    __slots__ = ()
