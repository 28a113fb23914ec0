"""Every example runs as a user would, says what its docstring promises, draws its picture."""

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from matplotlib.image import imread

ROOT = Path(__file__).parent.parent
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
FIGURES = sorted((ROOT / "docs" / "_figures").glob("*.py"))


def imported(path):
    """Frameworks an example is about, which may not be installed."""
    found = re.findall(r"^(?:from|import) (lightning|transformers)", path.read_text(), flags=re.M)
    return sorted(set(found))


def output_of(path, capsys):
    """Run it here, where torch is loaded; one that starts processes needs a file to start them."""
    if "mp.spawn" not in path.read_text():
        runpy.run_path(str(path), run_name="__main__")
        return capsys.readouterr().out
    paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    env = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(path)],
        env=env,
        capture_output=True,
        text=True,
        timeout=240,
        check=True,
    )
    return done.stdout


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example_runs_prints_a_table_and_draws(path, capsys, monkeypatch, tmp_path):
    for module in imported(path):
        pytest.importorskip(module)
    monkeypatch.chdir(tmp_path)
    out = output_of(path, capsys)
    assert "±" in out
    assert "NO" not in out
    assert len(out.splitlines()) >= 6
    pixels = imread(tmp_path / f"{path.stem}.png")
    assert pixels.shape[1] > 500
    assert pixels.std() > 0.01  # not a blank sheet


@pytest.mark.parametrize("path", FIGURES, ids=lambda path: path.stem)
def test_a_figure_of_the_documentation_is_drawn_by_its_script(path, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(path), run_name="__main__")
    assert imread(tmp_path / f"{path.stem}.png").std() > 0.01
    assert (ROOT / "docs" / "pictures" / f"{path.stem}.png").is_file()


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_the_documentation_shows_the_picture_of_every_example(path):
    picture = f"pictures/{path.stem}.png"
    assert (ROOT / "docs" / picture).is_file(), "draw it: python docs/draw.py"
    page = (ROOT / "docs" / "examples.md").read_text(encoding="utf-8")
    assert picture in page
    assert f"examples/{path.name}" in page


def number(line, column):
    return float(line.split()[column])


def test_halving_the_step_halves_the_discrepancy(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(ROOT / "examples" / "03_halve_the_step.py"), run_name="__main__")
    rows = capsys.readouterr().out.splitlines()[3:]
    assert all(number(row, 5) == pytest.approx(2, rel=0.03) for row in rows)


def test_beyond_the_edge_descent_leaves_the_flow_and_below_it_does_not(
    capsys, monkeypatch, tmp_path
):
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(ROOT / "examples" / "04_edge_of_stability.py"), run_name="__main__")
    below, above = capsys.readouterr().out.split("\nη = ")[1:]
    edges = [[number(row, 4) for row in part.splitlines()[2:]] for part in (below, above)]
    ends = [number(part.splitlines()[-1], 5) for part in (below, above)]
    assert max(edges[0]) < 1 < 2 < max(edges[1])
    assert ends[1] > 20 * ends[0]


def test_the_certified_interval_contains_what_the_shadow_reports(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(ROOT / "examples" / "06_deep_linear_certificates.py"), run_name="__main__")
    out = capsys.readouterr().out
    assert "tube: ok; reference tube: ok" in out
    rows = [line for line in out.splitlines() if "±" in line]
    assert len(rows) == 10
    for row in rows:
        low, high = (float(v) for v in row[row.index("[") + 1 : row.index("]")].split(","))
        assert low <= number(row, 1) <= high <= number(row, -1)


def test_the_same_batch_flow_is_nearer_than_the_full_data_flow(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(ROOT / "examples" / "05_minibatch_monitoring.py"), run_name="__main__")
    rows = [row.split() for row in capsys.readouterr().out.splitlines()[2:-1]]
    assert len(rows) >= 8
    assert all(float(row[1]) < 0.6 * float(row[4]) for row in rows)
    assert {row[7] for row in rows} == {"match"}
