"""The studies of the theorems: their quick versions run, and say what the documentation says."""

import json
from itertools import pairwise

import numpy as np
import pytest
from click.testing import CliRunner
from matplotlib.image import imread
from scipy.integrate import solve_ivp

from torch_gfshadow.bounds._chain import Chain, unflat
from torch_gfshadow.cli import main
from torch_gfshadow.cli.studies import show
from torch_gfshadow.experiments.convergence import radius_for
from torch_gfshadow.experiments.deep_linear import (
    DenseFlow,
    balanced_problem,
    distances,
    largest_step,
)
from torch_gfshadow.experiments.study import Study, Table


def run_study(name, tmp_path):
    """Run the command and return what it printed as JSON, after looking at its files."""
    arguments = ["reproduce", name, "--quick", "--json", "--out", str(tmp_path)]
    done = CliRunner().invoke(main, arguments, catch_exceptions=False, standalone_mode=False)
    found = json.loads(done.stdout)
    saved = json.loads((tmp_path / f"{name}.json").read_text(encoding="utf-8"))
    assert {key: found[key] for key in saved} == saved
    pixels = imread(found["files"]["figure"])
    assert pixels.shape[1] > 800
    assert pixels.std() > 0.01  # not a blank sheet
    assert all(any(c.isdigit() for c in finding) for finding in found["findings"])
    return found


def test_certificates(tmp_path):
    found = run_study("certificates", tmp_path)
    tubes = {row["mode"]: row for row in found["tables"][0]["rows"]}
    assert tubes["A"]["certified_until"] < tubes["B"]["certified_until"] < 6
    assert tubes["C"]["certified_until"] == 6
    assert 1 < tubes["C"]["R_over_actual_median"] < 5
    assert tubes["C"]["reference"] < 1e-4
    (steps,) = found["tables"][1]["rows"]
    order = ["eq13", "constant", "tight", "half_step", "B", "C", "truth"]
    values = [steps[key] for key in order]
    assert values == sorted(values)
    assert steps["eq13"] == pytest.approx(2.0e-5, rel=0.05)
    assert steps["C"] == pytest.approx(2.1e-2, rel=0.1)
    assert steps["truth"] == pytest.approx(0.29, rel=0.1)


def test_convergence(tmp_path):
    found = run_study("convergence", tmp_path)
    (table,) = found["tables"]
    assert [(row["n"], row["nu"]) for row in table["rows"]] == [
        (2, 0.9),
        (2, 0.5),
        (3, 0.9),
        (3, 0.5),
    ]
    for row in table["rows"]:
        order = ["theorem4", "exact_flow", "measured", "tube", "within"]
        assert [row[key] for key in order] == sorted(row[key] for key in order)
        assert row["works"] >= row["tube"]
        assert row["k_tube"] is not None
        assert 17 < row["orders"] < 23
    assert table["rows"][3]["theorem4"] == pytest.approx(8.88e-23, rel=1e-3)
    # the digits and the three coordinates are one problem
    assert "differ from those in three coordinates by at most" in found["findings"][1]
    assert float(found["findings"][1].rsplit(" ", 1)[1].rstrip(".")) < 1e-10


def test_worst_case(tmp_path):
    found = run_study("worst-case", tmp_path)
    ridge, pendulum = (table["rows"] for table in found["tables"])
    for row in ridge:
        assert row["corollary1"] < row["equation7"] < row["needed"]
        assert row["needed"] == pytest.approx(row["predicted"], rel=0.2)
        assert 10 < row["needed_over_equation7"] < 30
    assert ridge[-1]["printed"] > 10 * ridge[-1]["needed"]
    assert all(row["printed_deviation"] > 1 > row["corrected_deviation"] for row in pendulum)


