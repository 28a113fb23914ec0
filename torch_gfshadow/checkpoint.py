"""Checkpoint: a shadow's state in one dictionary of plain values, and in a file written whole.

Whose state it is travels with it: parameters by name, shape and dtype, the options that steer the
numbers, and the loss at one point of the flow. Another model or objective is refused.
"""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from torch_gfshadow.errors import must
from torch_gfshadow.parts import Parts
from torch_gfshadow.tracker import Tracker

FORMAT = 1
_LOSS_RTOL = 1e-4
"""Rounding in float32, other chunks included, stays under a tenth of this."""


def save_state(tracker: Tracker) -> dict[str, Any]:
    """Return all that the records to come depend on, with the identity of the run."""
    state = tracker.state_dict()  # first: it takes in which parameters are trained
    return {"format": FORMAT, "identity": _identity(tracker.parts), "tracker": state}


def load_state(tracker: Tracker, state: Mapping[str, Any]) -> None:
    """Go on from a saved state, if it is one of this run.

    Raises:
        ValueError: If it is none, or one of another model, objective, data or configuration;
            then nothing is changed.
    """
    known = isinstance(state, Mapping) and {"identity", "tracker"} <= state.keys()
    if not known or state.get("format") != FORMAT:
        got = state.get("format") if isinstance(state, Mapping) else type(state).__name__
        fix = "Pass what shadow.state_dict() returned, in this version of torch_gfshadow."
        raise ValueError(must("state_dict", f"of format {FORMAT}", repr(got), fix))
    tracker.take_in()
    _check_identity(_identity(tracker.parts), state["identity"])
    before = tracker.state_dict()
    try:
        tracker.load_state_dict(state["tracker"])
        _check_objective(tracker)
    except KeyError as error:
        tracker.load_state_dict(before)
        fix = "Pass what shadow.state_dict() returned, in this version of torch_gfshadow."
        raise ValueError(must("state_dict", "whole", f"one without {error}", fix)) from error
    except Exception:
        tracker.load_state_dict(before)
        raise


def write_file(state: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Write ``state`` to ``path``: the old file or the whole new one, whatever happens."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            torch.save(dict(state), file)
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(target)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def read_file(path: str | os.PathLike[str], device: torch.device) -> dict[str, Any]:
    """Read a file that :func:`write_file` wrote; nothing in it is executed.

    Raises:
        OSError: If it cannot be read.
        ValueError: If it holds something else.
    """
    try:
        state: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
    except OSError:
        raise
    except Exception as error:  # torch's own errors differ by what the file holds instead
        fix = "Name a file that shadow.save() wrote; nothing else is read, and nothing executed."
        got = f"{str(path)!r} ({type(error).__name__})"
        raise ValueError(must("path", "a saved shadow", got, fix)) from error
    return state


def _identity(parts: Parts) -> dict[str, Any]:
    layout, objective, config = parts.watched.layout, parts.objective, parts.session.config
    return {
        "parameters": list(layout.names),
        "shapes": [list(shape) for shape in layout.shapes],
        "dtypes": [str(param.dtype) for param in layout.params],
        "optimizer": config["optimizer"],
        "mode": config["mode"],
        "flow": parts.flow.name if parts.flow is not None else "none",
        "solver": repr(parts.solver),
        "resolution": parts.settings.resolution,
        "hvp": config["hvp"],
        "seed": parts.settings.seed,
        "batches": objective.sizes if objective is not None else [],
    }


_WHERE = {
    "parameters": "model",
    "shapes": "model",
    "dtypes": "model",
    "optimizer": "optimizer",
    "batches": "data",
}


def _check_identity(mine: Mapping[str, Any], saved: Mapping[str, Any]) -> None:
    for key, value in mine.items():
        other = saved.get(key)
        if other == value:
            continue
        part = _WHERE.get(key, f"attach(..., {key}=)")
        shown = key
        if isinstance(value, list) and isinstance(other, list):
            differ = [i for i, (a, b) in enumerate(zip(value, other, strict=False)) if a != b]
            at = differ[0] if differ else min(len(value), len(other))
            shown = f"{key}[{at}]"
            other, value = (_item(side, at) for side in (other, value))
        raise ValueError(
            must(
                "state_dict",
                f"of the same {part}",
                f"one with {shown} = {other!r}, here {value!r}",
                "Attach as the run that was saved was attached, with the parameters it trained "
                "then, and load.",
            )
        )


def _item(values: list[Any], at: int) -> Any:
    return values[at] if at < len(values) else "none"


def _check_objective(tracker: Tracker) -> None:
    """Compare the loss at the flow's newest node with the one that was saved there."""
    known, objective = tracker.follower.known_loss(), tracker.parts.objective
    if known is None or objective is None:
        return
    point, loss = known
    ledger = objective.ledger.state_dict()
    here = objective.loss(point, "setup")
    objective.ledger.load_state_dict(ledger)  # the resumed run counts as one never interrupted
    if math.isfinite(loss) and not abs(here - loss) <= _LOSS_RTOL * max(abs(here), abs(loss)):
        raise ValueError(
            must(
                "state_dict",
                "of the same objective, model and data",
                f"one whose loss at the flow's last point was {loss:.6g}, here {here:.6g}",
                "Attach with the objective and data of the run that was saved, then load.",
            )
        )
