"""Cases of the shared format: one dictionary of inputs per case, one answer per case."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from typing import Any

from torch_gfshadow.bounds import Evaluation
from torch_gfshadow.errors import GFShadowError, must, unknown_name
from torch_gfshadow.plugins import Plugins
from torch_gfshadow.specs import BoundSpec

_SHORT = {"thm": "theorem", "cor": "corollary", "prop": "proposition", "lem": "lemma"}
Evaluator = Callable[..., Evaluation]


def bound_specs(plugins: Plugins) -> dict[str, BoundSpec]:
    """Return name → spec of every registered result."""
    specs = plugins.specs("bounds").items()
    return {name: spec for name, spec in specs if isinstance(spec, BoundSpec)}


def evaluators(plugins: Plugins) -> dict[str, Evaluator]:
    """Return what can be evaluated: results under their names, and their parts under theirs."""
    found: dict[str, Evaluator] = {}
    for name, spec in bound_specs(plugins).items():
        if spec.evaluate is not None:
            found[name] = spec.evaluate
        found |= spec.parts
    return found


def resolve(name: str, known: Mapping[str, Any]) -> str:
    """Return the name something is registered under; ``prop1`` is short for ``proposition1``.

    Raises:
        ValueError: If nothing is.
    """
    short = re.fullmatch(r"([a-z]+)_?(\d+)", name.lower())
    for candidate in (name, f"{_SHORT.get(short[1], short[1])}{short[2]}" if short else name):
        if candidate in known:
            return candidate
    raise ValueError(unknown_name("result", name, known))


def answer(case: Any, known: Mapping[str, Evaluator]) -> dict[str, Any]:
    """Evaluate one case.

    Args:
        case: ``{"id", "result", "inputs", …}``.
        known: What :func:`evaluators` returns.

    Returns:
        ``{"id", "result", "value", "certified", "status"}``, fit for strict JSON. A case that is
        refused has ``value`` None and the reason as its status.
    """
    entry = case if isinstance(case, Mapping) else {}
    made = {"id": entry.get("id"), "result": entry.get("result"), "value": None}
    made |= {"certified": False}
    try:
        result, inputs = _read(case)
        evaluate = known[resolve(result, known)]
        _check_names(evaluate, inputs)
        found = evaluate(**inputs)
    except (GFShadowError, ValueError) as error:
        return {**made, "status": str(error)}
    except Exception as error:  # whatever it is, the other cases still have their answers
        fix = f"See `gfshadow bound show {made['result']}`."
        got = f"ones it cannot use ({type(error).__name__}: {error})"
        return {**made, "status": must("inputs", "those of the result", got, fix)}
    value = to_json(found.value)
    return {**made, "value": value, "certified": found.certified, "status": found.status}


def to_json(value: Any) -> Any:
    """Return ``value`` with NaN and ±∞ replaced by ``None``: strict JSON has no word for them."""
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json(item) for item in value]
    if hasattr(value, "tolist"):
        return to_json(value.tolist())
    return None if isinstance(value, float) and not math.isfinite(value) else value


def deviations(value: Any, expected: Any, rtol: float, atol: float, at: str = "") -> list[str]:
    """Return where ``value`` differs from ``expected`` by more than rtol·|expected| + atol.

    Only the keys of ``expected`` are compared. Decimal strings are compared as numbers.
    """
    if isinstance(expected, Mapping):
        if not isinstance(value, Mapping):
            return [f"{at or 'value'} is {value!r}"]
        return [
            line
            for key, item in expected.items()
            for line in deviations(value.get(key), item, rtol, atol, f"{at}.{key}".lstrip("."))
        ]
    if isinstance(expected, (list, tuple)):
        if not isinstance(value, (list, tuple)) or len(value) != len(expected):
            return [f"{at} is {value!r}, not {expected!r}"]
        pairs = enumerate(zip(value, expected, strict=True))
        return [d for i, (a, b) in pairs for d in deviations(a, b, rtol, atol, f"{at}[{i}]")]
    if _same(value, expected, rtol, atol):
        return []
    return [f"{at} is {value!r}, not {expected!r}"]


def _same(value: Any, expected: Any, rtol: float, atol: float) -> bool:
    if expected is None or isinstance(expected, bool) or value is None or isinstance(value, bool):
        return value is expected
    if isinstance(expected, str) and expected.lstrip("-").isdecimal():
        text = str(value)
        if not text.lstrip("-").isdecimal():
            return False
        wanted, found = Decimal(expected), Decimal(text)  # int() refuses 4,300 digits
        return abs(found - wanted) <= Decimal(rtol) * abs(wanted) + Decimal(atol)
    if isinstance(expected, (int, float)) and isinstance(value, (int, float)):
        return abs(value - expected) <= rtol * abs(expected) + atol
    return bool(value == expected)


def _read(case: Any) -> tuple[str, Mapping[str, Any]]:
    if not isinstance(case, Mapping) or not isinstance(case.get("result"), str):
        fix = 'Write {"id": …, "result": "eq7", "inputs": {…}}.'
        raise ValueError(must("case", "an object with a result", repr(case)[:80], fix))
    inputs = case.get("inputs", {})
    if not isinstance(inputs, Mapping):
        got = repr(inputs)[:80]
        raise ValueError(must("inputs", "an object", got, "Name every input of the result."))
    return case["result"], inputs


def _check_names(evaluate: Evaluator, inputs: Mapping[str, Any]) -> None:
    """Refuse inputs that are missing or unknown, by name."""
    parameters = inspect.signature(evaluate).parameters
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
        return
    required = [name for name, p in parameters.items() if p.default is inspect.Parameter.empty]
    missing = [name for name in required if name not in inputs]
    unknown = [name for name in inputs if name not in parameters]
    if missing or unknown:
        got = " and ".join(
            f"{words} {', '.join(names)}"
            for words, names in (("without", missing), ("with", unknown))
            if names
        )
        fix = "See `gfshadow bound show`."
        raise ValueError(must("inputs", _spelled(parameters), f"them {got}", fix))


def _spelled(parameters: Mapping[str, inspect.Parameter]) -> str:
    return ", ".join(
        name if p.default is inspect.Parameter.empty else f"[{name}]"
        for name, p in parameters.items()
    )


def inputs_of(evaluate: Evaluator) -> list[str]:
    """Return the names of a result's inputs, optional ones in brackets."""
    return _spelled(inspect.signature(evaluate).parameters).split(", ")


def checked(cases: Sequence[Any], answers: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return one line per answer that is not as its case expects."""
    lines = []
    for case, made in zip(cases, answers, strict=True):
        expected = case.get("expected") if isinstance(case, Mapping) else None
        if not isinstance(expected, Mapping):
            continue
        limits = case.get("tolerance", {})
        if expected.get("raises"):
            if made["value"] is not None:
                lines.append(f"{made['id']}: {made['value']!r} where a refusal was expected")
            continue
        wanted = {key: item for key, item in expected.items() if key != "raises"}
        off = deviations(
            made["value"], wanted, float(limits.get("rtol", 1e-9)), float(limits.get("atol", 0.0))
        )
        if off:
            why = "" if made["status"] == "ok" else f" ({made['status']})"
            lines.append(f"{made['id']}: {'; '.join(off)}{why}")
    return lines
