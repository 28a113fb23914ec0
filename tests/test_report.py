"""The report: what is said, that it is escaped, and that it needs nothing but itself."""

import dataclasses
import importlib.util
import json
import math
import re
from itertools import pairwise

import plotly.graph_objects as go
import pytest
from click.testing import CliRunner

from torch_gfshadow import Status
from torch_gfshadow.cli import main
from torch_gfshadow.loggers import JsonlLogger
from torch_gfshadow.record import Record
from torch_gfshadow.report import Run, find, load_runs, render, write_report
from torch_gfshadow.report.figures import draw
from torch_gfshadow.report.traces import Points, split_where, thin
from torch_gfshadow.testing import hostile_records, toy_run

EVIL = "</script><img src=x onerror=alert(1)>{{7*7}}%{y}<b>"


def records(n=60, **fields):
    """A run whose discrepancy is what its defects add up to: Σ ½ηδ = 0.05·k·0.01."""
    return tuple(
        Record(
            **{
                "step": k,
                "time": 0.1 * k,
                "step_size": 0.1,
                "loss": 3.0 / (1 + k),
                "shadow_loss": 3.1 / (1 + k),
                "distance_from_init": 0.1 * k,
                "discrepancy": 5e-4 * k,
                "relative_discrepancy": 5e-3 if k else None,
                "solver_error": 2e-5 * k,
                "local_defect": 0.01 if k else None,
                "lambda_min": -0.1 if k % 10 == 0 else None,
                "lambda_min_residual": 0.01 if k % 10 == 0 else None,
                "lambda_max": 9.0 if k % 10 == 0 else None,
                "lambda_max_residual": 0.3 if k % 10 == 0 else None,
                "edge": 0.9 if k % 10 == 0 else None,
                "audit": "match" if k else "pending",
                "flow": "gradient_flow",
                "solver": "auto:bosh3",
                "mode": "reference",
                "n_grad_evals": 3 * k,
                "bounds": {
                    "tube": {"value": 1e-3 * k, "log_value": 0.0, "certified": True, "status": "ok"}
                }
                if k
                else {},
                **fields,
            }
        )
        for k in range(n)
    )


def run(name="a run", **fields):
    return Run(name=name, records=records(**fields))


def said(a_run):
    return {item.title: item for item in find(a_run)}


# -- what is said -----------------------------------------------------------------------------


def test_a_good_run_is_called_resolved_and_its_cause_named():
    found = said(run())
    assert found["Verdict"].level == "good"
    assert "0.03 ± 0.001" in found["Verdict"].text
    assert "discrepancy is 1 times that" in found["Defects add up"].text
    assert found["Below the edge of stability"].level == "good"
    assert found["The objective is the one trained"].level == "good"
    assert not any(item.level in ("warning", "problem") for item in found.values())


@pytest.mark.parametrize(
    ("fields", "title", "level", "words"),
    [
        ({"discrepancy": 0.5}, "The flow spreads", "note", "negative curvature"),
        ({"discrepancy": 1e-3, "solver_error": 1e-5}, "The flow forgets", "good", "forgotten"),
        ({"edge": 2.5}, "Beyond the edge of stability", "warning", "first at step 0, at most 2.5"),
        ({"solver_error": 1.0}, "Verdict", "warning", "Unresolved"),
        ({"audit": "mismatch cosine 0.1"}, "Verdict", "problem", "another problem"),
        ({"audit": "scaled 0.5"}, "Gradients were scaled", "good", "folded into"),
        (
            {"audit": "scaled 0.5", "status": Status.SCALED},
            "Gradients were scaled",
            "warning",
            "scaled 0.5",
        ),
        ({"status": Status.BLOW_UP}, "Status: blow up", "problem", "60 of 60 records"),
        (
            {"discrepancy": None, "status": Status.PASSIVE},
            "Verdict",
            "warning",
            "passive|no shadow|No",
        ),
        ({"loss": None}, "Verdict", "good", "Resolved"),
    ],
)
def test_what_happened_has_a_level_and_names_its_numbers(fields, title, level, words):
    found = said(run(**fields))
    assert found[title].level == level
    assert re.search(words, found[title].text)


@pytest.mark.parametrize(
    ("cell", "title"),
    [
        ({"value": 1e-5, "certified": True}, "A certified bound is violated"),
        ({"value": 1e-5, "certified": False}, "An estimated bound is exceeded"),
        ({"value": None, "certified": False, "status": "no limit"}, None),
    ],
)
def test_a_bound_that_is_exceeded_beyond_the_error_bar_is_told(cell, title):
    titles = {item.title for item in find(run(bounds={"tube": cell}))}
    assert titles & {"A certified bound is violated", "An estimated bound is exceeded"} == (
        {title} if title else set()
    )


