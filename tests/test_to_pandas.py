"""The table of a run: numbers stay numbers, what is nested gets columns."""

import builtins
import math

import numpy as np
import pytest

from torch_gfshadow.record import FIELDS, Record
from torch_gfshadow.testing import toy_run

pd = pytest.importorskip("pandas")


def test_the_table_has_a_row_per_record_and_numeric_columns():
    shadow = toy_run(steps=6, bounds=["theorem2"], probe_every=1)
    table = shadow.to_pandas()
    assert list(table["step"]) == list(range(7))
    assert set(FIELDS) - {"bounds", "extras"} <= set(table.columns)
    np.testing.assert_array_equal(table["discrepancy"], [r.discrepancy for r in shadow.records])
    for name in ("discrepancy", "solver_error", "lambda_min", "local_defect", "edge"):
        assert table[name].dtype == np.float64
    limit = table["bounds.theorem2.value"]
    assert limit.iloc[-1] == shadow.records[-1].bounds["theorem2"]["value"]
    assert table["extras.run.path_length"].iloc[-1] > 0
    assert not any(isinstance(v, dict) for v in table.iloc[-1])


def test_what_was_not_measured_is_nan_and_an_unmeasured_text_is_not():
    flat = Record(step=0, time=0.0, extras={"a": {"b": {"c": 1}, "d": [1, 2]}, "e": 2.0}).to_flat()
    assert math.isnan(flat["lambda_max"])
    assert flat["audit"] == "none"
    assert flat["extras.a.b.c"] == 1
    assert flat["extras.a.d"] == [1, 2]
    assert flat["extras.e"] == 2.0
    assert "extras" not in flat


def test_a_missing_pandas_names_the_extra(monkeypatch):
    shadow = toy_run(steps=1)
    real = builtins.__import__

    def missing(name, *args, **kwargs):
        if name == "pandas":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(ImportError, match=r"pip install \"torch-gfshadow\[pandas\]\""):
        shadow.to_pandas()
