"""Installed plugins: packages that importlib.metadata really finds, in throw-away directories."""

import importlib
import re
import subprocess
import sys
import textwrap
import tomllib
import warnings
from pathlib import Path

import pytest

from torch_gfshadow import discovery
from torch_gfshadow.discovery import forget_installed
from torch_gfshadow.errors import PluginError
from torch_gfshadow.plugins import Plugins
from torch_gfshadow.testing import assert_hooks_valid, assert_logger_contract

TENSORBOARD = Path(__file__).parent.parent / "plugins" / "gfshadow-tensorboard"
GOOD = """
    from torch_gfshadow import hookimpl
    from torch_gfshadow.loggers import MemoryLogger
    from torch_gfshadow.specs import LoggerSpec

    @hookimpl
    def gfshadow_loggers():
        return [LoggerSpec(name={name!r}, factory=MemoryLogger, summary="a plugin's", source="it")]
"""
MISSPELT = """
    from torch_gfshadow import hookimpl

    @hookimpl
    def gfshadow_stepp(record): ...
"""


def good(name):
    return {f"{name}_plugin": GOOD.format(name=name)}


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Put a distribution on the path: metadata as an installer writes it, and its module."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delenv("TORCH_GFSHADOW_DISABLED_PLUGINS", raising=False)
    modules = []

    def put(distribution, version, entry_points, sources=None):
        folder = tmp_path / f"{distribution.replace('-', '_')}-{version}.dist-info"
        folder.mkdir()
        about = f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n"
        (folder / "METADATA").write_text(about)
        lines = [f"{name} = {target}" for name, target in entry_points.items()]
        (folder / "entry_points.txt").write_text("\n".join(["[torch_gfshadow]", *lines, ""]))
        for module, source in (sources or {}).items():
            (tmp_path / f"{module}.py").write_text(textwrap.dedent(source))
            modules.append(module)
        only = [*(path.name.split("-")[0] for path in tmp_path.glob("*.dist-info"))]
        # Whatever else this machine has installed stays out of these tests.
        monkeypatch.setenv("TORCH_GFSHADOW_LOAD_PLUGINS", ",".join(only))
        importlib.invalidate_caches()
        forget_installed()

    yield put
    forget_installed()
    for module in modules:
        sys.modules.pop(module, None)


def test_an_installed_plugin_is_found_and_described_with_name_and_version(install):
    install("gfshadow-demo", "1.2.3", {"demo": "demo_plugin"}, good("demo"))
    plugins = Plugins()
    assert "demo" in plugins.names("loggers")
    assert plugins.describe()[4] == {
        "name": "demo",
        "kind": "loggers",
        "summary": "a plugin's",
        "plugin": "gfshadow-demo",
        "version": "1.2.3",
        "source": "it",
    }


def test_an_installed_plugin_is_imported_once_and_shared_by_sessions(install):
    install("gfshadow-demo", "1", {"demo": "demo_plugin"}, good("demo"))
    first, second = Plugins().specs("loggers"), Plugins().specs("loggers")
    module = sys.modules["demo_plugin"]
    assert first["demo"].factory is second["demo"].factory is module.MemoryLogger


def test_an_entry_point_may_name_an_object_inside_a_module(install):
    source = """
        from torch_gfshadow import hookimpl

        class Plugin:
            heard = []

            @hookimpl
            def gfshadow_attach(self, session):
                self.heard.append(session)

        plugin = Plugin()
    """
    install("gfshadow-demo", "1", {"demo": "demo_plugin:plugin"}, {"demo_plugin": source})
    Plugins().notify("gfshadow_attach", session="here")
    assert sys.modules["demo_plugin"].plugin.heard == ["here"]


def test_a_plugin_that_is_installed_and_passed_is_one_plugin(install):
    install("gfshadow-demo", "1", {"demo": "demo_plugin"}, good("demo"))
    plugins = Plugins([importlib.import_module("demo_plugin")])
    assert plugins.names("loggers").count("demo") == 1
    assert plugins.load_errors == []


BROKEN = {"broken_plugin": "raise OSError('no such device')"}


def test_a_plugin_that_cannot_be_imported_is_warned_about_once_and_stops_nothing(install):
    install("gfshadow-broken", "0.9", {"broken": "broken_plugin"}, BROKEN)
    install("gfshadow-demo", "1", {"demo": "demo_plugin"}, good("demo"))
    message = (
        r"Plugin broken \(gfshadow-broken 0.9\) could not be loaded: OSError: no such device. "
        "It is left out; repair or uninstall it, or set TORCH_GFSHADOW_DISABLED_PLUGINS=broken."
    )
    with pytest.warns(RuntimeWarning, match=message):
        plugins = Plugins()
    assert "demo" in plugins.names("loggers")
    (error,) = plugins.load_errors
    assert isinstance(error.__cause__, OSError)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Plugins().load_errors == [error]


