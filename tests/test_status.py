"""Status: order, text, and a sentence with a remedy for each."""

import json
from itertools import pairwise

import pytest

from torch_gfshadow.status import Status, worst


def test_a_status_is_its_own_string_everywhere_a_string_goes():
    assert Status.OK == "ok"
    assert f"{Status.STIFF}" == str(Status.STIFF) == "stiff"
    assert json.dumps(Status.STIFF) == '"stiff"'
    assert Status("external_edit") is Status.EXTERNAL_EDIT


@pytest.mark.parametrize("status", list(Status))
def test_each_has_one_or_more_whole_sentences(status):
    assert status.sentence.endswith(".")
    assert len(status.sentence.split()) >= 5


def test_no_two_share_a_sentence():
    assert len({status.sentence for status in Status}) == len(Status)


@pytest.mark.parametrize("status", [s for s in Status if s not in ("ok", "pending")])
def test_each_that_is_trouble_says_what_to_do_or_what_goes_on(status):
    assert status.sentence.count(". ") >= 1 or ";" in status.sentence


def test_severity_grows_in_the_order_of_definition_from_zero():
    assert Status.OK.severity == 0
    assert all(a.severity < b.severity for a, b in pairwise(Status))


def test_the_worst_of_several_is_the_most_severe_whatever_the_order():
    statuses = [Status.OK, Status.BLOW_UP, Status.UNRESOLVED]
    assert worst(statuses) is worst(reversed(statuses)) is Status.BLOW_UP


def test_the_worst_of_none_is_ok():
    assert worst([]) is Status.OK


def test_a_disabled_library_outranks_every_numerical_trouble():
    assert worst(Status) is Status.DISABLED
