"""Scaffold: ``gfshadow plugins new`` writes a complete plugin package from ``templates/``.

A template is a text file in which ``$name`` and the like are replaced (``string.Template``); its
path loses the ending ``.tmpl`` and has ``NAME`` and ``PACKAGE`` replaced.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from string import Template

from torch_gfshadow.errors import must

KINDS = ("bound", "init", "logger", "probe", "flow", "solver")

_NAME = re.compile(r"[a-z][a-z0-9]*([-_][a-z0-9]+)*")


@dataclass(frozen=True)
class Names:
    """What one plugin is called in the places where it has a name.

    Attributes:
        distribution: Of the package on an index, ``gfshadow-my-bound``.
        package: Of the module, ``gfshadow_my_bound``.
        name: Under which its member is registered, ``my_bound``.
        cls: Of the class, ``MyBound``.
        kind: ``bound``, ``init`` …
    """

    distribution: str
    package: str
    name: str
    cls: str
    kind: str

    @classmethod
    def of(cls, name: str, kind: str) -> Names:
        """Derive all names from one.

        Raises:
            ValueError: If ``name`` or ``kind`` cannot be used.
        """
        if kind not in KINDS:
            fix = f"Pass one of {', '.join(KINDS)}."
            raise ValueError(must("kind", "a kind of member", repr(kind), fix))
        short = name.removeprefix("gfshadow-").removeprefix("gfshadow_")
        if not _NAME.fullmatch(short):
            condition = "small letters and digits in words joined by '-', beginning with a letter"
            raise ValueError(must("name", condition, repr(name), "Call it my-bound, say."))
        words = re.split("[-_]", short)
        ending = kind.capitalize()
        camel = "".join(word.capitalize() for word in words)
        return cls(
            distribution=f"gfshadow-{'-'.join(words)}",
            package=f"gfshadow_{'_'.join(words)}",
            name="_".join(words),
            cls=camel if camel.endswith(ending) else camel + ending,
            kind=kind,
        )


def write_package(
    name: str, kind: str, parent: Path = Path(), *, taken: Collection[str] = ()
) -> list[Path]:
    """Write a plugin package; nothing is overwritten.

    Args:
        name: ``my-bound`` or ``gfshadow-my-bound``.
        kind: One of ``KINDS``.
        parent: Directory to put the package's own directory in.
        taken: Names that are registered already.

    Returns:
        The files, in a directory named as the distribution.

    Raises:
        ValueError: If the name cannot be used or is taken, or the directory is not empty.
    """
    names = Names.of(name, kind)
    if names.name in taken:
        fix = f"Registered: {', '.join(sorted(taken))}."
        raise ValueError(must("name", f"new among the {kind}s", repr(names.name), fix))
    root = parent / names.distribution
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise ValueError(
            must(
                "directory", "new or empty", repr(str(root)), "Choose another name or --directory."
            )
        )
    written = []
    for place, text in rendered(names):
        path = root / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        written.append(path)
    return written


def rendered(names: Names) -> Iterator[tuple[Path, str]]:
    """Yield the path inside the package and the text of every file."""
    values = {**vars(names), "Kind": names.kind.capitalize()}
    for folder in ("common", names.kind):
        source = files("torch_gfshadow.scaffold") / "templates" / folder
        for place, template in _walk(source, Path()):
            text = str(place).removesuffix(".tmpl")
            path = text.replace("PACKAGE", names.package).replace("NAME", names.name)
            if path.startswith("dot_"):  # hidden files are left out by some build tools
                path = "." + path.removeprefix("dot_")
            yield Path(path), Template(template).substitute(values)


def _walk(folder: Traversable, place: Path) -> Iterator[tuple[Path, str]]:
    for item in sorted(folder.iterdir(), key=lambda entry: entry.name):
        if item.is_dir():
            yield from _walk(item, place / item.name)
        elif item.name.endswith(".tmpl"):
            yield place / item.name, item.read_text(encoding="utf-8")
