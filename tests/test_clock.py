"""Flow time and schedules."""

import math

import pytest

from torch_gfshadow.clock import FlowClock, SparseSchedule, every


def test_time_is_the_sum_of_the_step_sizes_and_step_counts_them():
    clock = FlowClock()
    assert [clock.tick(h) for h in (0.5, 0.25, 0.125)] == [0.5, 0.75, 0.875]
    assert clock.step == 3


def test_a_million_steps_lose_no_digit():
    clock, plain = FlowClock(), 0.0
    for _ in range(10**6):
        clock.tick(0.1)
        plain += 0.1
    assert clock.time == pytest.approx(1e5, rel=1e-16)
    assert abs(plain - 1e5) > 1e-7  # what compensation is for


def test_steps_far_below_the_rounding_of_the_time_still_add_up():
    clock = FlowClock(time=1e8)
    for _ in range(10**5):
        clock.tick(1e-9)
    assert clock.time - 1e8 == pytest.approx(1e-4, abs=2e-8)


def test_a_step_of_size_zero_counts_and_takes_no_time():
    clock = FlowClock()
    clock.tick(0.0)
    assert (clock.step, clock.time) == (1, 0.0)


def test_a_clock_can_be_continued_where_it_stood():
    whole, first = FlowClock(), FlowClock()
    sizes = [0.1 / (k + 1) for k in range(50)]
    for size in sizes:
        whole.tick(size)
    for size in sizes[:20]:
        first.tick(size)
    second = FlowClock(first.step, first.time, first._carry)
    for size in sizes[20:]:
        second.tick(size)
    assert second == whole
    assert whole.time == pytest.approx(math.fsum(sizes), rel=1e-16)


def due_steps(schedule, n):
    return [step for step in range(n) if schedule.due(step)]


def test_short_runs_are_due_at_every_step():
    assert due_steps(SparseSchedule(dense=10, ratio=1.5), 10) == list(range(10))


def test_later_steps_grow_by_the_ratio():
    assert due_steps(SparseSchedule(dense=4, ratio=2.0), 100) == [0, 1, 2, 3, 4, 8, 16, 32, 64]


def test_a_long_run_is_due_only_logarithmically_often():
    steps = due_steps(SparseSchedule(dense=10, ratio=1.5), 10**5)
    assert len(steps) <= 10 + math.log(10**5 / 10) / math.log(1.5) + 3


def test_a_ratio_of_one_is_due_at_every_step_and_never_stalls():
    assert due_steps(SparseSchedule(dense=0, ratio=1.0), 6) == list(range(6))


def test_a_step_that_was_skipped_is_made_up_at_the_next_one():
    schedule = SparseSchedule(dense=0, ratio=2.0)
    assert schedule.due(5)
    assert not schedule.due(9)
    assert schedule.due(13)


def test_asking_twice_about_one_step_is_answered_once():
    schedule = SparseSchedule(dense=10, ratio=2.0)
    assert schedule.due(0)
    assert not schedule.due(0)


@pytest.mark.parametrize(
    ("step", "period", "due"), [(0, 5, True), (5, 5, True), (6, 5, False), (0, None, False)]
)
def test_every_says_whether_a_step_is_a_multiple(step, period, due):
    assert every(step, period) is due
