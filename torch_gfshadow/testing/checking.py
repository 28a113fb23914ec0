"""Check an installed plugin package from outside: packaging, loading, hooks, and every contract."""

from __future__ import annotations

import functools
import importlib.util
import inspect
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from torch_gfshadow.errors import AssumptionError, unknown_name
from torch_gfshadow.families import KINDS
from torch_gfshadow.flows import Flow
from torch_gfshadow.hookspecs import PROJECT
from torch_gfshadow.plugins import Plugins
from torch_gfshadow.specs import BoundSpec, Spec
from torch_gfshadow.testing.bounds import assert_bound_sound
from torch_gfshadow.testing.inert import assert_hooks_valid, assert_inert
from torch_gfshadow.testing.inits import assert_init_contract
from torch_gfshadow.testing.isolation import isolated_plugins
from torch_gfshadow.testing.loggers import assert_logger_contract
from torch_gfshadow.testing.probes import assert_probe_contract
from torch_gfshadow.testing.solvers import assert_solver_contract

_IMPORT_SECONDS = 0.5


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    Attributes:
        what: The thing.
        outcome: ``"pass"``, ``"fail"``, or ``"skip"`` where only the package's own tests can tell.
        detail: Why.
    """

    what: str
    outcome: str
    detail: str = ""


def check_package(name: str) -> Iterator[Check]:
    """Check an installed distribution, and yield what was found.

    Args:
        name: The distribution, with or without ``gfshadow-``.

    Raises:
        ValueError: If no such plugin package is installed; the message lists those that are.
    """
    distribution = _find(name)
    yield from _metadata(distribution)
    for entry in distribution.entry_points.select(group=PROJECT):
        yield from _typing(entry)
        try:
            plugin = entry.load()
        except Exception as error:
            yield Check(f"load {entry.value}", "fail", f"{type(error).__name__}: {error}")
            continue
        yield _lazy(entry)
        hooks = _tried("hooks", functools.partial(assert_hooks_valid, plugin))
        yield hooks
        if hooks.outcome == "pass":
            yield from _members(plugin)


def _find(name: str) -> metadata.Distribution:
    known = {
        entry.dist.name: entry.dist
        for entry in metadata.entry_points(group=PROJECT)
        if entry.dist is not None
    }
    for candidate in (name, f"gfshadow-{name}"):
        normal = candidate.replace("_", "-").lower()
        for distribution in known:
            if distribution.replace("_", "-").lower() == normal:
                return known[distribution]
    raise ValueError(unknown_name("package", name, known or ["none is installed"]))


def _metadata(distribution: metadata.Distribution) -> Iterator[Check]:
    about = distribution.metadata.json
    requires = [item.split(";")[0].strip() for item in distribution.requires or ()]
    wanted = {
        "name begins with gfshadow-": distribution.name.startswith("gfshadow-"),
        "summary": bool(about.get("summary")),
        "readme": bool(about.get("description")),
        "license": bool(about.get("license_expression") or about.get("license")),
        "requires torch-gfshadow": any(item.startswith("torch-gfshadow") for item in requires),
        "requires-python": bool(about.get("requires_python")),
    }
    for what, found in wanted.items():
        yield Check(what, "pass" if found else "fail", "" if found else "missing in its metadata")


def _typing(entry: metadata.EntryPoint) -> Iterator[Check]:
    spec = importlib.util.find_spec(entry.module.split(".")[0])
    origin = Path(spec.origin).parent if spec is not None and spec.origin else None
    typed = origin is not None and (origin / "py.typed").exists()
    yield Check("typed", "pass" if typed else "fail", "" if typed else "py.typed is missing")


def _lazy(entry: metadata.EntryPoint) -> Check:
    """Import the module alone, after what every run has imported anyway."""
    code = (
        "import time, torch_gfshadow; start = time.perf_counter(); "
        f"import {entry.module}; print(time.perf_counter() - start)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    if done.returncode:
        return Check("loads fast", "fail", done.stderr.strip().splitlines()[-1])
    seconds = float(done.stdout)
    slow = "Import heavy libraries inside the factory, not in the module with the hooks."
    ok = seconds < _IMPORT_SECONDS
    detail = f"{seconds:.2f} s" if ok else f"{seconds:.2f} s. {slow}"
    return Check("loads fast", "pass" if ok else "fail", detail)


def _members(plugin: object) -> Iterator[Check]:
    with isolated_plugins():
        before = {kind: set(Plugins().names(kind)) for kind in KINDS}
        registry = Plugins([plugin])
    used: dict[str, list[object]] = {}
    for kind in KINDS:
        for name, spec in registry.specs(kind).items():
            if name in before[kind]:
                continue
            check = _member(kind, spec)
            yield check
            if check.outcome == "pass" and kind in ("probes", "bounds") and _bare(spec):
                used.setdefault(kind, []).append(name)
    options: dict[str, Any] = {"steps": 5, "audit": False, **used}  # on minibatches it would warn
    yield _tried("leaves training bit-identical", lambda: assert_inert(plugin, **options))


def _member(kind: str, spec: Spec) -> Check:
    what = f"{kind.removesuffix('s')} {spec.name}"
    if kind == "loggers":
        return _logger(what, spec)
    if not _bare(spec):
        return Check(what, "skip", "it takes arguments; its own tests must call the contract")
    if kind == "bounds":
        if isinstance(spec, BoundSpec) and not spec.live:
            return Check(what, "skip", "it is no limit along a run")
        return _tried(what, lambda: assert_bound_sound(lambda case: spec.factory(), estimate=True))
    if kind == "flows":
        return _tried(what, lambda: _assert_flow(spec.factory()))
    contract: dict[str, Callable[..., None]] = {
        "probes": assert_probe_contract,
        "inits": assert_init_contract,
        "solvers": assert_solver_contract,
    }
    return _tried(what, lambda: contract[kind](spec.factory))


def _logger(what: str, spec: Spec) -> Check:
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder)
        try:
            spec.factory(str(directory / "probe"))
        except (TypeError, ValueError, ImportError) as error:
            return Check(what, "skip", f"its argument is no path: {error}")
        return _tried(
            what, lambda: assert_logger_contract(lambda path: spec.factory(str(path)), directory)
        )


def _assert_flow(flow: Any) -> None:
    if not isinstance(flow, Flow):
        raise AssertionError(f"{flow!r} has no name, configure, field and step_size")


def _bare(spec: Spec) -> bool:
    try:
        inspect.signature(spec.factory).bind()
    except (TypeError, ValueError):
        return False
    return True


def _tried(what: str, check: Callable[[], None]) -> Check:
    try:
        check()
    except AssumptionError as error:
        return Check(what, "skip", str(error))
    except Exception as error:
        name = "" if isinstance(error, AssertionError) else f"{type(error).__name__}: "
        return Check(what, "fail", f"{name}{error}")
    return Check(what, "pass")