def test_an_excess_within_the_error_bar_is_no_violation():
    cell = {"value": 0.03, "certified": True}
    assert not any(
        "violated" in i.title
        for i in find(run(discrepancy=0.031, solver_error=0.002, bounds={"b": cell}))
    )


def test_discrepancies_that_start_anew_are_not_taken_for_the_whole_run():
    rows = records()
    rows = tuple(
        dataclasses.replace(r, mode="batch", discrepancy=0.0, solver_error=0.0)
        if r.step % 8 == 3
        else dataclasses.replace(r, mode="batch")
        for r in rows
    )
    asked = {"configuration": {"every": 8, "window": 3}}
    windows = Run(name="w", records=rows[:20], header=asked)  # ends where a shadow starts
    found = said(windows)
    assert found["Verdict"].text.startswith(
        "Resolved to 4%: at step 18 gradient descent lies 0.009"
    )
    assert "the flow of its own batches." in found["Verdict"].text
    assert "at every 8-th step and followed for 3" in found["Discrepancies start anew"].text
    assert not {"Defects add up", "The flow spreads", "The flow forgets"} & set(found)
    render([windows])
    local = Run(name="l", records=tuple(dataclasses.replace(r, mode="local") for r in rows))
    assert "the flow of that step alone" in said(local)["Verdict"].text


def test_a_run_that_never_left_the_flow_is_said_to_lie_on_it():
    still = run(discrepancy=0.0, solver_error=0.0)
    assert said(still)["Verdict"].text == "After 59 steps gradient descent lies on gradient flow."
    render([still])


# -- where runs come from ---------------------------------------------------------------------


def write(path, *sessions, finish=True):
    for rows in sessions:
        logger = JsonlLogger(path)
        logger.start({"configuration": {"every": 1}, "seed": 3})
        for row in rows:
            logger.write(row)
        if finish:
            logger.finish({"overhead": 0.5})
    return path


def test_a_resumed_file_is_one_run_and_later_records_replace_earlier(tmp_path):
    first = records(30)
    again = tuple(dataclasses.replace(r, loss=7.0) for r in records(40)[20:])
    (one,) = load_runs([write(tmp_path / "r.jsonl", first, again)])
    assert [r.step for r in one.records] == list(range(40))
    assert one.records[19].loss != 7.0
    assert one.records[20].loss == 7.0
    assert one.resumed_at == (20,)
    assert one.state == "finished"
    assert "step 20" in said(one)["Resumed"].text


def test_sessions_that_start_over_are_runs_of_their_own(tmp_path):
    runs = load_runs([write(tmp_path / "r.jsonl", records(5), records(6))])
    assert [(r.name, len(r.records)) for r in runs] == [("r (1)", 5), ("r (2)", 6)]


def test_a_killed_run_is_reported_as_far_as_it_got(tmp_path):
    path = write(tmp_path / "r.jsonl", records(5), finish=False)
    path.write_bytes(path.read_bytes()[:-20])
    (one,) = load_runs([path])
    assert len(one.records) == 4
    assert "Not finished" in said(one)


def test_runs_are_named_by_file_or_folder_and_apart(tmp_path):
    for folder in ("linear", "relu"):
        write(tmp_path / folder / "records.jsonl", records(3))
    assert [r.name for r in load_runs([tmp_path])] == ["linear", "relu"]
    two = [tmp_path / "linear" / "records.jsonl"] * 2
    assert [r.name for r in load_runs(two)] == ["linear (1)", "linear (2)"]
    assert [r.name for r in load_runs(two, ["x", "y"])] == ["x", "y"]


def test_bad_input_says_what_to_do(tmp_path):
    empty = tmp_path / "empty.jsonl"
    empty.touch()
    with pytest.raises(ValueError, match="must be a file with records, got none"):
        load_runs([empty])
    with pytest.raises(ValueError, match=re.escape("a folder with records.jsonl, got neither")):
        load_runs([tmp_path])
    with pytest.raises(ValueError, match=re.escape("names must be one per file (1), got 2")):
        load_runs([write(tmp_path / "r.jsonl", records(3))], ["a", "b"])
    with pytest.raises(ValueError, match="runs must be at least one"):
        render([])
    with pytest.raises(ValueError, match="path must be a file"):
        write_report([run()], tmp_path)