def test_tightness(tmp_path):
    found = run_study("tightness", tmp_path)
    points, balls, bent, flows = (table["rows"] for table in found["tables"])
    assert len(points) == 6
    assert len(bent) == 8
    for row in bent:
        values = [row[key] for key in ("stacked", "sums", "kappa", "simple")]
        assert values == sorted(values)
        assert 1 < values[0] < 12
    # without shared weights N = κ = 1; a convolution counts each weight many times
    assert all(row["simple"] == row["kappa"] for row in bent[:4])
    assert all(row["simple"] > 1.2 * row["kappa"] for row in bent[4:])
    assert len(flows) == 12
    for row in flows:
        assert 1 <= row["sharper"] < row["eq14"]
        if row["network"].count("-") == 2:  # two layers: the sharper form is ‖∇φ‖, exact at zero
            assert row["sharper"] < 1.3
    for row in points:
        order = ["N", "C_blocks", "C_norms", "spectral", "eq13"]
        values = [row[key] for key in order]
        assert values == pytest.approx(sorted(values))
        assert values[0] >= 1
        assert 1 <= row["smoothness"] < 3
    assert points[2]["eq13"] > 5 * points[2]["C_blocks"]
    for smaller, larger in pairwise(balls):
        assert all(1 <= smaller[key] < larger[key] for key in ("B", "beta", "slope", "gamma"))


def test_within_the_radius_the_loss_is_within_its_accuracy():
    rng = np.random.default_rng(0)
    for n in (2, 3, 5):
        problem = balanced_problem((2, *[2] * (n - 1), 1), 0.2, 0.5)
        flow, radius = DenseFlow(problem, 8.0), radius_for(n, 0.1)
        gaps = 0.5 * ((Chain(unflat(flow.nodes, problem.weights)).end - problem.loss.lyx) ** 2)
        theta = flow.nodes[np.argmax(gaps.sum((-2, -1)) <= 0.05)]
        off = rng.normal(size=(5000, theta.size))
        off *= radius / np.linalg.norm(off, axis=1, keepdims=True)
        ends = Chain(unflat(theta + off, problem.weights)).end
        assert (0.5 * ((ends - problem.loss.lyx) ** 2).sum((-2, -1)) <= 0.1).all()


def test_the_dense_flow_is_the_flow():
    problem = balanced_problem((3, 2, 2, 1), 0.2, -0.4)
    flow = DenseFlow(problem, 3.0)
    times = np.linspace(0, 3, 37)
    exact = solve_ivp(
        lambda t, y: -problem.gradient(y),
        (0, 3),
        problem.start,
        method="DOP853",
        rtol=1e-12,
        atol=1e-13,
        t_eval=times,
    ).y.T
    assert np.abs(flow(times) - exact).max() < 1e-8
    gaps = distances(problem, flow, 0.01, 300)
    assert gaps[0] == 0
    assert np.isnan(distances(problem, flow, 200.0, 4)[-1])  # an overflow is not a distance


def test_the_largest_step_is_found_to_its_tolerance():
    found = largest_step(lambda eta, n: eta <= 0.0173, 6.0, tol=0.02)
    assert 0.0173 / 1.03 < found <= 0.0173
    assert largest_step(lambda eta, n: False, 6.0, least=1e-2) == 0.0


def test_a_study_is_printed_as_tables_and_sentences(tmp_path, capsys):
    wide = {"name": "name", **{f"q{i}": f"quantity {i}" for i in range(9)}}
    rows = [{"name": "case", **{f"q{i}": 1.25e-7 * 10**i for i in range(9)}}]
    tables = [Table("turned", wide, rows), Table("short", {"n": "depth"}, [{"n": None}, {"n": 3}])]
    study = Study("made", {"seed": 0}, tables, ["It is 7."], lambda path: path.write_bytes(b"p"))
    show(study, tmp_path, as_json=False)
    out = capsys.readouterr().out
    assert all(word in out for word in ("turned", "quantity 8", "1.25e-07", "depth", "It is 7."))
    assert str(tmp_path / "made.png") in out.replace("\n", "")
