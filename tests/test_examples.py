"""Every example runs as a user would run it, and says what its docstring promises."""

import runpy
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parent.parent / "examples").glob("*.py"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example_runs_and_prints_a_table(path, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(path), run_name="__main__")
    out = capsys.readouterr().out
    assert "±" in out
    assert "NO" not in out
    assert len(out.splitlines()) >= 8


def test_there_are_examples():
    assert len(EXAMPLES) >= 2
