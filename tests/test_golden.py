"""Every golden case of the shared format, through the same door as `gfshadow bound eval`."""

import json
from pathlib import Path

import pytest

from torch_gfshadow.cli._cases import answer, checked, evaluators
from torch_gfshadow.plugins import Plugins

CASES = json.loads((Path(__file__).parent / "golden" / "public.json").read_text())
KNOWN = evaluators(Plugins())
VALUES = [case for case in CASES if not case["expected"].get("raises")]


@pytest.mark.parametrize("case", CASES, ids=[case["id"] for case in CASES])
def test_the_case_is_reproduced_within_its_tolerance(case):
    made = answer(case, KNOWN)
    assert checked([case], [made]) == []
    assert (made["id"], made["result"]) == (case["id"], case["result"])


def test_every_answer_is_strict_json_with_the_five_keys():
    for case in CASES:
        made = json.loads(json.dumps(answer(case, KNOWN), allow_nan=False))
        assert list(made) == ["id", "result", "value", "certified", "status"]


@pytest.mark.parametrize("case", VALUES, ids=[case["id"] for case in VALUES])
def test_a_value_that_is_off_is_noticed(case):
    """The comparison itself: a golden value moved by ten tolerances must not pass."""
    made = answer(case, KNOWN)
    for key, item in case["expected"].items():
        if isinstance(item, float) and item:
            limits = case["tolerance"]
            shift = 10 * (limits["rtol"] * abs(item) + limits["atol"])
            moved = {**made, "value": {**made["value"], key: made["value"][key] + shift}}
            assert checked([case], [moved])
