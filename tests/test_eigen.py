import math
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.sparse.linalg import eigsh

from torch_gfshadow._krylov import NEGLIGIBLE, Space, norm
from torch_gfshadow._lower_bound import probabilistic_lower_bound
from torch_gfshadow._recycled import Recycled, damped
from torch_gfshadow.eigen import FAILURE_PROBABILITY, Spectrum, extreme_eigenpairs
from torch_gfshadow.errors import CurvatureError

D = 240


def spread(low, high, bulk=(-1.0, 1.0)):
    """Outliers at both ends and an evenly filled bulk, D eigenvalues in all."""
    outliers = torch.tensor(low + high, dtype=torch.float64)
    return torch.cat([outliers, torch.linspace(*bulk, D - len(outliers), dtype=torch.float64)])


SPECTRA = {
    "sign symmetric": spread([-3.0], [3.0]),
    "sign symmetric bulk": torch.linspace(-1.0, 1.0, D, dtype=torch.float64),
    "clustered ends": spread([-3.0, -2.999, -2.998], [5.0, 4.999, 4.998]),
    "multiple ends": spread([-3.0, -3.0], [5.0, 5.0, 5.0]),
    "like a network": spread([], [28.0, 23.0, 21.0, 19.0, 16.0, 11.0, 9.7, 8.6], (-0.2, 1.2)),
    "like a network, mirrored": spread([-28.0, -23.0, -21.0, -16.0], [], (-1.2, 0.2)),
    "tiny lambda_min": torch.cat(
        [
            torch.tensor([-0.03, 40.0, 30.0, 24.0, 20.0, 15.0, 11.0, 7.0], dtype=torch.float64),
            torch.linspace(-0.9, 4.0, D - 8, dtype=torch.float64) ** 3 / 40.0,
        ]
    ),
    "rank deficient": spread([-2.0, -1.0], [7.0, 3.0], (0.0, 0.0)),
    "positive definite": torch.linspace(1.0, 100.0, D, dtype=torch.float64),
    "negative definite": torch.linspace(-100.0, -1.0, D, dtype=torch.float64),
    "tiny numbers": 1e-30 * torch.linspace(-1.0, 2.0, D, dtype=torch.float64),
    "huge numbers": 1e30 * torch.linspace(-1.0, 2.0, D, dtype=torch.float64),
}


def dense(eigenvalues, seed=0):
    """A dense symmetric matrix with these eigenvalues."""
    generator = torch.Generator().manual_seed(seed)
    n = len(eigenvalues)
    q, _ = torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64))
    matrix = q @ torch.diag(eigenvalues) @ q.T
    return 0.5 * (matrix + matrix.T)


class Counted:
    def __init__(self, matrix):
        self.matrix, self.calls = matrix, 0

    def __call__(self, vector):
        self.calls += 1
        return self.matrix @ vector


def solve(matrix, **kwargs):
    kwargs = {"dtype": matrix.dtype, "device": "cpu"} | kwargs
    return extreme_eigenpairs(Counted(matrix), len(matrix), **kwargs)


def true_residual(matrix, value, vector):
    return float(torch.linalg.vector_norm(matrix @ vector - value * vector))


def drift(matrix, size, seed):
    """Turn the eigenvectors by a random rotation of angle about ``size``."""
    generator = torch.Generator().manual_seed(seed)
    n = len(matrix)
    skew = torch.randn(n, n, generator=generator, dtype=torch.float64) * size / math.sqrt(n)
    turn = torch.matrix_exp(skew - skew.T)
    moved = turn @ matrix @ turn.T
    return 0.5 * (moved + moved.T)


@pytest.mark.parametrize("name", SPECTRA)
def test_both_ends_are_the_dense_eigenvalues(name):
    matrix = dense(SPECTRA[name])
    exact = torch.linalg.eigvalsh(matrix)
    scale = float(exact.abs().max())
    ends = solve(matrix, tol=1e-6, max_products=1000)
    assert ends.converged
    assert ends.lambda_min == pytest.approx(float(exact[0]), abs=1e-7 * scale)
    assert ends.lambda_max == pytest.approx(float(exact[-1]), abs=1e-7 * scale)


@pytest.mark.parametrize("name", SPECTRA)
def test_residuals_are_the_true_residuals_of_unit_vectors_and_meet_the_tolerance(name):
    matrix = dense(SPECTRA[name])
    ends = solve(matrix, tol=0.01, max_products=1000)
    scale = max(abs(ends.lambda_min), abs(ends.lambda_max))
    for value, vector, residual in (
        (ends.lambda_min, ends.vector_min, ends.residual_min),
        (ends.lambda_max, ends.vector_max, ends.residual_max),
    ):
        assert float(vector.norm()) == pytest.approx(1.0, abs=1e-14)
        assert residual == pytest.approx(
            true_residual(matrix, value, vector), rel=1e-6, abs=1e-13 * scale
        )
        assert residual <= 0.01 * max(abs(value), NEGLIGIBLE * scale)
        # What a residual promises: an eigenvalue within it.
        nearest = (torch.linalg.eigvalsh(matrix) - value).abs().min()
        assert float(nearest) <= residual + 1e-13 * scale


