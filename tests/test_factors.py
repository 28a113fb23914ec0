"""Clipping in mode reference: the factor of every step's gradient is that of its pace."""

import pytest
import torch
from test_modes import attach, exactly, linear, samples, squares, weights
from torch import nn

import torch_gfshadow as gfs

ETA = 0.2


def clipped(steps, limit=0.3, begins=0, decay=0.0, between=lambda k, shadow: None, **options):
    """Return the shadow, its model, the factors and the exact flow at Σ c_k·η."""
    model = linear()
    optimizer = torch.optim.SGD(model.parameters(), lr=ETA, weight_decay=decay)
    shadow = attach(model, optimizer, data=samples(), **options)
    factors, flow = [], weights(model)
    for k in range(steps):
        between(k, shadow)
        optimizer.zero_grad()
        squares(model, samples()).backward()
        factors.append(1.0)
        if k >= begins:
            norm = float(nn.utils.clip_grad_norm_(model.parameters(), limit))
            factors[-1] = min(1.0, limit / (norm + 1e-6))
        optimizer.step()
        flow = exactly(flow, samples(), factors[-1] * ETA)
    return shadow, model, factors, flow


@pytest.mark.parametrize("every", [1, 5])
def test_the_clock_goes_at_the_pace_of_the_clipped_steps(every):
    shadow, model, factors, flow = clipped(20, every=every)
    last = shadow.records[-1]
    assert factors[0] < 0.5
    assert factors[-1] == 1.0
    assert last.time == pytest.approx(ETA * sum(factors), rel=1e-9)
    assert last.discrepancy == pytest.approx(float((weights(model) - flow).norm()), rel=0.05)
    assert {r.status for r in shadow.records} == {"ok"}
    if every == 1:
        assert shadow.records[1].audit == f"scaled {factors[0]:.4g}"
        assert [r.step_size for r in shadow.records[1:]] == pytest.approx(
            [ETA * c for c in factors]
        )


def test_once_nothing_is_clipped_any_more_audits_are_sparse_again():
    shadow, _, factors, _ = clipped(80)
    scaled = sum(c < 1.0 for c in factors)
    assert scaled < 15
    assert shadow.summary()["by_purpose"]["grads"]["audit"] < scaled + 20 + 8


def test_a_factor_that_was_there_before_an_audit_says_so_until_the_shadow_starts_anew():
    def resync(k, shadow):
        if k == 40:
            shadow.resync()

    shadow, *_ = clipped(45, limit=0.05, begins=3, between=resync)
    found = next(r for r in shadow.records if r.audit.startswith("scaled"))
    assert found.status == "scaled"
    assert "before an audit saw it" in found.status_detail
    assert shadow.records[40].status == "scaled"
    assert {r.status for r in shadow.records[41:]} == {"ok"}


def test_clipping_that_sets_in_between_two_audits_is_seen_at_its_second_step():
    shadow, *_ = clipped(15, limit=0.03, begins=10)  # audits are due at 8 and 16
    status = [r.status.value for r in shadow.records]
    assert status[:12] == ["ok"] * 12  # the first clipped step looks like any other
    assert shadow.records[12].audit.startswith("scaled")
    assert set(status[12:]) == {"scaled"}


def test_gradients_of_one_length_that_nobody_clipped_cost_few_audits():
    weight = nn.Parameter(torch.tensor([400.0], dtype=torch.float64))
    model = nn.Module()
    model.weight = weight
    optimizer = torch.optim.SGD([weight], lr=0.5)
    shadow = gfs.attach(
        optimizer,
        model,
        lambda m, _: m.weight.abs().sum(),
        data=samples(),
        probes=(),
        on_error="raise",
    )
    for _ in range(200):
        optimizer.zero_grad()
        weight.abs().sum().backward()
        optimizer.step()
    assert shadow.records[-1].audit == "match"
    assert shadow.summary()["by_purpose"]["grads"]["audit"] <= 8 + 8  # sparse ones, and alarms


def test_with_decay_a_factor_changes_the_flow_itself_and_stays_a_status():
    shadow, *_ = clipped(3, decay=0.1)
    assert shadow.records[1].status == "scaled"
    assert shadow.records[-1].time == pytest.approx(3 * ETA)


def test_resumed_in_the_middle_of_clipping_the_records_are_the_same():
    whole, *_ = clipped(8, limit=0.05)

    def swap(k, shadow):
        if k == 4:
            saved = shadow.state_dict()
            shadow.resync()
            shadow.load_state_dict(saved)

    again, *_ = clipped(8, limit=0.05, between=swap)
    left, right = ([r.to_dict() | {"seconds": 0.0} for r in s.records] for s in (whole, again))
    assert left == right