def test_a_missing_module_and_a_missing_attribute_are_broken_plugins_too(install):
    install("gfshadow-a", "1", {"a": "no_such_module"})
    install("gfshadow-b", "1", {"b": "json:no_such_name"})
    with pytest.warns(RuntimeWarning, match="could not be loaded"):
        plugins = Plugins()
    assert len(plugins.load_errors) == 2


def test_a_misspelt_hook_names_plugin_version_and_the_known_hooks(install):
    install("gfshadow-typo", "2.0", {"typo": "typo_plugin"}, {"typo_plugin": MISSPELT})
    message = (
        r"Hook of plugin typo \(gfshadow-typo 2.0\) must be a registered name, got "
        "'gfshadow_stepp'. Registered: gfshadow_attach, .*Did you mean 'gfshadow_step'"
    )
    with pytest.raises(PluginError, match=message):
        Plugins(on_error="raise")


def test_two_packages_with_one_name_are_an_error_that_names_both(install):
    install("gfshadow-one", "1.0", {"one": "one_plugin"}, {"one_plugin": GOOD.format(name="same")})
    install("gfshadow-two", "2.0", {"two": "two_plugin"}, {"two_plugin": GOOD.format(name="same")})
    message = (
        r"'same' from one \(gfshadow-one 1.0\) and from two \(gfshadow-two 2.0\). .*"
        "Registered: console, csv, jsonl, memory, same."
    )
    with pytest.raises(PluginError, match=message):
        Plugins(on_error="raise")


RAISES = {
    "raises_plugin": """
        from torch_gfshadow import hookimpl

        @hookimpl
        def gfshadow_probes():
            raise OSError("no such device")

        @hookimpl
        def gfshadow_step(record):
            raise AssertionError("half a plugin was registered")
    """
}


@pytest.mark.parametrize(
    ("sources", "reason"),
    [
        ({"typo_plugin": MISSPELT}, "Hook of plugin typo"),
        (RAISES, "Plugin raises .* raised in gfshadow_probes: OSError"),
        (good("jsonl"), "got 'jsonl' from torch_gfshadow.loggers"),
        ({"empty_plugin": "x = 1"}, "Plugin empty .* must be an object with hooks"),
    ],
)
def test_a_broken_plugin_that_is_installed_is_left_out_whole_and_stops_no_run(
    install, sources, reason, caplog
):
    (module,) = sources
    name = module.removesuffix("_plugin")
    install(f"gfshadow-{name}", "2.0", {name: module}, sources)
    install("gfshadow-demo", "1", {"demo": "demo_plugin"}, good("demo"))
    plugins = Plugins()
    assert "demo" in plugins.names("loggers")
    plugins.notify("gfshadow_step", record=None, session=None)
    assert plugins.errors == []
    (error,) = plugins.load_errors
    assert re.search(reason, str(error))
    assert f"(gfshadow-{name} 2.0)" in str(error)
    assert f"set TORCH_GFSHADOW_DISABLED_PLUGINS={name}" in caplog.text


def test_two_packages_may_share_the_name_of_their_entry_point(install):
    install("gfshadow-one", "1.0", {"x": "one_plugin"}, good("one"))
    install("gfshadow-two", "2.0", {"x": "two_plugin"}, good("two"))
    assert Plugins().names("loggers")[-2:] == ["one", "two"]


# --- switches


@pytest.fixture
def three(install):
    for name in ("one", "two", "three"):
        install(f"gfshadow-{name}", "1", {name: f"{name}_plugin"}, good(name))


def found():
    return set(Plugins().names("loggers")) & {"one", "two", "three"}


@pytest.mark.parametrize(
    ("load", "expected"),
    [
        ("one,two", {"one", "two"}),
        (" two , ", {"two"}),
        ("gfshadow-three", {"three"}),
        ("GFShadow_Three", {"three"}),
        ("", set()),
    ],
)
@pytest.mark.usefixtures("three")
def test_the_environment_names_the_plugins_to_load(load, expected, monkeypatch):
    monkeypatch.setenv("TORCH_GFSHADOW_LOAD_PLUGINS", load)
    assert found() == expected


