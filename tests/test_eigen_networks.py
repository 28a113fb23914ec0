"""Both ends along runs of a small tanh network, against its dense Hessians and ARPACK's counts.

Under gradient descent λ_min shrinks to a small part of λ_max, into a dense cluster at 0, and
low eigenvalues cross: what makes probes of real networks hard.
"""

from __future__ import annotations

from statistics import median

import numpy as np
import pytest
import torch
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import nn
from torch.func import functional_call, hessian

from torch_gfshadow.eigen import extreme_eigenpairs
from torch_gfshadow.experiments.data import mnist_digits

PERIOD, PROBES = 10, 15
STEP_SIZE = 0.1


def run(seed):
    """Dense Hessians at every ``PERIOD``-th iterate of a run, in float64."""
    data = mnist_digits(200, download=False)
    images = data.images.double().reshape(-1, 28, 28)[:, 4:24, 4:24]
    images = nn.functional.avg_pool2d(images, 4).reshape(-1, 25)
    wanted = nn.functional.one_hot(data.labels, 10).double()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers = [nn.Linear(25, 10), nn.Tanh(), nn.Linear(10, 10), nn.Tanh(), nn.Linear(10, 10)]
    model = nn.Sequential(*layers).double()
    shapes = {name: p.shape for name, p in model.named_parameters()}

    def loss(theta):
        parts = theta.split([shape.numel() for shape in shapes.values()])
        named = {
            name: p.view(shape) for (name, shape), p in zip(shapes.items(), parts, strict=True)
        }
        return 0.5 * (functional_call(model, named, images) - wanted).square().sum(1).mean()

    theta = nn.utils.parameters_to_vector(model.parameters()).detach()
    gradient, dense = torch.func.grad(loss), hessian(loss)
    for step in range(PERIOD * PROBES + 1):
        if step % PERIOD == 0:
            matrix = dense(theta)
            yield 0.5 * (matrix + matrix.T)
        theta = theta - STEP_SIZE * gradient(theta)


@pytest.fixture(scope="module", params=[0, 1])
def matrices(request):
    return list(run(request.param))


def probe(matrix, **kwargs):
    kwargs = {"dtype": matrix.dtype, "device": "cpu", "max_products": 300} | kwargs
    return extreme_eigenpairs(lambda v: matrix @ v, len(matrix), **kwargs)


def missed(ends, matrix):
    """Whether a true end lies outside its value and residual."""
    exact = torch.linalg.eigvalsh(matrix)
    low = ends.lambda_min - ends.residual_min > float(exact[0]) + 1e-9
    return low or ends.lambda_max + ends.residual_max < float(exact[-1]) - 1e-9


def arpack(matrix):
    """Products of eigsh for both ends at the same residual."""
    count = 0

    def image(v):
        nonlocal count
        count += 1
        return matrix.numpy() @ v

    operator = LinearOperator(tuple(matrix.shape), matvec=image, dtype=np.float64)
    for which in ("SA", "LA"):
        start = np.random.default_rng(0).standard_normal(len(matrix))
        eigsh(operator, k=1, which=which, tol=0.01, v0=start)
    return count


def along(matrices):
    """Warm probes along the run."""
    found = [probe(matrices[0])]
    for matrix in matrices[1:]:
        found.append(probe(matrix, start=found[-1]))
    return found


def test_warm_probes_cost_twelve_products_and_miss_no_end(matrices):
    found = along(matrices)
    assert all(ends.converged for ends in found)
    assert sum(missed(*both) for both in zip(found, matrices, strict=True)) == 0
    assert median(ends.n_products for ends in found[1:]) <= 12


def test_a_refresh_costs_less_than_45_products_and_its_bound_holds(matrices):
    found = along(matrices)
    for k in range(1, len(matrices), 3):
        ends = probe(matrices[k], start=found[k - 1], fresh=True, seed=k)
        assert ends.converged
        assert ends.n_products <= 45
        assert not missed(ends, matrices[k])
        assert (ends.age, ends.failure_probability) == (0, 0.01)
        assert ends.lower_bound <= float(torch.linalg.eigvalsh(matrices[k])[0])


def test_cold_probes_cost_half_of_arpack(matrices):
    ours = [probe(matrix) for matrix in matrices[::5]]
    assert not any(missed(*both) for both in zip(ours, matrices[::5], strict=True))
    theirs = sum(arpack(matrix) for matrix in matrices[::5])
    assert sum(ends.n_products for ends in ours) <= 0.5 * theirs
