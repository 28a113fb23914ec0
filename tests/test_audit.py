import math

import pytest
import torch
from torch import nn
from zoo import IN, OUT, layout_of, make, mlp, squared

from torch_gfshadow.audit import Audit, compare
from torch_gfshadow.ledger import Ledger
from torch_gfshadow.objective import Objective

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def vector(n=50, dtype=torch.float64, seed=0):
    return torch.randn(n, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_gradient_matches_itself(dtype):
    g = vector(dtype=dtype)
    assert str(compare(g, g.clone())) == "match"
    assert compare(g, g).cosine == pytest.approx(1.0, abs=1e-12)
    assert compare(g, g).scale == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("c", [0.014, 0.5, 4.0, 1024.0])
def test_a_multiple_is_scaled_and_says_by_how_much(dtype, c):
    g = vector(dtype=dtype)
    audit = compare(c * g, g)
    assert audit.kind == "scaled"
    assert audit.scale == pytest.approx(c, rel=1e-2 if dtype.itemsize == 2 else 1e-6)
    assert str(audit) == f"scaled {audit.scale:.4g}"


def test_the_scale_is_the_least_squares_one():
    used, own = vector(seed=1), vector(seed=2)
    used = 3.0 * own + 1e-7 * used
    audit = compare(used, own)
    assert audit.scale == pytest.approx(float(used @ own / (own @ own)), rel=1e-12)


@pytest.mark.parametrize(
    ("dtype", "small", "large"),
    [
        (torch.float64, 1e-7, 1e-5),
        (torch.float32, 1e-4, 1e-2),
        (torch.bfloat16, 3e-3, 1e-1),
        (torch.float16, 3e-3, 1e-1),
    ],
)
def test_tolerance_follows_the_precision(dtype, small, large):
    g, noise = vector(5000), vector(5000, seed=1)
    noise -= noise @ g / (g @ g) * g
    noise *= g.norm() / noise.norm()
    own = g.to(dtype)
    assert compare((g + small * noise).to(dtype), own).kind == "match"
    assert compare((2 * (g + small * noise)).to(dtype), own).kind == "scaled"
    assert compare((g + large * noise).to(dtype), own).kind == "mismatch"


def test_the_precision_of_a_mixed_loop_can_be_said():
    g, noise = vector(5000, torch.float32), vector(5000, torch.float32, seed=1)
    used = g + 6e-3 * noise
    assert compare(used, g).kind == "mismatch"
    assert compare(used, g, dtype=torch.bfloat16).kind == "match"


def test_the_opposite_direction_is_a_mismatch():
    g = vector()
    assert compare(-g, g).kind == "mismatch"
    assert compare(-g, g).cosine == pytest.approx(-1.0)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_is_a_mismatch(bad):
    g = vector()
    broken = g.clone()
    broken[3] = bad
    for pair in ((broken, g), (g, broken), (broken, broken)):
        assert str(compare(*pair)) == "mismatch"


def test_zero_matches_zero_and_nothing_else():
    g, zero = vector(), torch.zeros(50, dtype=torch.float64)
    assert compare(zero, zero).kind == "match"
    assert compare(zero, g).kind == "mismatch"
    assert compare(g, zero).kind == "mismatch"


def test_gradients_too_small_to_hold_digits_match():
    g = vector().abs() + 0.5
    used, own = (1e-322 * g, 1e-322 * (g + 0.3))  # two to four units of the last place there is
    assert compare(used, own).kind == "match"
    assert compare(1e14 * used, 1e14 * own).kind == "mismatch"
    assert compare(used, g).kind == "mismatch"


def test_below_an_absolute_scale_everything_is_rounding():
    used, own = 1e-9 * vector(seed=1), 1e-9 * vector(seed=2)
    assert compare(used, own).kind == "mismatch"
    assert compare(used, own, atol=1e-7).kind == "match"


@pytest.mark.parametrize("size", [1e-300, 1e-160, 1e150])
def test_extreme_sizes_neither_underflow_nor_overflow(size):
    g = vector()
    assert compare(size * g, size * g).kind == "match"
    assert compare(2 * size * g, size * g).scale == pytest.approx(2.0)


def test_pending_and_none_print_as_themselves():
    assert str(Audit("pending")) == "pending"
    assert str(Audit("none")) == "none"


# ---- against training loops -----------------------------------------------------------------


def audited(train, *, model=None, batch=None, precision=torch.float32, **kwargs):
    """Audit the gradient ``train(model, batch)`` leaves in ``.grad``."""
    if model is None:
        model, batch = make("mlp", precision)
    objective = Objective(model, squared, batch, layout_of(model), Ledger())
    train(model, batch)
    used = objective.layout.flatten([p.grad for p in objective.layout.params])
    return compare(used, objective.initial[1], **kwargs)


def plain(model, batch):
    squared(model, batch).backward()


def test_the_same_loss_matches():
    assert str(audited(plain)) == "match"
    assert str(audited(plain, precision=torch.float64)) == "match"


def test_chunks_in_another_order_of_summation_match():
    torch.manual_seed(0)
    model = mlp()
    x, y = torch.randn(999, IN), torch.randn(999, OUT)
    chunks = [(x[i : i + 10], y[i : i + 10]) for i in range(0, 999, 10)]
    objective = Objective(model, squared, chunks, layout_of(model), Ledger())
    squared(model, (x, y)).backward()
    used = objective.layout.flatten([p.grad for p in model.parameters()])
    assert str(compare(used, objective.initial[1])) == "match"


def test_clipping_and_accumulation_are_scaled():
    def clipped(model, batch):
        plain(model, batch)
        nn.utils.clip_grad_norm_(model.parameters(), 0.01)

    def accumulated(model, batch):
        for _ in range(4):
            plain(model, batch)

    assert audited(clipped).kind == "scaled"
    assert audited(clipped).scale < 0.1
    assert str(audited(accumulated)) == "scaled 4"


def test_a_forgotten_penalty_and_another_batch_are_mismatches():
    def penalised(model, batch):
        (squared(model, batch) + 0.01 * sum((p**2).sum() for p in model.parameters())).backward()

    def other(model, batch):
        squared(model, (batch[0].flip(0), batch[1])).backward()

    assert audited(penalised).kind == "mismatch"
    assert audited(other).kind == "mismatch"


def test_bfloat16_autocast_matches_only_at_its_own_precision():
    def autocast(model, batch):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = squared(model, batch)
        loss.backward()

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, OUT))
    batch = (torch.randn(200, 64), torch.randn(200, OUT))
    assert audited(autocast, model=model, batch=batch).kind == "mismatch"
    model.zero_grad()
    coarse = audited(autocast, model=model, batch=batch, dtype=torch.bfloat16)
    assert coarse.kind == "match"
