"""Ledger: what we caused, by purpose."""

import contextlib
import json
import time

from torch_gfshadow.ledger import PURPOSES, Ledger


def test_totals_are_the_sums_over_the_purposes():
    ledger = Ledger()
    for counter in (ledger.grads, ledger.losses, ledger.hvps):
        for weight, purpose in enumerate(PURPOSES):
            counter[purpose] += weight
    total = sum(range(len(PURPOSES)))
    assert (ledger.n_grads, ledger.n_losses, ledger.n_hvps) == (total, total, total)


def test_a_new_ledger_owes_nothing():
    ledger = Ledger()
    assert (ledger.n_grads, ledger.n_losses, ledger.n_hvps, ledger.seconds) == (0, 0, 0, 0.0)
    assert ledger.by_purpose() == {"grads": {}, "losses": {}, "hvps": {}}


def test_the_summary_is_a_plain_copy_that_json_takes():
    ledger = Ledger()
    ledger.grads["flow"] += 4
    ledger.hvps["probes"] += 2
    summary = ledger.by_purpose()
    ledger.grads["flow"] += 1
    assert json.loads(json.dumps(summary)) == {
        "grads": {"flow": 4},
        "losses": {},
        "hvps": {"probes": 2},
    }


def test_ledgers_share_nothing():
    Ledger().grads["flow"] += 1
    assert Ledger().n_grads == 0


def test_time_adds_up_over_blocks_also_when_one_raises():
    ledger = Ledger()
    with ledger.timing():
        time.sleep(0.01)
    first = ledger.seconds
    with contextlib.suppress(KeyError), ledger.timing():
        time.sleep(0.01)
        raise KeyError
    assert first >= 0.009
    assert ledger.seconds >= first + 0.009
