"""``gfshadow plugins new`` and ``check``: what is written installs, is tested, and is kept to."""

import json
import os
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner

from torch_gfshadow.cli import main
from torch_gfshadow.scaffold import KINDS, Names, write_package
from torch_gfshadow.testing import check_package
from torch_gfshadow.testing import isolated_plugins as isolated

ROOT = Path(__file__).parent.parent


def gfshadow(*arguments):
    with isolated():
        return CliRunner().invoke(main, ["plugins", *map(str, arguments)])


@pytest.fixture(scope="module")
def packages(tmp_path_factory):
    """One package of each kind, as the command writes it."""
    parent = tmp_path_factory.mktemp("written")
    for kind in KINDS:
        outcome = gfshadow("new", f"my-{kind}", "--kind", kind, "--directory", parent)
        assert outcome.exit_code == 0, outcome.output
    return {kind: parent / f"gfshadow-my-{kind}" for kind in KINDS}


@pytest.fixture(scope="module")
def environment(packages, tmp_path_factory):
    """A fresh virtual environment with all of them installed; run a command in it.

    It sees this environment's packages, so that nothing has to be downloaded.
    """
    venv = tmp_path_factory.mktemp("venv")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    python = venv / "bin" / "python"
    ask = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = subprocess.run([python, "-c", ask], capture_output=True, text=True, check=True)
    paths = "\n".join([str(ROOT), sysconfig.get_path("purelib")])
    (Path(site.stdout.strip()) / "outside.pth").write_text(paths)
    clean = {k: v for k, v in os.environ.items() if not k.startswith("TORCH_GFSHADOW_")}
    clean["PYTHONDONTWRITEBYTECODE"] = "1"

    def run(*command, cwd=None):
        return subprocess.run(
            [python, "-m", *map(str, command)],
            cwd=cwd,
            env=clean,
            capture_output=True,
            text=True,
            check=False,
        )

    options = ["-q", "--no-deps", "--no-build-isolation", "--disable-pip-version-check"]
    done = run("pip", "install", *options, *packages.values())
    assert done.returncode == 0, done.stderr
    return run


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_written_installs_in_a_fresh_environment_and_its_tests_pass(
    kind, packages, environment
):
    done = environment("pytest", "-q", "-p", "no:cacheprovider", cwd=packages[kind])
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout
    assert "skipped" not in done.stdout


def test_the_fresh_environment_lists_them_with_name_and_version(environment):
    rows = json.loads(environment("torch_gfshadow", "plugins", "list", "--json").stdout)
    mine = {row["kind"]: row for row in rows if row["plugin"].startswith("gfshadow-my-")}
    assert set(mine) == {f"{kind}s" for kind in KINDS}
    for kind in KINDS:
        row = mine[f"{kind}s"]
        assert (row["name"], row["plugin"]) == (f"my_{kind}", f"gfshadow-my-{kind}")
        assert row["version"] == "0.1.0"