@pytest.mark.parametrize("name", ["sign symmetric", "clustered ends", "like a network"])
def test_scipy_agrees(name):
    matrix = dense(SPECTRA[name])
    ends = solve(matrix, tol=1e-6, max_products=1000)
    top = eigsh(matrix.numpy(), k=1, which="LA", return_eigenvectors=False)[0]
    bottom = eigsh(matrix.numpy(), k=1, which="SA", return_eigenvectors=False)[0]
    assert ends.lambda_max == pytest.approx(top, rel=1e-9)
    assert ends.lambda_min == pytest.approx(bottom, rel=1e-9)


@pytest.mark.parametrize("name", SPECTRA)
def test_ritz_values_never_leave_the_spectrum(name):
    matrix = dense(SPECTRA[name])
    exact = torch.linalg.eigvalsh(matrix)
    slack = 1e-13 * float(exact.abs().max())
    for budget in (1, 2, 5, 20):
        ends = solve(matrix, max_products=budget, tol=1e-9)
        assert exact[0] - slack <= ends.lambda_min <= ends.lambda_max <= exact[-1] + slack


@pytest.mark.parametrize("dim", [1, 2, 3, 8])
def test_a_small_space_is_searched_whole_and_exactly(dim):
    matrix = dense(torch.linspace(-2.0, 3.0, dim, dtype=torch.float64))
    exact = torch.linalg.eigvalsh(matrix)
    ends = solve(matrix, tol=1e-14)
    assert ends.lambda_min == pytest.approx(float(exact[0]), abs=1e-13)
    assert ends.lambda_max == pytest.approx(float(exact[-1]), abs=1e-13)
    assert max(ends.residual_min, ends.residual_max) < 1e-13
    assert ends.n_products <= dim
    assert ends.failure_probability == 0.0
    assert ends.lower_bound == pytest.approx(ends.lambda_min, abs=1e-13)


@pytest.mark.parametrize("factor", [0.0, 1.0, -4.0])
def test_a_multiple_of_the_identity_takes_one_product(factor):
    ends = solve(factor * torch.eye(50, dtype=torch.float64))
    assert ends.converged
    assert ends.n_products == 1
    assert ends.lambda_min == pytest.approx(factor, abs=1e-12)
    assert ends.lambda_max == pytest.approx(factor, abs=1e-12)
    assert ends.lower_bound == pytest.approx(factor, abs=1e-12)


@pytest.mark.parametrize("name", ["sign symmetric", "clustered ends", "like a network"])
def test_float32_keeps_its_promise_through_restarts(name):
    matrix = dense(SPECTRA[name])
    ends = extreme_eigenpairs(
        lambda v: matrix.float() @ v,
        D,
        dtype=torch.float32,
        device="cpu",
        tol=1e-3,
        max_products=1000,
        max_basis=8,
    )
    assert ends.converged
    assert ends.vector_min.dtype == torch.float32
    exact = torch.linalg.eigvalsh(matrix)
    scale = float(exact.abs().max())
    assert ends.lambda_min == pytest.approx(float(exact[0]), abs=1e-3 * scale)
    assert ends.lambda_max == pytest.approx(float(exact[-1]), abs=1e-3 * scale)
    for value, vector, residual in (
        (ends.lambda_min, ends.vector_min, ends.residual_min),
        (ends.lambda_max, ends.vector_max, ends.residual_max),
    ):
        # True in float64, although the search was in float32: 1e-6 is its rounding.
        assert abs(true_residual(matrix, value, vector.double()) - residual) <= 5e-6 * scale


def test_an_unreachable_tolerance_stops_at_the_rounding_of_the_vectors():
    ends = extreme_eigenpairs(
        lambda v: dense(SPECTRA["sign symmetric"]).float() @ v,
        D,
        dtype=torch.float32,
        device="cpu",
        tol=1e-12,
        max_products=200,
    )
    assert ends.converged
    assert ends.n_products < 100


@pytest.mark.parametrize("max_basis", [8, 12, 24])
def test_the_basis_is_bounded_and_restarts_lose_no_correctness(max_basis, monkeypatch):
    largest = 0
    add = Space.add

    def watched(self, direction):
        nonlocal largest
        added = add(self, direction)
        largest = max(largest, self.size)
        return added

    monkeypatch.setattr(Space, "add", watched)
    matrix = dense(SPECTRA["like a network"])
    ends = solve(matrix, max_basis=max_basis, max_products=1000, tol=1e-4)
    assert ends.converged
    assert ends.n_products > max_basis
    assert largest == max_basis
    exact = torch.linalg.eigvalsh(matrix)
    assert ends.lambda_min == pytest.approx(float(exact[0]), rel=1e-6)
    assert ends.lambda_max == pytest.approx(float(exact[-1]), rel=1e-6)


