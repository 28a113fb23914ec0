"""Pictures: what is measured is drawn, what is not is left out, and no global state moves."""

import dataclasses
import importlib.util
import sys

import numpy as np
import pytest
from matplotlib.image import imread

from torch_gfshadow import plotting
from torch_gfshadow.record import Record


def records(n=50, probe_every=10, **fields):
    return [
        Record(
            **{
                "step": k,
                "time": 0.1 * k,
                "step_size": 0.1,
                "loss": 3.0 / (1 + k),
                "shadow_loss": 3.1 / (1 + k),
                "distance_from_init": 0.1 * k,
                "discrepancy": 1e-3 * k,
                "solver_error": 2e-4 * k,
                "lambda_min": -5.0 / (1 + k) if k % probe_every == 0 else None,
                "lambda_min_residual": 0.1 if k % probe_every == 0 else None,
                "lambda_max": 9.0 if k % probe_every == 0 else None,
                "lambda_max_residual": 0.3 if k % probe_every == 0 else None,
                **fields,
            }
        )
        for k in range(n)
    ]


def panels(figure):
    return {axes.get_ylabel().split("$")[1]: axes for axes in figure.axes if axes.get_ylabel()}


def lines(axes):
    return {line.get_label(): line.get_xydata() for line in axes.get_lines()}


def test_the_discrepancy_is_drawn_over_a_band_of_its_solver_error():
    figure = plotting.plot_records(records())
    axes = figure.axes[1]
    drawn = lines(axes)["from gradient flow"]
    np.testing.assert_allclose(drawn, [(k, 1e-3 * k) for k in range(1, 50)])  # log axis: no zero
    assert axes.get_yscale() == "log"
    (band,) = axes.collections
    corners = band.get_paths()[0].vertices
    at_40 = corners[corners[:, 0] == 40][:, 1]
    assert (at_40.min(), at_40.max()) == pytest.approx((0.040 - 0.008, 0.040 + 0.008))


def test_eigenvalues_are_drawn_where_they_were_probed_with_their_residuals():
    axes = plotting.plot_records(records()).axes[2]
    drawn = axes.get_lines()[0].get_xydata()
    np.testing.assert_allclose(drawn, [(k, 9.0) for k in range(0, 50, 10)])
    corners = axes.collections[0].get_paths()[0].vertices[:, 1]
    assert (corners.min(), corners.max()) == pytest.approx((8.7, 9.3))
    assert axes.get_ylim()[1] > 9.0  # the curve is inside the axes


@pytest.mark.parametrize("missing", ["loss", "lambda_min", "lambda_max"])
def test_what_no_record_measured_has_no_panel(missing):
    assert len(plotting.plot_records(records()).axes) == 4
    assert len(plotting.plot_records(records(**{missing: None})).axes) == 3


def test_records_that_measured_nothing_still_make_a_picture(tmp_path):
    bare = [Record(step=0, time=0.0), Record(step=1, time=0.1, discrepancy=float("nan"))]
    plotting.plot_records(bare, tmp_path / "bare.png")
    assert (tmp_path / "bare.png").stat().st_size > 0


def test_figure1_has_a_column_per_network_and_overlays_in_the_distance_panel(tmp_path):
    path = tmp_path / "figure1.png"
    curve = ([0, 10, 20], [0.0, 0.005, 0.01])
    figure = plotting.figure1(
        {"linear": records(), "relu": records()}, path, overlays={"relu": {"finer": curve}}
    )
    assert [axes.get_title() for axes in figure.axes[:2]] == ["linear", "relu"]
    assert "finer" not in lines(figure.axes[2])
    np.testing.assert_allclose(lines(figure.axes[3])["finer"], [(10, 0.005), (20, 0.01)])
    pixels = imread(path)
    assert pixels.shape[0] > 1000
    assert len(np.unique(pixels[..., 0] + 2 * pixels[..., 2])) > 100  # not a blank sheet
    blue = np.array([0x00, 0x72, 0xB2]) / 255
    assert (np.abs(pixels[..., :3] - blue).max(axis=-1) < 0.01).sum() > 500


@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_lambda_min_of_either_sign_lies_inside_its_panel_on_the_logarithmic_part(sign):
    rows = records()
    rows = [dataclasses.replace(r, lambda_min=r.lambda_min and -sign * r.lambda_min) for r in rows]
    axes = plotting.plot_records(rows).axes[3]
    low, high = axes.get_ylim()
    assert low < min(0, sign * 5.0) < max(0, sign * 5.0) < high
    assert axes.yaxis.get_transform().linthresh <= 5.0 / 41


def test_what_the_solver_did_not_resolve_is_dotted():
    rows = records(solver_error=0.01)  # resolved from step 10 on
    drawn = lines(plotting.plot_records(rows).axes[1])
    solid = drawn["from gradient flow"]
    dotted = drawn["… not resolved"]
    assert solid[np.isfinite(solid[:, 1]), 0].min() == 10
    assert dotted[np.isfinite(dotted[:, 1]), 0].max() == 9
    assert "… not resolved" not in lines(plotting.plot_records(records()).axes[1])