@pytest.mark.parametrize("name", ["gfshadow_my_logger"])
def test_an_installed_package_passes_the_check(name, environment):
    done = environment("torch_gfshadow", "plugins", "check", name, "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    found = {item["what"]: item for item in json.loads(done.stdout)}
    assert {item["outcome"] for item in found.values()} == {"pass"}
    assert {"typed", "hooks", "loads fast", "leaves training bit-identical"} <= set(found)
    assert "logger my_logger" in found


def test_what_is_written_is_formatted_and_clean(packages):
    config = f"--config={ROOT / 'pyproject.toml'}"
    tests = ["--extend-exclude", "tests"]  # held to less, see [tool.ruff] of this repository
    for check in (["check", "-q", *tests], ["format", "-q", "--check"]):
        done = subprocess.run(
            ["ruff", *check, "--no-cache", config, *packages.values()],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("kind", KINDS)
def test_a_package_is_complete(kind, packages):
    root, package = packages[kind], f"gfshadow_my_{kind}"
    expected = {
        ".github/workflows/ci.yml",
        ".gitignore",
        "CHANGELOG.md",
        "README.md",
        "pyproject.toml",
        f"{package}/__init__.py",
        f"{package}/my_{kind}.py",
        f"{package}/py.typed",
        f"tests/test_my_{kind}.py",
    }
    assert {str(p.relative_to(root)) for p in root.rglob("*") if p.is_file()} >= expected
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    assert project["entry-points"]["torch_gfshadow"] == {f"my_{kind}": package}
    for path in root.rglob("*.*"):
        if path.is_file() and path.suffix not in (".pyc",):
            assert "$" not in path.read_text(encoding="utf-8"), path


# --- names


@pytest.mark.parametrize("name", ["gfshadow-two-words", "two-words", "two_words"])
def test_one_name_gives_all_the_others(name):
    assert Names.of(name, "probe") == Names(
        distribution="gfshadow-two-words",
        package="gfshadow_two_words",
        name="two_words",
        cls="TwoWordsProbe",
        kind="probe",
    )


def test_a_class_does_not_say_its_kind_twice():
    assert Names.of("my-probe", "probe").cls == "MyProbe"


@pytest.mark.parametrize("name", ["", "2nd", "Big", "a--b", "-a", "a b", "../up", "a.b", "über"])
def test_a_name_that_cannot_be_one_is_refused(name, tmp_path):
    with pytest.raises(ValueError, match="name must be small letters and digits"):
        write_package(name, "probe", tmp_path)
    assert not any(tmp_path.iterdir())


def test_an_unknown_kind_and_a_taken_name_are_answered_with_what_is_known(tmp_path):
    with pytest.raises(ValueError, match="Pass one of bound, init, logger, probe, flow, solver"):
        write_package("mine", "colour", tmp_path)
    outcome = gfshadow("new", "jsonl", "--kind", "logger", "--directory", tmp_path)
    assert outcome.exit_code == 2
    message = "name must be new among the loggers, got 'jsonl'. Registered: console, csv"
    assert message in outcome.stderr


def test_nothing_is_overwritten(tmp_path):
    write_package("mine", "probe", tmp_path)
    before = (tmp_path / "gfshadow-mine" / "README.md").stat().st_mtime_ns
    with pytest.raises(ValueError, match=r"directory must be new or empty, got .*gfshadow-mine"):
        write_package("mine", "bound", tmp_path)
    assert (tmp_path / "gfshadow-mine" / "README.md").stat().st_mtime_ns == before


def test_new_says_what_it_wrote_as_json(tmp_path):
    outcome = gfshadow("new", "mine", "--kind", "init", "--directory", tmp_path, "--json")
    said = json.loads(outcome.output)
    assert said["directory"] == str(tmp_path / "gfshadow-mine")
    assert all(Path(path).is_file() for path in said["files"])


# --- check


def test_checking_what_is_not_installed_lists_what_is():
    with pytest.raises(ValueError, match="package must be a registered name, got 'gfshadow-none'"):
        list(check_package("gfshadow-none"))


BAD = """
import torch
from torch_gfshadow import hookimpl
from torch_gfshadow.specs import ProbeSpec

class Draws:
    name, every = "draws", None

    def measure(self, point):
        return {"value": float(torch.rand(()))}

@hookimpl
def gfshadow_probes():
    return [ProbeSpec(name="draws", factory=Draws, summary="draws from the run's own stream")]
"""


@pytest.mark.parametrize(
    ("source", "failing"),
    [
        (BAD, {"probe draws"}),
        ("from torch_gfshadow import hookimpl\n@hookimpl\ndef gfshadow_stepp(): ...", {"hooks"}),
        ("raise OSError('gone')", {"load bad_plugin"}),
    ],
)
def test_a_bad_package_fails_where_it_is_bad(source, failing, tmp_path, monkeypatch):
    folder = tmp_path / "gfshadow_bad-0.1.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: gfshadow-bad\nVersion: 0.1\n")
    (folder / "entry_points.txt").write_text("[torch_gfshadow]\nbad = bad_plugin\n")
    (tmp_path / "bad_plugin.py").write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{ROOT}")
    try:
        found = list(check_package("bad"))
    finally:
        sys.modules.pop("bad_plugin", None)
    failed = {item.what: item.detail for item in found if item.outcome == "fail"}
    assert failing <= set(failed)
    assert {"summary", "license", "requires torch-gfshadow", "typed"} <= set(failed)
    assert all(failed.values())
