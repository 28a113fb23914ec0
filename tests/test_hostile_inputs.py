"""`gfshadow bound eval` under hostile input: one clear sentence, no warning, and strict JSON."""

import json
import math
import warnings

import pytest

from torch_gfshadow.cli._cases import answer, evaluators
from torch_gfshadow.plugins import Plugins

KNOWN = evaluators(Plugins())
WS, X, Y = (
    [[[0.3, 0.1], [0.2, -0.4]], [[0.5, 0.6]]],
    [[1.0, 2], [0.5, -1], [0, 1]],
    [[1.0], [0], [2]],
)
PLANE = {"X": [[1.0, 1], [1, -1]], "Y": [1.0, 1.0]}  # whitened, ‖Λ_yx‖ = 1
START = [[[0.4, 0.0], [0, 0]], [[0.4, 0.0]]]
EQ7 = dict(breaks=[0, 1, 2], m=[0.5, -0.3], beta=2.0, gamma=3.0, eps=0.1, init_dist=0.0)
BALANCED = dict(n=3, r0=0.2, nu=0.5)
INDEX = [[[0, 1], [1, 0]], [[0, 1]]]
INPUTS = {
    "eq7": EQ7,
    "theorem2": dict(breaks=[0, 1, 2], m=[0.5, -0.3], delta=[0.1, 0.2], R0=0.0),
    "weight_decay": {**EQ7, "weight_decay": 0.1, "theta_norm": 1.0},
    "cor1": dict(m=0.5, beta=2.0, f0=1.0, eps=0.1, init_dist=0.0, horizon=5.0),
    "lemma1": dict(Ws=WS, dWs=WS, X=X, Y=Y, loss="square"),
    "lemma2": dict(Ws=WS, X=X, Y=Y, loss="square"),
    "prop1": dict(dims=[2, 2, 2, 1], X=X, Y=Y, loss="square", target=-5.0),
    "prop2": dict(n=3, d0=5, dn=1, grad_fro=0.8, grad_spec=0.8, end_to_end_spec=0.3,
                  W_specs=[0.7, 0.7, 0.6], eps=0.1),
    "eq17": dict(**BALANCED, eps_bar=0.05),
    "eq18": dict(**BALANCED, t=1.0, eps=0.1),
    "proposition3": dict(**BALANCED, eps_bar=0.05, eps=0.1),
    "eq19": dict(**BALANCED, eps_tilde=0.1),
    "eq20": dict(**BALANCED, eps_tilde=0.1, eta=1e-4),
    "theorem4": dict(Ws=START, **PLANE, eps_tilde=0.1, loss="square"),
    "approximate_balance": dict(Ws=START, **PLANE, eps_tilde=0.1),
    "tight_step": dict(Ws=START, **PLANE, eps_tilde=0.1),
    "corollary2": dict(dims=[2, 2, 1], **PLANE, eps_tilde=0.1, seed=0),
    "exact_dynamics": dict(**BALANCED, times=[0, 1, 2]),
    "procedure1": dict(A=[[0.1, -0.2, 0.1]], dims=[3, 2, 1]),
    "nonlinear_bound": dict(Ws=WS, X=X, Y=Y, loss="square", slope_negative=0.0, slope_positive=1.0),
    "conv_bound": dict(index=INDEX, weights=[[0.3, 0.4], [0.5, 0.6]], X=X, Y=Y, loss="square",
                       slope_negative=0.0, slope_positive=1.0),
    "tube_step": dict(R=0.1, h=0.01, m=1.5, c0=0.0, c1=0.3, c2=0.2),
    "worst_case": dict(a=0.3, m=1.0, x=0.5, y=0.1),
    "necessary_step_size": dict(a=0.3, m=1.0, eps=0.1, horizon=3.0),
}  # fmt: skip
HOSTILE = [
    math.nan, math.inf, -math.inf, -1.0, 0.0, -5, 2.5, 10**400, None, True, "x", "0.1", "NaN",
    [], {}, [math.nan], [None], [[None]], [[]], [[[]]], [["a"]], [1, 2, 3], [[1], [2, 3]],
    [[math.inf, 1.0], [1.0, 1.0]], [[[1e200]]],
]  # fmt: skip


def ask(result, inputs):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made = answer({"id": 1, "result": result, "inputs": inputs}, KNOWN)
    json.dumps(made, allow_nan=False)
    return made


@pytest.mark.parametrize("result", INPUTS)
def test_good_input_is_answered(result):
    made = ask(result, INPUTS[result])
    assert made["value"] is not None, made["status"]
    assert made["certified"] is (result not in ("eq20", "necessary_step_size"))