def test_missing_packages_are_named_with_the_extra(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r'pip install "torch-gfshadow\[report\]"'):
        render([run()])


# -- figures ----------------------------------------------------------------------------------


def plain(value):
    """Replace colour tokens, which only the page knows, by a colour."""
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    if isinstance(value, list):
        return [plain(v) for v in value]
    return "#123456" if isinstance(value, str) and value.startswith("@") else value


@pytest.mark.parametrize("runs", [[run()], [run("a"), run("b", solver_error=1.0)]])
def test_every_figure_is_valid_plotly(runs):
    figures = draw(runs)
    assert [f.key for f in figures] == [
        "distances",
        "losses",
        "eigenvalues",
        "edge",
        "bounds",
        "resolution",
        "cost",
    ]
    for figure in figures:
        go.Figure(
            plain(figure.spec["data"]), plain(figure.spec["layout"])
        )  # refuses unknown keys and values
        json.dumps(figure.spec, allow_nan=False)
        assert all(r.name in figure.alt for r in runs)


def test_the_error_bar_is_a_band_and_hovering_shows_it():
    (distances, *_) = draw([run()])
    curve = next(t for t in distances.spec["data"] if "discrepancy" in t.get("name", ""))
    shade = next(t for t in distances.spec["data"] if t.get("fill") == "toself")
    at = curve["x"].index(40)
    assert curve["customdata"][at] == "0.02 ± 0.0008"
    heights = [y for x, y in zip(shade["x"], shade["y"], strict=True) if x == 40]
    assert heights == pytest.approx([0.02 + 0.0008, 0.02 - 0.0008])


def test_runs_of_different_pace_are_compared_over_flow_time():
    slow = Run(
        name="slow", records=tuple(dataclasses.replace(r, time=r.time / 2) for r in records())
    )
    assert 'data-axis="step"' in render([run("a"), run("b")])
    assert 'data-axis="time"' in render([run("a"), slow])
    for figure in draw([run("a"), slow]):
        for trace, times in zip(figure.spec["data"], figure.spec["times"], strict=True):
            pace = 0.05 if "slow" in trace.get("legendgroup", "") else 0.1
            assert times == pytest.approx([pace * k for k in trace["x"]])


def test_what_was_not_measured_has_no_figure():
    bare = run(loss=None, shadow_loss=None, lambda_min=None, lambda_max=None, edge=None, bounds={})
    assert [f.key for f in draw([bare])] == ["distances", "resolution", "cost"]
    nothing = Run(name="n", records=(Record(step=0, time=0.0),))
    assert draw([nothing]) == []
    assert "No discrepancy was measured" in render([nothing])


def test_bounds_carry_their_mark_and_huge_ones_do_not_rule_the_axis():
    cells = {
        "sure": {"value": 0.1, "certified": True, "status": "ok"},
        "wild": {"value": None, "log_value": 600.0, "certified": False, "status": "ok"},
        "beyond": {"value": None, "log_value": 5000.0, "certified": False, "status": "ok"},
    }
    figure = next(f for f in draw([run(bounds=cells)]) if f.key == "bounds")
    styles = {t["name"]: t["line"]["dash"] for t in figure.spec["data"] if "name" in t}
    assert styles["sure (certified)"] == "solid"
    assert styles["wild (estimate)"] != "solid"
    assert not any(name.startswith("beyond") for name in styles)
    assert figure.spec["layout"]["yaxis"]["range"][1] < 6
    assert "sure, certified, is 0.1" in figure.alt


def test_a_bound_on_lambda_min_is_drawn_beside_it_and_not_against_the_discrepancy():
    cells = {"floor": {"of": "lambda_min", "value": -50.0, "certified": True, "kind": "certified"}}
    figures = {f.key: f for f in draw([run(bounds=cells)])}
    assert "bounds" not in figures
    traces = figures["eigenvalues"].spec["data"]
    (floor,) = [t for t in traces if t.get("name") == "floor (certified)"]
    assert (floor["yaxis"], floor["line"]["dash"], set(floor["y"])) == ("y2", "solid", {-50.0})
    low, high = figures["eigenvalues"].spec["layout"]["yaxis2"]["range"]
    assert -50 < low < -0.1 < 0 < high  # λ_min is −0.1
    go.Figure(plain(traces))