@pytest.mark.usefixtures("three")
def test_a_plugin_that_is_asked_for_but_not_installed_is_an_error(monkeypatch):
    monkeypatch.setenv("TORCH_GFSHADOW_LOAD_PLUGINS", "one,thre")
    message = "TORCH_GFSHADOW_LOAD_PLUGINS must be .* got 'thre'.*Did you mean 'three'"
    with pytest.raises(PluginError, match=message):
        Plugins()


@pytest.mark.parametrize("disabled", ["two", "gfshadow-two", "gfshadow_two", "two,unknown"])
@pytest.mark.usefixtures("three")
def test_the_environment_disables_by_entry_point_or_distribution(disabled, monkeypatch):
    monkeypatch.setenv("TORCH_GFSHADOW_DISABLED_PLUGINS", disabled)
    assert found() == {"one", "three"}
    assert "two_plugin" not in sys.modules


@pytest.mark.parametrize("disabled", ["two", "gfshadow-two"])
@pytest.mark.usefixtures("three")
def test_a_session_disables_by_entry_point_or_distribution(disabled):
    assert "two" not in Plugins(disable=[disabled]).names("loggers")
    assert found() == {"one", "two", "three"}


@pytest.mark.parametrize(
    ("name", "near"),
    [("thre", "'three'"), ("gfshadow-thrre", "'gfshadow-three'"), ("zzzzzz", None)],
)
@pytest.mark.usefixtures("three")
def test_a_misspelt_name_to_disable_is_refused_with_the_near_ones(name, near, monkeypatch):
    monkeypatch.setenv("TORCH_GFSHADOW_LOAD_PLUGINS", "one")  # what it leaves out is known still
    Plugins(disable=["two"])
    with pytest.raises(ValueError, match=r"^disable_plugins must be made of names of ") as refused:
        Plugins(disable=["two", name])
    said = str(refused.value)
    assert f"installed plugins, got {name!r}. " in said
    assert "one (gfshadow-one 1)" in said.partition("Installed: ")[2]
    assert ("Did you mean" in said) == (near is not None)
    assert near is None or near in said


def test_with_nothing_installed_there_is_nothing_to_disable(monkeypatch):
    monkeypatch.setattr(discovery, "_entry_points", lambda: ())
    with pytest.raises(ValueError, match=r"got 'slq'\. Installed: none\.$"):
        Plugins(disable=["slq"])
    with pytest.raises(TypeError, match=r"^disable_plugins must be a list of names, got 3\."):
        Plugins(disable=[3])


def test_a_disabled_plugin_is_not_even_imported(install, monkeypatch):
    install("gfshadow-broken", "0.9", {"broken": "broken_plugin"}, BROKEN)
    monkeypatch.setenv("TORCH_GFSHADOW_DISABLED_PLUGINS", "broken")
    assert Plugins().load_errors == []


def test_plugins_are_loaded_at_first_use_and_not_at_import(install, tmp_path):
    install("gfshadow-demo", "1", {"demo": "demo_plugin"}, good("demo"))
    code = f"""
        import sys
        sys.path.insert(0, {str(tmp_path)!r})
        import torch_gfshadow
        from torch_gfshadow.plugins import Plugins
        assert "demo_plugin" not in sys.modules
        Plugins()
        assert "demo_plugin" in sys.modules
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True)


# --- the package in this repository


@pytest.fixture
def tensorboard_plugin(install, monkeypatch):
    """The package as its own pyproject declares it, without installing anything."""
    project = tomllib.loads((TENSORBOARD / "pyproject.toml").read_text())["project"]
    monkeypatch.syspath_prepend(str(TENSORBOARD))
    install(project["name"], project["version"], project["entry-points"]["torch_gfshadow"])
    yield importlib.import_module("gfshadow_tensorboard")
    for name in [name for name in sys.modules if name.startswith("gfshadow_tensorboard")]:
        del sys.modules[name]


def test_the_package_in_this_repository_registers_its_logger(tensorboard_plugin):
    (row,) = [row for row in Plugins().describe() if row["name"] == "tensorboard"]
    assert (row["kind"], row["plugin"]) == ("loggers", "gfshadow-tensorboard")
    assert_hooks_valid(tensorboard_plugin)


def test_listing_the_package_does_not_import_tensorboard(tensorboard_plugin):
    Plugins().describe()
    assert "gfshadow_tensorboard.logger" not in sys.modules


def test_the_logger_of_the_package_keeps_the_contract(tensorboard_plugin, tmp_path):
    pytest.importorskip("tensorboard")
    (tmp_path / "runs").mkdir()
    assert_logger_contract(
        lambda path: Plugins().build("loggers", f"tensorboard:{path}"), tmp_path / "runs"
    )
