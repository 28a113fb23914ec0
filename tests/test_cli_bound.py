"""`gfshadow bound`: list, show, eval, as a stranger meets them."""

import json
import math
from pathlib import Path

import pytest
from click.testing import CliRunner

from torch_gfshadow.cli import main
from torch_gfshadow.cli._cases import answer, deviations, evaluators
from torch_gfshadow.plugins import Plugins

GOLDEN = Path(__file__).parent / "golden" / "public.json"
CASES = json.loads(GOLDEN.read_text())
KNOWN = evaluators(Plugins())


def gfshadow(*arguments, code=0):
    result = CliRunner().invoke(main, [str(item) for item in arguments])
    assert result.exit_code == code, result.output
    return result


def lines(result):
    return [json.loads(line) for line in result.stdout.splitlines()]


def file(tmp_path, cases):
    path = tmp_path / "cases.json"
    path.write_text(json.dumps(cases))
    return path


def test_list_names_every_result_and_its_equations():
    rows = {row["name"]: row for row in json.loads(gfshadow("bound", "list", "--json").stdout)}
    assert rows["theorem4"]["parts"] == ["eq19", "eq20"]
    assert rows["theorem2"]["live"]
    assert not rows["theorem3"]["live"]
    assert "Theorem 3" in rows["theorem3"]["source"]
    assert "theorem3" in gfshadow("bound", "list").stdout


@pytest.mark.parametrize("name", ["theorem3", "eq7", "cor1", "eq19", "worst_case", "theorem2"])
def test_show_explains_a_result_under_every_of_its_names(name):
    text = gfshadow("bound", "show", name).stdout
    assert "inputs of " in text
    assert "source: " in text
    answer = json.loads(gfshadow("bound", "show", name, "--json").stdout)
    assert answer["inputs"]
    assert answer["statement"]


def test_show_of_an_unknown_result_is_one_line_with_the_nearest_name():
    result = gfshadow("bound", "show", "theorem33", code=2)
    assert "Did you mean 'theorem3'?" in result.stderr


def test_eval_answers_one_line_per_case_in_order():
    answers = lines(gfshadow("bound", "eval", GOLDEN))
    cases = json.loads(GOLDEN.read_text())
    assert [a["id"] for a in answers] == [c["id"] for c in cases]
    assert all(list(a) == ["id", "result", "value", "certified", "status"] for a in answers)


def test_a_refused_case_has_no_value_and_the_others_still_have_theirs(tmp_path):
    fine = {"breaks": [0, 1], "m": [0.0], "beta": 1, "gamma": 1, "eps": 0.1}
    cases = [
        {"id": "a", "result": "eq7", "inputs": {**fine, "eps": -1}},
        {"id": "b", "result": "eq7", "inputs": fine},
        {"id": "c", "result": "eq77", "inputs": fine},
        {"id": "d", "result": "eq7", "inputs": {**fine, "foo": 1}},
        {"id": "e", "result": "eq7", "inputs": {"breaks": [0, 1]}},
        {"id": "f"},
        7,
        {"id": "g", "result": "eq7", "inputs": [1]},
    ]
    answers = lines(gfshadow("bound", "eval", file(tmp_path, cases)))
    assert [a["value"] is None for a in answers] == [True, False, *[True] * 6]
    assert not any(a["certified"] for a in answers if a["value"] is None)
    status = [a["status"] for a in answers]
    assert status[0].startswith("eps must be positive and finite, got -1")
    assert answers[1] == {
        "id": "b", "result": "eq7", "certified": True, "status": "ok",
        "value": {"feasible": True, "eta": pytest.approx(0.1), "log_eta": pytest.approx(-2.302585),
                  "argmin_t": 1.0},
    }  # fmt: skip
    assert status[2].startswith("result must be a registered name, got 'eq77'")
    assert "with foo" in status[3]
    assert "without m, beta, gamma, eps" in status[4]
    assert all("must be an object" in text for text in status[5:])


def test_check_counts_what_is_as_expected_and_fails_if_something_is_not(tmp_path):
    case = {
        "id": "a", "result": "theorem2", "tolerance": {"rtol": 1e-9, "atol": 0.0},
        "inputs": {"breaks": [0, 1], "m": [0.0], "delta": [0.5], "R0": 0.0},
        "expected": {"log_R": [None, -0.6931471805599453], "R": [0.0, 0.5]},
    }  # fmt: skip
    right = gfshadow("bound", "eval", file(tmp_path, [case]), "--check")
    assert "1 of 1 as expected" in right.stderr
    case["expected"]["R"][1] = 0.5000001
    wrong = gfshadow("bound", "eval", file(tmp_path, [case]), "--check", code=1)
    assert "a: R[1] is 0.5, not 0.5000001" in wrong.stderr


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "CASES must be a JSON file"), ("{}", "CASES must be a list of cases, got a dict")],
)
def test_a_file_that_is_no_list_of_cases_is_one_line(tmp_path, text, message):
    path = tmp_path / "cases.json"
    path.write_text(text)
    assert message in gfshadow("bound", "eval", path, code=2).stderr


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({}, {"a": 1.0}),
        (None, {"a": 1.0}),
        ({"a": [1.0]}, {"a": [1.0, 2.0]}),
        ({"a": None}, {"a": 1.0}),
        ({"a": 1.0}, {"a": None}),
        ({"a": True}, {"a": 1}),
        ({"a": "10000000000000000000001"}, {"a": "20000000000000000000001"}),
        ({"a": "x"}, {"a": "12"}),
        ({"a": float("nan")}, {"a": 1.0}),
    ],
)
def test_what_differs_is_seen(value, expected):
    assert deviations(value, expected, 1e-9, 0.0)


BAD = [math.nan, math.inf, None, "x", [], {}, [[]], True, 10**400, [1, "a"]]


@pytest.mark.parametrize("result", sorted({case["result"] for case in CASES}))
def test_whatever_an_input_is_the_answer_is_a_value_or_a_message(result):
    case = next(case for case in CASES if case["result"] == result)
    for key in case["inputs"]:
        for bad in BAD:
            made = answer({**case, "inputs": {**case["inputs"], key: bad}}, KNOWN)
            json.dumps(made, allow_nan=False)
            if made["value"] is None:
                assert " must be " in made["status"], (key, bad)
