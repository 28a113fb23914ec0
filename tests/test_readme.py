"""The README is executed: its Python blocks in order, in one namespace, as a reader would."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import click
import pytest

import torch_gfshadow as gfs
from torch_gfshadow.cli import main
from torch_gfshadow.plugins import Plugins
from torch_gfshadow.record import FIELDS

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, flags=re.M | re.S)


def test_python_blocks_run_in_order_and_resolve_what_they_print(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    namespace = {}
    assert len(blocks("python")) == 2
    for block in blocks("python"):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            exec(compile(block, "README.md", "exec"), namespace)
    first = namespace["last"]
    assert (first.step, first.audit, first.status) == (100, "match", gfs.Status.OK)
    assert 0 < first.solver_error <= 0.1 * first.discrepancy
    assert (tmp_path / "run.jsonl").exists()
    assert "±" in capsys.readouterr().out


def test_wrapping_takes_three_marked_lines():
    assert re.findall(r"# line (\d)", blocks("python")[0]) == ["1", "2", "3"]


def test_the_two_commands_name_existing_extras_and_console_script():
    commands = "".join(blocks("bash")).splitlines()
    assert len(commands) == 2
    assert commands[0].endswith("&& gfshadow demo")
    assert commands[1].endswith("&& pytest")
    assert isinstance(main, click.Command)
    pyproject = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for extra in ("demo", "test"):
        assert re.search(rf"^{extra} = \[", pyproject, flags=re.M)


def test_every_field_explained_in_the_table_exists():
    table = README.split("## How to read the numbers")[1].split("\n## ")[0]
    named = re.findall(r"^\| (.*?) \|", table, flags=re.M)[1:]
    fields = [name for cell in named for name in re.findall(r"`(\w+)`", cell)]
    assert len(fields) > 6
    assert set(fields) <= set(FIELDS)


def test_every_registered_name_in_the_changelog_is_registered():
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    registry = Plugins()
    solvers = re.search(r"Solvers (.*?) \(torchdiffeq.*?\) and (`\w+`)", text, flags=re.S)
    assert solvers is not None
    names = re.findall(r"`(\w+)`", " ".join(solvers.groups()))
    assert set(names) == set(registry.names("solvers"))
    loggers = re.search(r"Loggers (.*?);", text, flags=re.S)
    assert loggers is not None
    assert set(re.findall(r"`(\w+)`", loggers.group(1))) <= set(registry.names("loggers"))


@pytest.mark.parametrize("path", ["LICENSE", "CONTRIBUTING.md", "CHANGELOG.md", "docs/figure1.png"])
def test_files_the_readme_points_to_exist(path):
    assert path.split("/")[-1] in README or path == "LICENSE"
    assert (ROOT / path).stat().st_size > 0


def test_contributing_is_short_and_the_version_is_in_the_changelog():
    assert len((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").splitlines()) <= 60
    assert f"## [{gfs.__version__}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
