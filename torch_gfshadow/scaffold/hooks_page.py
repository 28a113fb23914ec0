"""The reference of hooks as a page of documentation, made from the hook specifications alone."""

from __future__ import annotations

import inspect
import re

from torch_gfshadow import hookspecs

_KINDS = {
    "Registries": "Called when a session collects its plugins; each returns a list of specs.",
    "Questions": "The first answer that is not `None` counts.",
    "Notifications": "Each plugin is called alone: one that raises is muted and stops no other.",
}


def hooks_page() -> str:
    """Return the page in Markdown."""
    sections: dict[str, list[str]] = {kind: [] for kind in _KINDS}
    for name, function in vars(hookspecs).items():
        if name.startswith("gfshadow_"):
            sections[_kind(function)].append(_section(name, function))
    parts = [
        "# Hooks",
        "Made from the specifications in `torch_gfshadow/hookspecs.py` by "
        "`gfshadow plugins hooks`. How to write a plugin is in the [guide](plugins.md).",
        _prose(inspect.getdoc(hookspecs) or ""),
    ]
    for kind, about in _KINDS.items():
        parts += [f"## {kind}", about, *sections[kind]]
    return "\n\n".join(parts) + "\n"


def _kind(function: object) -> str:
    options = getattr(function, f"{hookspecs.PROJECT}_spec")
    if options["firstresult"]:
        return "Questions"
    return "Notifications" if inspect.signature(function).parameters else "Registries"  # type: ignore[arg-type]


def _section(name: str, function: object) -> str:
    parameters = ", ".join(inspect.signature(function).parameters)  # type: ignore[arg-type]
    text, _, arguments = (inspect.getdoc(function) or "").partition("\nArgs:\n")
    parts = [f"### `{name}({parameters})`", _prose(text.strip())]
    found = re.findall(r"^    (\w+): (.*(?:\n        .*)*)", arguments, flags=re.M)
    if found:
        rows = [f"| `{key}` | {_prose(' '.join(value.split()))} |" for key, value in found]
        parts.append("\n".join(["| argument | what |", "|---|---|", *rows]))
    return "\n\n".join(parts)


def _prose(text: str) -> str:
    return text.replace("``", "`")