def test_damping_makes_up_for_a_small_basis():
    matrix = dense(SPECTRA["like a network"])
    cost = {
        n: sum(
            solve(matrix, n_outliers=n, max_basis=10, max_products=1000, seed=seed).n_products
            for seed in range(5)
        )
        for n in (0, 16)
    }
    assert cost[16] < 0.9 * cost[0]


def test_every_product_is_counted():
    operator = Counted(dense(SPECTRA["like a network"]))
    ends = extreme_eigenpairs(operator, D, dtype=torch.float64, device="cpu")
    assert ends.n_products == operator.calls


def test_a_spent_budget_is_reported_and_not_raised():
    operator = Counted(dense(SPECTRA["sign symmetric bulk"]))
    ends = extreme_eigenpairs(
        operator, D, dtype=torch.float64, device="cpu", tol=1e-9, max_products=7
    )
    assert not ends.converged
    assert ends.n_products == operator.calls == 7
    assert max(ends.residual_min, ends.residual_max) > 1e-9


@pytest.mark.parametrize("mirror", [1.0, -1.0])
def test_a_budget_too_small_for_one_end_does_not_starve_the_other(mirror):
    # Outliers at one end; at the other the edge of a bulk, much harder to resolve.
    matrix = mirror * dense(SPECTRA["like a network"])
    first = solve(matrix)
    ends = solve(drift(matrix, 0.02, 1), start=first, tol=1e-4, max_products=22)
    easy, hard = "max", "min"
    if mirror < 0:
        easy, hard = hard, easy
    assert not ends.converged
    for end, met in ((easy, True), (hard, False)):
        allowed = 1e-4 * abs(getattr(ends, f"lambda_{end}"))
        assert (getattr(ends, f"residual_{end}") <= allowed) == met


def test_the_budget_holds_for_a_warm_start_too():
    matrix = dense(SPECTRA["like a network"])
    ends = solve(matrix, start=solve(matrix), max_products=1, tol=1e-9)
    assert ends.n_products == 1
    assert not ends.converged


# Warm starts


def test_warm_starts_cost_a_fraction_of_cold_ones_on_a_drifting_matrix():
    matrix = dense(SPECTRA["like a network"])
    warm, cold, ends = 0, 0, solve(matrix)
    for step in range(8):
        matrix = drift(matrix, 0.003, step)
        ends = solve(matrix, start=ends)
        exact = torch.linalg.eigvalsh(matrix)
        assert ends.converged
        assert ends.lambda_min == pytest.approx(float(exact[0]), rel=0.01)
        assert ends.lambda_max == pytest.approx(float(exact[-1]), rel=0.01)
        warm += ends.n_products
        cold += solve(matrix).n_products
    assert warm < 0.5 * cold


def test_recycled_outliers_save_products_over_plain_vectors():
    matrix = dense(SPECTRA["like a network"])
    cost = dict.fromkeys(("spectrum", "vectors"), 0)
    first = solve(matrix)
    for name in cost:
        moved, ends = matrix, first
        for step in range(6):
            moved = drift(moved, 0.01, step)
            start = ends if name == "spectrum" else (ends.vector_min, ends.vector_max)
            ends = solve(moved, start=start)
            assert ends.converged
            cost[name] += ends.n_products
    assert cost["spectrum"] < cost["vectors"]


def turned(matrix, turn, times):
    """The matrix with its eigenvectors turned ``times`` times in the same way."""
    whole = torch.linalg.matrix_power(turn, times)
    moved = whole @ matrix @ whole.T
    return 0.5 * (moved + moved.T)


def turning(size, seed):
    """A small rotation of angle about ``size``."""
    generator = torch.Generator().manual_seed(seed)
    skew = torch.randn(D, D, generator=generator, dtype=torch.float64) * size / math.sqrt(D)
    return torch.matrix_exp(skew - skew.T)


def cost_of(matrices, memory=True):
    """Products of the warm searches along a sequence of matrices, all of them right."""
    ends, spent = solve(matrices[0]), 0
    for matrix in matrices[1:]:
        start = ends if memory else replace(ends, recycled=ends.recycled.still())
        ends = solve(matrix, start=start)
        exact = torch.linalg.eigvalsh(matrix)
        assert ends.converged
        assert ends.lambda_min == pytest.approx(float(exact[0]), rel=0.01)
        assert ends.lambda_max == pytest.approx(float(exact[-1]), rel=0.01)
        spent += ends.n_products
    return spent


@pytest.mark.parametrize("name", ["like a network", "tiny lambda_min"])
@pytest.mark.parametrize(("times", "size"), [(range(10), 0.04), ([0, 1, 2, 4, 8, 16], 0.008)])
def test_eigenvectors_that_go_on_turning_are_met_where_they_will_be(name, times, size):
    # At equal distances, and at distances that double from one search to the next.
    turn = turning(size, 3)
    matrices = [turned(dense(SPECTRA[name]), turn, k) for k in times]
    assert cost_of(matrices) < 0.85 * cost_of(matrices, memory=False)