@pytest.mark.parametrize("result", INPUTS)
def test_hostile_input_is_answered_or_refused_in_one_sentence(result, capfd):
    for name in INPUTS[result]:
        for value in HOSTILE:
            made = ask(result, {**INPUTS[result], name: value})
            if made["value"] is None:
                assert " must be " in made["status"], (name, value, made)
                assert "ones it cannot use" not in made["status"], (name, value, made)
                assert "\n" not in made["status"]
                assert not made["certified"]
    assert capfd.readouterr().err == ""  # LAPACK complains there


@pytest.mark.parametrize("result", INPUTS)
def test_a_missing_or_unknown_input_is_named(result):
    made = ask(result, {**INPUTS[result], "surprise": 1})
    assert "with surprise" in made["status"]
    for name in set(INPUTS[result]) - {"loss", "init_dist", "R0", "eps_tilde", "seed"}:
        rest = {k: v for k, v in INPUTS[result].items() if k != name}
        made = ask(result, rest)
        assert made["value"] is not None or " must be " in made["status"]


BIG = {"Ws": [[[1e160, 1], [1, 1]], [[1, 1]]]}
REFUSED = {
    "depth 1": ("theorem4", {"Ws": [[[0.1, 0.1]]]}, "depth of Ws must be at least 2, got 1"),
    "zero end-to-end matrix": ("theorem4", {"Ws": [[[0.0, 0], [0, 0]], [[0.0, 0]]]},
                               "must be in (0, 0.2], got 0.0"),
    "nu = -1": ("theorem4", {"Ws": [[[-0.4, 0.0], [0, 0]], [[0.4, 0.0]]]},
                "must be in (−1, 1], got -1"),
    "too large": ("theorem4", {"Ws": [[[0.5, 0.0], [0, 0]], [[0.5, 0.0]]]},
                  "must be in (0, 0.2], got 0.25"),
    "not whitened": ("theorem4", {"X": [[1.0, 2], [1, -1]]}, "‖Λ_xx − I‖ of X must be at most"),
    "not squared": ("theorem4", {"loss": "logistic"}, "loss must be the square loss"),
    "fewer samples than inputs": ("theorem4", {"X": [[1.0, 0.0]], "Y": [1.0]}, "‖Λ_xx − I‖"),
    "eps": ("eq18", {"eps": 0.2}, "eps must be in (0, 1/(2n)] = (0, 0.166667], got 0.2"),
    "negative time": ("eq18", {"t": -1}, "t must be not negative and finite, got -1"),
    "shapes": ("lemma2", {"X": [[1.0, 2, 3]]}, "X must be of shape any × 2, got 1 × 3"),
    "NaN": ("lemma2", {"Y": [[1.0], [math.nan], [2]]}, "Y must be finite, got nan"),
    "overflow": ("nonlinear_bound", {"Ws": [[[1e200, 1e200]] * 2, [[1e200, -1e200]]]},
                 "the outputs h(x_i) must be finite"),
    "overflow of shared weights": ("conv_bound", {"weights": [[1e200, 1e200], [1e200, -1e200]]},
                                   "the outputs h(x_i) must be finite"),
    "a part of a width": ("prop1", {"dims": [2, 2.5, 2, 1]}, "dims[1] must be an integer"),
    "labels of the logistic loss": ("nonlinear_bound", {"loss": "logistic"}, "Y must be ±1"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_the_assumption_is_named_with_its_number(name):
    result, change, message = REFUSED[name]
    made = ask(result, {**INPUTS[result], **change})
    assert made["value"] is None
    assert message in made["status"]


@pytest.mark.parametrize("result", ["lemma1", "lemma2"])
def test_a_hessian_that_overflows_has_no_eigenvalue(result):
    made = ask(result, {**INPUTS[result], **BIG})
    assert made["value"]["lambda_min"] is None
    assert made["status"] == "ok"


@pytest.mark.parametrize("result", ["lemma2", "nonlinear_bound", "conv_bound", "prop1"])
def test_a_loss_may_have_a_comment_and_labels_may_be_a_list(result):
    plain = ask(result, INPUTS[result])
    flat = {"loss": "Square: 0.5*||h - y||^2, mean over samples", "Y": [y for (y,) in Y]}
    assert ask(result, {**INPUTS[result], **flat})["value"] == plain["value"]


def test_steps_longer_than_equation_19_allows_certify_nothing():
    made = ask("eq20", INPUTS["eq20"])
    assert (made["certified"], made["value"]["k"]) == (False, "2315607")
    assert "no guarantee" in made["status"]
    small = ask("eq20", {**INPUTS["eq20"], "eta": 1e-23})
    assert (small["certified"], small["status"]) == (True, "ok")