def test_an_unresolved_band_does_not_set_the_scale():
    figure = plotting.plot_records(records(solver_error=1.0))
    assert figure.axes[1].get_ylim()[0] > 1e-4


def test_flow_time_is_shown_only_where_it_is_proportional_to_the_step():
    def has_clock(rows):
        figure = plotting.plot_records(rows)
        return any("flow time" in a.get_xlabel() for a in figure.axes[0].child_axes)

    assert has_clock(records())
    scheduled = [Record(step=k, time=0.1 * k**0.5, loss=1.0) for k in range(10)]
    assert not has_clock(scheduled)


def test_the_edge_of_stability_is_a_line_once_it_is_near():
    near, far = records(lambda_max=15.0), records(lambda_max=1.0)  # 2/η = 20
    assert len(plotting.plot_records(near).axes[2].get_lines()) == 2
    assert len(plotting.plot_records(far).axes[2].get_lines()) == 1


def test_under_a_schedule_the_edge_is_a_curve_where_it_is_near():
    sizes = [0.2] * 25 + [1e-9] * 25  # 2/η = 10, then far away
    rows = [dataclasses.replace(r, step_size=s) for r, s in zip(records(), sizes, strict=True)]
    axes = plotting.plot_records(rows).axes[2]
    edge = axes.get_lines()[1].get_xydata()
    np.testing.assert_allclose(edge, [(k, 10.0) for k in range(25)])
    assert axes.get_ylim()[1] < 100
    assert [text.get_text() for text in axes.texts] == ["dashed: edge of stability at $2/\\eta$"]


def bounded(kinds, floor=-40.0):
    """A run whose Theorem 2 is of one kind after the other, with a certified limit of λ_min."""
    out = []
    for record in records():
        cells = {}
        if record.lambda_min is not None:
            k = record.step
            cells["theorem2"] = {"of": "discrepancy", "value": 0.01 * k, "kind": kinds[k // 10]}
            cells["lemma2"] = {"of": "lambda_min", "value": floor / (1 + k), "kind": "certified"}
        out.append(dataclasses.replace(record, bounds=cells))
    return out


def test_bounds_are_drawn_in_the_panel_of_what_they_limit_one_style_per_kind():
    figure = plotting.plot_records(bounded(["estimated"] * 3 + ["failed"] * 2))
    distances, lambda_min = figure.axes[1], figure.axes[3]
    estimate = lines(distances)["Theorem 2 (estimate)"]
    np.testing.assert_allclose(estimate[:3], [(0, np.nan), (10, 0.1), (20, 0.2)])
    beyond = lines(distances)["Theorem 2 (void)"]
    np.testing.assert_allclose(beyond, [(20, 0.2), (30, 0.3), (40, 0.4)])  # where the other ends
    certified = lines(lambda_min)["Lemma 2 (certified)"]
    np.testing.assert_allclose(certified, [(k, -40.0 / (1 + k)) for k in range(0, 50, 10)])
    styles = {line.get_label(): line._dash_pattern for line in distances.get_lines()}
    assert styles["Theorem 2 (estimate)"] != styles["Theorem 2 (void)"]
    assert lambda_min.get_ylim()[0] <= -40.0
    assert "Lemma 2 (certified)" in {t.get_text() for t in lambda_min.get_legend().get_texts()}


def test_a_huge_bound_does_not_rule_its_panel():
    huge = [
        dataclasses.replace(r, bounds={"theorem2": {"value": 1e200, "kind": "estimated"}})
        for r in bounded(["estimated"] * 5, floor=-1e9)
    ]
    axes = plotting.plot_records(huge).axes[1]
    assert axes.get_ylim()[1] <= 1e3 * 4.9 * 1.01
    floors = plotting.plot_records(bounded(["estimated"] * 5, floor=-1e9)).axes[3]
    assert floors.get_ylim()[0] > -1e4


def test_pyplot_is_not_imported_and_parameters_do_not_move():
    import matplotlib

    before = dict(matplotlib.rcParams)
    known = "matplotlib.pyplot" in sys.modules
    plotting.plot_records(records())
    assert ("matplotlib.pyplot" in sys.modules) == known
    assert dict(matplotlib.rcParams) == before


@pytest.mark.parametrize(
    ("runs", "message"),
    [({}, "got no network"), ({"linear": []}, "got none for linear")],
)
def test_nothing_to_draw_is_refused(runs, message):
    with pytest.raises(ValueError, match=message):
        plotting.figure1(runs)


def test_a_missing_matplotlib_names_the_extra_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install \"torch-gfshadow\[demo\]\""):
        plotting.plot_records(records())


def test_in_a_notebook_the_figure_is_shown_as_a_picture_without_pyplot():
    formatters = pytest.importorskip("IPython.core.formatters")
    known = "matplotlib.pyplot" in sys.modules
    data, _ = formatters.DisplayFormatter().format(plotting.plot_records(records()))
    assert data["image/png"].startswith(b"\x89PNG")
    assert ("matplotlib.pyplot" in sys.modules) == known