def test_eigenvectors_that_turn_at_random_cost_no_more_for_having_a_past():
    matrices = [dense(SPECTRA["like a network"])]
    for step in range(8):
        matrices.append(drift(matrices[-1], 0.01, step))
    assert cost_of(matrices) <= 1.05 * cost_of(matrices, memory=False)


def test_an_unchanged_operator_costs_one_product_per_start_vector():
    matrix = dense(SPECTRA["sign symmetric"])
    first = solve(matrix)
    again = solve(matrix, start=(first.vector_min, first.vector_max))
    assert again.n_products == 2
    assert again.converged
    assert again.lambda_min == pytest.approx(first.lambda_min, rel=1e-12)


def test_a_neighbour_that_overtakes_the_end_is_followed():
    # Two low eigenvalues cross while their vectors stand still: the tracked one is overtaken.
    q = torch.linalg.eigh(dense(SPECTRA["sign symmetric"]))[1]
    eigenvalues = spread([-3.0, -2.8], [5.0])
    ends = solve(q @ torch.diag(eigenvalues) @ q.T)
    eigenvalues[:2] = torch.tensor([-2.8, -3.0])
    ends = solve(q @ torch.diag(eigenvalues) @ q.T, start=ends)
    assert ends.lambda_min == pytest.approx(-3.0, rel=1e-3)
    assert abs(float(q[:, 1] @ ends.vector_min)) > 0.9


@pytest.mark.parametrize("mirror", [1.0, -1.0])
def test_an_outlier_remembered_and_not_searched_is_followed_when_it_overtakes_the_end(mirror):
    # The end comes down past a neighbour that stands still: too far away to start from at first,
    # so that the search in between has the end alone, and the neighbour is in memory only.
    q = torch.linalg.eigh(dense(SPECTRA["sign symmetric"]))[1]
    eigenvalues = spread([], [28.0, 24.5, 19.0, 18.0], (-2.0, 1.2))
    ends = solve(mirror * q @ torch.diag(eigenvalues) @ q.T, tol=1e-4)
    for end in (26.5, 23.5):
        eigenvalues[0] = end
        ends = solve(mirror * q @ torch.diag(eigenvalues) @ q.T, start=ends)
    reached = ends.lambda_max if mirror > 0 else -ends.lambda_min
    assert reached == pytest.approx(24.5, rel=1e-3)


@pytest.mark.parametrize("n", [1, 2, 3, 30, D])
def test_a_hessian_that_vanishes_and_comes_back(n):
    zero = torch.zeros(n, n, dtype=torch.float64)
    matrix = dense(torch.linspace(-2.0, 3.0, n, dtype=torch.float64), seed=1)
    exact = torch.linalg.eigvalsh(matrix)
    ends = solve(zero)
    for now, low, high in ((zero, 0.0, 0.0), (matrix, *exact[[0, -1]].tolist()), (zero, 0.0, 0.0)):
        ends = solve(now, start=ends)
        assert ends.converged
        assert ends.n_products <= n
        # Zero teaches nothing: the next search is one from a random vector.
        assert ends.failure_probability is not None or now is zero
        assert ends.lambda_min == pytest.approx(low, abs=0.02)
        assert ends.lambda_max == pytest.approx(high, abs=0.02)


@pytest.mark.parametrize("rank", [1, 2, 5])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_few_eigenvalues_beside_zero_cost_few_products_cold_and_warm(rank, sign):
    eigenvalues = torch.zeros(D, dtype=torch.float64)
    eigenvalues[:rank] = sign * torch.arange(1.0, rank + 1.0, dtype=torch.float64)
    matrix = dense(eigenvalues)
    cold = solve(matrix, tol=1e-8)
    warm = solve(matrix, start=cold, tol=1e-8)
    far, near = (rank, 0.0) if sign > 0 else (0.0, -float(rank))
    for ends in (cold, warm):
        assert ends.converged
        assert ends.n_products <= rank + 2
        assert ends.lambda_max == pytest.approx(far, abs=1e-10)
        assert ends.lambda_min == pytest.approx(near, abs=1e-10)
    assert cold.lower_bound <= near + 1e-10


def test_more_start_vectors_than_dimensions():
    generator = torch.Generator().manual_seed(0)
    starts = torch.randn(7, 3, generator=generator, dtype=torch.float64)
    ends = solve(dense(torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)), start=tuple(starts))
    assert ends.n_products == 3
    assert (ends.lambda_min, ends.lambda_max) == pytest.approx((1.0, 3.0))
    assert ends.failure_probability == 0.0