def test_a_long_run_keeps_its_extremes():
    values = [math.sin(i) for i in range(100_000)]
    values[54_321] = 9.0
    steps = [float(i) for i in range(100_000)]
    kept = thin(Points(steps, values, [0.0] * 100_000, steps))
    assert len(kept.steps) < 1300
    assert (kept.steps[0], kept.steps[-1], max(kept.values)) == (0.0, 99_999.0, 9.0)


def test_an_unresolved_point_between_resolved_ones_is_joined_to_them():
    points = Points([0.0, 1.0, 2.0, 3.0], [1.0, 2.0, 3.0, 4.0], [0.0] * 4, [0.0] * 4)
    known, rest = split_where(points, [True, False, True, True])
    assert known.values == [1.0, None, 3.0, 4.0]
    assert rest.values == [1.0, 2.0, 3.0, None]


# -- the file ---------------------------------------------------------------------------------


def hostile():
    rows = records(
        20,
        solver=EVIL,
        status_detail=EVIL,
        bounds={EVIL: {"value": 1.0, "certified": False, "status": EVIL}},
        extras={EVIL: {EVIL: EVIL}},
    )
    summary = {"errors": [EVIL]}
    return Run(name=EVIL, records=rows, header={"configuration": {EVIL: EVIL}}, summary=summary)


def test_no_string_of_a_user_or_plugin_becomes_markup():
    page = render([hostile(), run()], title=EVIL)
    assert "<img" not in page.replace(render([run()]), "")
    body = page[: page.index("<script>/**")]
    assert "onerror=alert(1)&gt;" in body
    assert body.count("<script") == body.count("</script>")
    assert all('type="application/json"' in tag for tag in re.findall(r"<script[^>]*>", body))
    for data in re.findall(
        r'<script type="application/json"[^>]*>(.*?)</script>', body, flags=re.S
    ):
        spec = json.loads(data)
        for trace in spec["data"]:
            assert "<" not in trace.get("name", "")


def test_the_file_names_nothing_outside_itself():
    page = render([run()])
    ours = re.sub(r"<script>.*?</script>", "", page, flags=re.S)
    assert not re.search(r'(src|href)="(?!#)', ours)
    assert "url(" not in ours
    assert "default-src &#39;none&#39;" in ours


def test_the_page_has_landmarks_headings_in_order_and_labelled_figures():
    page = render([run(), run("b")])
    body = page[: page.index("<script>/**")]
    for tag in ("header", "nav", "main", "footer"):
        assert len(re.findall(rf"<{tag}[ >]", body)) == 1
    levels = [int(n) for n in re.findall(r"<h(\d)", body)]
    assert levels[0] == 1
    assert all(b - a <= 1 for a, b in pairwise(levels))
    for label in re.findall(r'class="plot"[^>]*aria-label="([^"]*)"', body):
        assert len(label) > 40


def test_an_existing_report_is_replaced_whole_and_nothing_is_left_beside_it(tmp_path):
    target = tmp_path / "deep" / "r.html"
    assert write_report([run()], target) == target
    write_report([run("second")], target)
    assert "second" in target.read_text(encoding="utf-8")
    assert [p.name for p in target.parent.iterdir()] == ["r.html"]


def test_a_shadow_reports_on_itself(tmp_path):
    shadow = toy_run(steps=8)
    path = shadow.report(tmp_path / "r.html", name="toy & co")
    page = path.read_text(encoding="utf-8")
    assert "toy &amp; co" in page
    assert "version of torch" in page


def test_the_command_prints_the_findings_and_writes_the_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "r.jsonl", records(20))
    done = CliRunner().invoke(main, ["report", "r.jsonl", "-o", "out.html", "--name", "[red]x"])
    assert done.exit_code == 0, done.output
    assert "Verdict: Resolved to 4%" in done.output
    assert "[red]x" in done.output
    assert (tmp_path / "out.html").stat().st_size > 1e6
    done = CliRunner().invoke(main, ["report", "r.jsonl", "--json"])
    told = json.loads(done.stdout)
    assert told["report"] == "report.html"
    assert told["runs"][0]["findings"][0]["level"] == "good"
    assert CliRunner().invoke(main, ["report", "none.jsonl"]).exit_code != 0


def test_records_as_hostile_as_the_kit_makes_them_are_reported():
    rows = tuple(hostile_records())
    page = render([Run(name="hostile", records=rows), run()])
    assert "hostile" in page
    for data in re.findall(
        r'<script type="application/json"[^>]*>(.*?)</script>', page, flags=re.S
    ):
        json.loads(data)