def test_an_end_that_appears_out_of_sight_is_not_claimed_and_a_random_start_finds_it():
    # The new end is an exact eigenvector, orthogonal to all that was kept: no warm search whose
    # vectors are sums of what was kept and its images can see it.
    q = torch.linalg.eigh(dense(SPECTRA["sign symmetric"]))[1]
    before = spread([-3.0], [5.0])
    ends = solve(q @ torch.diag(before) @ q.T, tol=1e-10, max_products=300)
    kept = torch.linalg.qr(torch.cat([ends.recycled.starts, ends.recycled.outliers]).T)[0]
    new = q[:, 100] - kept @ (kept.T @ q[:, 100])
    new /= new.norm()
    rest = q @ torch.diag(before) @ q.T
    blind = torch.eye(D, dtype=torch.float64) - torch.outer(new, new)
    matrix = blind @ rest @ blind - 9.0 * torch.outer(new, new)
    warm = solve(matrix, start=ends)
    assert warm.lambda_min >= -9.0 - 1e-9  # a limit from above it stays
    if warm.lambda_min > -8.9:
        # Some eigenvalue lies within the residual of what was found, and nothing more is claimed.
        exact = torch.linalg.eigvalsh(matrix)
        assert float((exact - warm.lambda_min).abs().min()) <= warm.residual_min
        assert warm.failure_probability is None
    cold = solve(matrix, seed=1)  # not the vector that this matrix was made to hide from
    assert cold.lambda_min == pytest.approx(-9.0, rel=0.01)
    assert cold.lower_bound <= -9.0


def test_an_end_that_appears_out_of_reach_of_the_kept_is_found_by_the_random_part_of_drift():
    # As before, but the rest turns a little, too, as a Hessian does: its images lead there.
    matrix = dense(SPECTRA["like a network"])
    ends = solve(matrix)
    generator = torch.Generator().manual_seed(3)
    new = torch.randn(D, generator=generator, dtype=torch.float64)
    new -= ends.recycled.outliers.T @ (ends.recycled.outliers @ new)
    new /= new.norm()
    moved = drift(matrix, 0.02, 5) - 20.0 * torch.outer(new, new)
    exact = torch.linalg.eigvalsh(moved)
    warm = solve(moved, start=ends)
    assert warm.lambda_min == pytest.approx(float(exact[0]), rel=0.01)
    assert warm.lambda_max == pytest.approx(float(exact[-1]), rel=0.01)


def test_a_fresh_start_finds_what_hid_from_warm_ones_and_bounds_like_a_cold_one():
    # The matrix of the test above, whose new end no warm search can see.
    q = torch.linalg.eigh(dense(SPECTRA["sign symmetric"]))[1]
    before = spread([-3.0], [5.0])
    ends = solve(q @ torch.diag(before) @ q.T, tol=1e-10, max_products=300)
    kept = torch.linalg.qr(torch.cat([ends.recycled.starts, ends.recycled.outliers]).T)[0]
    new = q[:, 100] - kept @ (kept.T @ q[:, 100])
    new /= new.norm()
    blind = torch.eye(D, dtype=torch.float64) - torch.outer(new, new)
    matrix = blind @ (q @ torch.diag(before) @ q.T) @ blind - 9.0 * torch.outer(new, new)
    fresh, cold = solve(matrix, start=ends, fresh=True, seed=1), solve(matrix, seed=1)
    assert fresh.lambda_min == pytest.approx(-9.0, rel=0.01)
    assert (fresh.failure_probability, fresh.age) == (FAILURE_PROBABILITY, 0)
    assert fresh.lower_bound == cold.lower_bound <= -9.0


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_fresh_start_costs_a_basis_and_a_warm_search_where_a_cold_one_costs_many(sign):
    matrix = sign * dense(SPECTRA["tiny lambda_min"])
    known = solve(matrix, tol=1e-3, max_products=1000)
    moved = drift(matrix, 0.003, 1)
    cold = solve(moved, tol=1e-3, max_products=1000, max_basis=16, seed=2)
    warm = solve(moved, tol=1e-3, max_products=1000, max_basis=16, start=known)
    fresh = solve(moved, tol=1e-3, max_products=1000, max_basis=16, start=known, fresh=True, seed=2)
    assert fresh.converged
    assert fresh.n_products <= 16 + warm.n_products + 8
    assert fresh.n_products < 0.8 * cold.n_products
    exact = torch.linalg.eigvalsh(moved)
    assert fresh.lower_bound == cold.lower_bound <= float(exact[0])
    assert fresh.lambda_min == pytest.approx(float(exact[0]), rel=1e-3)
    assert fresh.lambda_max == pytest.approx(float(exact[-1]), rel=1e-3)


def test_a_fresh_start_with_nothing_to_start_from_is_a_cold_one():
    matrix = dense(SPECTRA["like a network"])
    cold, fresh = solve(matrix), solve(matrix, fresh=True)
    assert (fresh.lambda_min, fresh.n_products, fresh.age) == (cold.lambda_min, cold.n_products, 0)


@pytest.mark.parametrize(
    ("name", "n_outliers", "factor"),
    [
        ("sign symmetric bulk", 30, 1.1),
        ("like a network", 30, 1.05),
        ("tiny lambda_min", 30, 1.05),
        ("tiny lambda_min", 0, 2.5),
    ],
)
def test_a_small_basis_costs_little_beside_one_that_is_never_full(name, n_outliers, factor):
    # What is remembered of the outliers and the Ritz vectors of one step before make up for it.
    matrix, spent = dense(SPECTRA[name]), {12: 0, D: 0}
    for max_basis in spent:
        for seed in range(3):
            ends = solve(
                matrix,
                tol=1e-3,
                max_products=1000,
                max_basis=max_basis,
                n_outliers=n_outliers,
                seed=seed,
            )
            assert ends.converged
            spent[max_basis] += ends.n_products
    assert spent[12] <= factor * spent[D]


def test_age_counts_warm_starts_since_the_last_cold_one():
    matrix = dense(SPECTRA["sign symmetric"])
    first = solve(matrix)
    second = solve(matrix, start=first)
    third = solve(matrix, start=second)
    assert [first.age, second.age, third.age] == [0, 1, 2]
    assert solve(matrix, start=(first.vector_min,)).age == 1


def test_a_start_without_direction_is_a_cold_start():
    matrix = dense(SPECTRA["sign symmetric"])
    cold = solve(matrix)
    for useless in (torch.zeros(D), torch.full((D,), math.nan)):
        ends = solve(matrix, start=(useless,))
        assert ends.age == 0
        assert ends.lambda_min == cold.lambda_min


def test_a_start_in_another_precision_is_cast():
    matrix = dense(SPECTRA["sign symmetric"])
    first = solve(matrix.float())
    assert solve(matrix, start=first).vector_min.dtype == torch.float64


def test_a_start_of_another_length_is_refused():
    with pytest.raises(
        ValueError, match=r"start\[0\] must be of shape \[240\], got of shape \[3\]"
    ):
        solve(dense(SPECTRA["sign symmetric"]), start=(torch.ones(3),))


def test_what_is_kept_for_the_next_point_is_bounded():
    matrix = dense(SPECTRA["sign symmetric bulk"])
    ends = solve(matrix, n_outliers=5)
    for step in range(3):
        ends = solve(drift(matrix, 0.01, step), start=ends, n_outliers=5)
        assert isinstance(ends.recycled, Recycled)
        assert ends.recycled.outliers.shape == (5, D)
        gram = ends.recycled.outliers @ ends.recycled.outliers.T
        assert torch.allclose(gram, torch.eye(5, dtype=gram.dtype), atol=1e-10)
        assert 2 <= len(ends.recycled.starts) <= 4


# The lower bound


def kuczynski_wozniakowski(ends, k, dim):
    """Their bound (1992, Theorem 4.2) for both ends after k steps, from the Ritz values."""
    delta = FAILURE_PROBABILITY / 2
    epsilon = (math.log(1.648 * math.sqrt(dim) / delta) / (2 * k - 1)) ** 2
    if epsilon >= 0.5:
        return -math.inf
    return ends.lambda_min - epsilon * (ends.lambda_max - ends.lambda_min) / (1 - 2 * epsilon)


@pytest.mark.parametrize("name", ["sign symmetric bulk", "like a network", "rank deficient"])
@pytest.mark.parametrize("budget", [4, 16])
def test_the_lower_bound_fails_no_more_often_than_stated(name, budget):
    eigenvalues = SPECTRA[name]
    lowest = float(eigenvalues.min())
    trials, failures = 150, 0
    for seed in range(trials):
        # A uniformly random start makes the matrix's own basis irrelevant: take it diagonal.
        ends = extreme_eigenpairs(
            lambda v: eigenvalues * v,
            D,
            dtype=torch.float64,
            device="cpu",
            max_products=budget,
            tol=1e-12,
            seed=seed,
        )
        assert ends.failure_probability == FAILURE_PROBABILITY
        assert ends.lower_bound <= ends.lambda_min
        failures += ends.lower_bound > lowest + 1e-12
    # 1.5 are expected at most; 7 have a probability below 1e-3.
    assert failures < 7


def test_the_lower_bound_fails_no_more_often_than_stated_over_random_matrices():
    generator = torch.Generator().manual_seed(0)
    trials, failures, finite = 1000, 0, 0
    for seed in range(trials):
        n = 40
        q = torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64))[0]
        half = torch.randn(n // 2, generator=generator, dtype=torch.float64)
        eigenvalues = [
            torch.cat([half, half]).sort().values,  # every eigenvalue twice
            torch.cat([half, -half]),  # sign-symmetric
            torch.cat([half, -half]) * 1e-4,  # near-zero start
            torch.cat([half, -3.0 - 1e-3 * half.abs()]),  # clustered lower end
        ][seed % 4]
        if seed % 4 == 3:
            eigenvalues[n // 2 + 3 :] = half[3:]
        matrix = q @ torch.diag(eigenvalues) @ q.T
        matrix = 0.5 * (matrix + matrix.T)
        lowest = float(torch.linalg.eigvalsh(matrix)[0])
        ends = solve(matrix, seed=seed, max_products=3 + seed % 7, tol=1e-12)
        assert ends.failure_probability == FAILURE_PROBABILITY
        finite += math.isfinite(ends.lower_bound)
        failures += ends.lower_bound > lowest + 1e-10
    # 10 are expected at most; 21 or more have a probability below 2e-3.
    assert failures < 21
    assert finite == trials


def test_the_lower_bound_is_sharper_than_the_a_priori_one_and_closes_in():
    matrix = dense(SPECTRA["sign symmetric bulk"])
    gaps = []
    for budget in (12, 16, 20, 24):
        ends = solve(matrix, max_products=budget, max_basis=32, tol=1e-12)
        assert ends.lower_bound > kuczynski_wozniakowski(ends, budget, D)
        gaps.append(-1.0 - ends.lower_bound)
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[-1] < 0.1


def test_the_lower_bound_is_where_the_lanczos_polynomial_reaches_one_over_delta():
    values = torch.tensor([-1.0, 0.5, 2.0], dtype=torch.float64)
    betas = [0.7, 0.9, 0.3]
    bound = probabilistic_lower_bound(values, betas, 3, 0.01)
    # In three dimensions a coordinate of a random unit vector is uniform on [-1, 1]: δ = 0.01.
    polynomial = math.prod(bound - v for v in values.tolist()) / math.prod(betas)
    assert abs(polynomial) == pytest.approx(1 / 0.01, rel=1e-9)
    assert bound < -1.0


def test_a_warm_lower_bound_is_the_estimate_and_says_so():
    matrix = dense(SPECTRA["sign symmetric"])
    ends = solve(drift(matrix, 0.01, 1), start=solve(matrix))
    assert ends.failure_probability is None
    assert ends.lower_bound == ends.lambda_min - ends.residual_min


# Good behaviour


def test_the_same_seed_gives_the_same_numbers_and_another_seed_others():
    matrix = dense(SPECTRA["like a network"])
    first, again, other = solve(matrix), solve(matrix), solve(matrix, seed=1)
    assert torch.equal(first.vector_min, again.vector_min)
    assert first.lambda_min == again.lambda_min
    assert first.lower_bound == again.lower_bound
    assert not torch.equal(first.vector_min, other.vector_min)


def test_no_global_random_state_is_read_or_moved():
    matrix = dense(SPECTRA["sign symmetric"])
    torch.manual_seed(1)
    one = solve(matrix)
    torch.manual_seed(2)
    streams = torch.get_rng_state, lambda: np.random.get_state()[1].copy(), random.getstate  # noqa: NPY002
    before = [stream() for stream in streams]
    two = solve(matrix)
    after = [stream() for stream in streams]
    assert torch.equal(after[0], before[0])
    assert np.array_equal(after[1], before[1])
    assert after[2] == before[2]
    assert torch.equal(one.vector_max, two.vector_max)


def test_autocast_inference_mode_and_the_default_device_of_the_caller_do_not_matter():
    matrix = dense(SPECTRA["sign symmetric"]).float()
    plain = solve(matrix)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert solve(matrix).lambda_min == plain.lambda_min
    with torch.inference_mode():
        inside = solve(matrix)
    assert not inside.vector_min.is_inference()
    assert not inside.recycled.outliers.is_inference()
    with torch.device("meta"):
        assert solve(matrix).lambda_min == plain.lambda_min


def test_results_carry_no_graph():
    matrix = dense(SPECTRA["sign symmetric"]).requires_grad_()
    ends = solve(matrix)
    assert not ends.vector_min.requires_grad
    assert not ends.recycled.outliers.requires_grad


@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("when", [1, 3, 30])
def test_a_product_that_is_not_finite_is_an_error_that_says_when(poison, when):
    operator = Counted(dense(SPECTRA["sign symmetric bulk"]))

    def poisoned(vector):
        image = operator(vector)
        if operator.calls == when:
            image[7] = poison
        return image

    with pytest.raises(
        CurvatureError, match=f"H·v must be finite, got NaN or inf in product {when}"
    ):
        extreme_eigenpairs(poisoned, D, dtype=torch.float64, device="cpu", tol=1e-9)


def test_a_noisy_operator_ends_unconverged_within_the_budget():
    matrix = dense(SPECTRA["sign symmetric"])
    generator = torch.Generator().manual_seed(0)

    def noisy(vector):
        noise = torch.randn(D, generator=generator, dtype=torch.float64)
        return matrix @ vector + 1e-3 * noise

    ends = extreme_eigenpairs(
        noisy, D, dtype=torch.float64, device="cpu", tol=1e-6, max_products=60
    )
    assert not ends.converged
    assert ends.n_products == 60
    assert ends.lambda_min == pytest.approx(-3.0, abs=0.02)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1e12, 1e30])
def test_numbers_whose_squares_leave_the_format_change_nothing_but_the_scale(dtype, scale):
    eigenvalues = torch.linspace(-1.0, 2.0, D, dtype=dtype)
    plain, scaled = (
        extreme_eigenpairs(
            lambda v, factor=factor: factor * eigenvalues * v, D, dtype=dtype, device="cpu"
        )
        for factor in (1.0, scale)
    )
    assert scaled.converged
    assert scaled.n_products == plain.n_products
    for name in ("lambda_min", "lambda_max", "residual_min", "residual_max", "lower_bound"):
        assert getattr(scaled, name) == pytest.approx(scale * getattr(plain, name), rel=0.01)


def test_numbers_below_the_format_are_not_taken_for_converged():
    tiny = torch.linspace(-1e-44, 2e-44, D)
    ends = extreme_eigenpairs(lambda v: tiny * v, D, dtype=torch.float32, device="cpu")
    assert not ends.converged or max(ends.residual_min, ends.residual_max) == 0.0


def test_a_norm_survives_where_its_square_does_not():
    for scale in (1e-30, 1e-12, 1.0, 1e12, 1e30):
        assert norm(torch.tensor([3.0, 4.0]) * scale) == pytest.approx(5.0 * scale, rel=1e-6)
    assert norm(torch.zeros(3)) == 0.0
    assert norm(torch.tensor([1.0, math.inf])) == math.inf
    assert math.isnan(norm(torch.tensor([1.0, math.nan])))


@pytest.mark.parametrize("dtype", [torch.complex128, torch.int64])
def test_a_product_that_is_not_real_is_refused(dtype):
    with pytest.raises(ValueError, match=rf"must be real floating-point, got {dtype}"):
        extreme_eigenpairs(lambda v: v.to(dtype), 4, dtype=torch.float64, device="cpu")


def test_a_product_of_the_wrong_shape_is_refused():
    with pytest.raises(ValueError, match=r"matvec\(v\) must be of shape \[4\], got \[2\]"):
        extreme_eigenpairs(lambda v: v[:2], 4, dtype=torch.float64, device="cpu")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"dim": 0}, "dim must be at least 1, got 0"),
        ({"dtype": torch.bfloat16}, "dtype must be torch.float32 or torch.float64"),
        ({"tol": 0.0}, "tol must be positive and finite, got 0.0"),
        ({"tol": math.nan}, "tol must be positive and finite, got nan"),
        ({"max_products": 0}, "max_products must be at least 1, got 0"),
        ({"max_basis": 7}, "max_basis must be at least 8, got 7"),
        ({"n_outliers": -1}, "n_outliers must be at least 0, got -1"),
    ],
)
def test_wrong_arguments_are_named(wrong, message):
    arguments = {"dim": 4, "dtype": torch.float64, "device": "cpu"} | wrong
    with pytest.raises(ValueError, match=message):
        extreme_eigenpairs(lambda v: v, arguments.pop("dim"), **arguments)


def test_numbers_are_plain_floats():
    ends = solve(dense(SPECTRA["sign symmetric"]))
    for name in ("lambda_min", "lambda_max", "residual_min", "residual_max", "lower_bound"):
        assert type(getattr(ends, name)) is float
    assert type(ends.converged) is bool
    assert isinstance(ends, Spectrum)


# The parts


def test_a_direction_inside_the_space_is_not_added():
    space = Space(lambda v: v, 10, 5, torch.float64, torch.device("cpu"))
    one = torch.arange(10, dtype=torch.float64)
    assert space.add(one)
    assert not space.add(-3.0 * one)
    assert (space.size, space.products) == (1, 1)


def test_almost_dependent_directions_still_give_an_orthonormal_basis():
    generator = torch.Generator().manual_seed(0)
    space = Space(lambda v: v, 1000, 20, torch.float32, torch.device("cpu"))
    common = torch.randn(1000, generator=generator)
    for _ in range(20):
        assert space.add(common + 1e-3 * torch.randn(1000, generator=generator))
    gram = space.vectors.double() @ space.vectors.double().T
    assert torch.allclose(gram, torch.eye(20, dtype=torch.float64), atol=1e-6)


def test_remembered_directions_are_weighted_as_the_inverse_would_weight_them():
    eye = torch.eye(6, dtype=torch.float64)
    known = Recycled(eye[:1], eye[:3], torch.tensor([9.0, -1.2, 1.0], dtype=torch.float64))
    space = Space(lambda v: v, 6, 6, torch.float64, torch.device("cpu"))
    space.add(eye[5])
    low, _ = space.ends(*space.ritz())
    residual = torch.ones(6, dtype=torch.float64)
    pair = type(low)(-1.0, eye[5], residual, float(residual.norm()))
    direction = damped(pair, known, 9.0)
    # Curvature 9 is 10 away from −1, in units of 1; 1 is 2 away; −1.2 is 0.2 away, which a stale
    # curvature cannot tell from a third.
    assert direction.tolist() == pytest.approx([0.1, 3.0, 0.5, 1.0, 1.0, 1.0])
    assert damped(pair, None, 9.0) is residual
