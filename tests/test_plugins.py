"""Plugins: hooks, registries, isolation, switches. What is installed: test_plugin_package.py."""

import gc
import inspect
import logging
import subprocess
import sys
import textwrap
import weakref
from types import SimpleNamespace

import pytest

from torch_gfshadow import hookspecs
from torch_gfshadow.errors import PluginError
from torch_gfshadow.hookspecs import hookimpl
from torch_gfshadow.loggers import JsonlLogger, MemoryLogger
from torch_gfshadow.plugins import BUILTINS, KINDS, Plugins
from torch_gfshadow.specs import BoundSpec, LoggerSpec, ProbeSpec
from torch_gfshadow.testing import assert_hooks_valid, isolated_plugins, make_record

HOOKS = {name: getattr(hookspecs, name) for name in dir(hookspecs) if name.startswith("gfshadow_")}
REGISTRIES = {f"gfshadow_{kind}" for kind in KINDS}
FIRST = {"gfshadow_flow_for", "gfshadow_objective_for"}
NOTIFICATIONS = set(HOOKS) - REGISTRIES - FIRST


@pytest.fixture(autouse=True)
def _nothing_installed():
    with isolated_plugins():
        yield


def implementing(hook, body, **options):
    """A plugin with one hook that calls ``body`` with the hook's own arguments."""
    names = list(inspect.signature(HOOKS[hook]).parameters)
    arguments = ", ".join(names)
    namespace = {"body": body}
    code = f"def {hook}(self{', ' if names else ''}{arguments}): return body({arguments})"
    exec(code, namespace)
    marked = hookimpl(**options)(namespace[hook])
    return type("Throwaway", (), {hook: marked})()


def arguments_of(hook):
    return {name: object() for name in inspect.signature(HOOKS[hook]).parameters}


class Listener:
    """Hears steps and errors; raises ``fault`` at each step if it has one."""

    def __init__(self, fault=None):
        self.fault, self.steps, self.heard = fault, [], []

    @hookimpl
    def gfshadow_step(self, record):
        self.steps.append(record.step)
        if self.fault is not None:
            raise self.fault

    @hookimpl
    def gfshadow_error(self, exc):
        self.heard.append(exc)


def step(plugins, number, session=None):
    plugins.notify("gfshadow_step", record=make_record(number), session=session)


# --- every hook


@pytest.mark.parametrize("hook", sorted(HOOKS))
def test_every_hook_is_documented_by_a_sentence(hook):
    documentation = inspect.getdoc(HOOKS[hook])
    assert documentation[0].isupper()
    assert documentation.split("\n")[0].endswith(".")


@pytest.mark.parametrize("hook", sorted(NOTIFICATIONS))
def test_every_notification_reaches_a_plugin_with_its_arguments(hook):
    heard, arguments = [], arguments_of(hook)
    plugin = implementing(hook, lambda *values: heard.append(values))
    Plugins([plugin]).notify(hook, **arguments)
    assert heard == [tuple(arguments.values())]


@pytest.mark.parametrize("hook", sorted(FIRST))
def test_every_question_takes_the_first_answer_and_none_passes_it_on(hook):
    silent = implementing(hook, lambda *values: None)
    speaks = implementing(hook, lambda *values: "mine", tryfirst=True)
    plugins = Plugins([speaks, silent])
    assert plugins.first(hook, **arguments_of(hook)) == "mine"


@pytest.mark.parametrize("hook", sorted(REGISTRIES))
def test_every_registry_takes_a_list_or_a_generator_and_builds_what_it_names(hook):
    kind = hook.removeprefix("gfshadow_")
    made = SimpleNamespace(**dict.fromkeys(["start", "write", "finish", "measure", "update"]))
    made.name, made.requires = "made", frozenset()
    specs = [
        KINDS[kind](name=name, factory=lambda: made, summary="a thing", source="here")
        for name in ("one", "two")
    ]
    for body in (lambda: specs, lambda: (spec for spec in specs)):
        plugins = Plugins([implementing(hook, body)])
        assert plugins.names(kind)[-2:] == ["one", "two"]
        assert plugins.specs(kind)["one"] is specs[0]
        assert plugins.build(kind, "two") is made


def test_a_plugin_may_take_fewer_arguments_than_a_hook_offers():
    listener = Listener()
    step(Plugins([listener]), 4)
    assert listener.steps == [4]


def test_without_plugins_questions_have_no_answer_and_notifications_no_effect():
    plugins = Plugins()
    plugins.notify("gfshadow_attach", session=None)
    assert plugins.first("gfshadow_objective_for", optimizer=None, model=None, config={}) is None
    assert plugins.errors == plugins.load_errors == []


# --- built-ins


def test_built_in_families_register_through_the_hooks():
    plugins = Plugins()
    assert plugins.names("loggers")[:4] == ["memory", "jsonl", "csv", "console"]
    assert all(plugins.names(kind) for kind in KINDS)
    assert {f"torch_gfshadow.{kind}" for kind in KINDS} == set(BUILTINS)


def test_every_member_is_described_for_the_command_line():
    rows = Plugins().describe()
    assert all(
        list(row) == ["name", "kind", "summary", "plugin", "version", "source"] for row in rows
    )
    assert all(row["summary"] and row["plugin"] == "built-in" and row["version"] for row in rows)
    assert ("loggers", "jsonl") in {(row["kind"], row["name"]) for row in rows}


def test_a_plugin_that_only_listens_is_described_by_its_hooks():
    row = Plugins([Listener()]).describe()[-1]
    assert (row["name"], row["kind"]) == ("Listener", "hooks")
    assert row["summary"] == "gfshadow_error, gfshadow_step"


# --- building


def test_a_name_with_an_argument_calls_the_factory_with_it(tmp_path):
    logger = Plugins().build("loggers", f"jsonl:{tmp_path}/a:b.jsonl")
    assert isinstance(logger, JsonlLogger)
    assert logger.path == tmp_path / "a:b.jsonl"


def test_a_name_alone_calls_the_factory_without():
    assert isinstance(Plugins().build("loggers", "memory"), MemoryLogger)


def test_each_call_builds_a_new_member():
    plugins = Plugins()
    assert plugins.build("loggers", "memory") is not plugins.build("loggers", "memory")


def test_an_instance_is_returned_as_it_is():
    logger = MemoryLogger()
    assert Plugins().build("loggers", logger) is logger


@pytest.mark.parametrize(
    ("kind", "item", "error", "message"),
    [
        (
            "loggers",
            "jsnol",
            ValueError,
            r"loggers must be a registered name, got 'jsnol'. Registered: .* Did you mean 'jsonl'",
        ),
        (
            "loggers",
            "jsonl",
            ValueError,
            "loggers must be 'jsonl:<argument>', got 'jsonl'. jsonl: ",
        ),
        ("bounds", "theorem2:3", ValueError, "bounds must be 'theorem2', got 'theorem2:3'"),
        ("loggers", "memory:x", ValueError, "max_records must be a positive integer, got 'x'"),
        ("loggers", 3, TypeError, r"loggers must be .*, got 3, which lacks start, write, finish"),
        ("loggers", None, TypeError, "loggers must be .*, got None, which is None"),
        ("flows", None, TypeError, "flow must be .*, got None, which is None"),
        ("loggers", MemoryLogger, TypeError, "loggers must be .*MemoryLogger'>, which is a class"),
        ("probes", MemoryLogger(), TypeError, "probes must be .*, which lacks name, measure"),
        ("bounds", MemoryLogger(), TypeError, "bounds must be .* lacks name, requires, update"),
        ("colours", "red", ValueError, "kind must be a registered name, got 'colours'"),
    ],
)
def test_what_cannot_be_built_says_what_can(kind, item, error, message):
    with pytest.raises(error, match=message):
        Plugins().build(kind, item)


def test_a_factory_that_builds_the_wrong_thing_is_the_plugins_fault():
    spec = LoggerSpec(name="mine", factory=dict, summary="not a logger")
    plugins = Plugins([implementing("gfshadow_loggers", lambda: [spec])])
    with pytest.raises(
        PluginError, match=r"Plugin Throwaway built \{\} for 'mine', which lacks start"
    ):
        plugins.build("loggers", "mine")


def test_a_factory_whose_signature_cannot_be_read_is_called_all_the_same():
    spec = BoundSpec(name="mine", factory=type, summary="no signature")
    plugins = Plugins([implementing("gfshadow_bounds", lambda: [spec])])
    with pytest.raises(PluginError, match="which lacks"):
        plugins.build("bounds", "mine:argument")


# --- plugins that are refused


def misspelt():
    class Wrong:
        __version__ = "1.2"

        @hookimpl
        def gfshadow_stepp(self, record): ...

    return Wrong()


def unmarked():
    class Wrong:
        @hookimpl
        def gfshadow_attach(self): ...

        def gfshadow_step(self, record): ...

    return Wrong()


def wrong_arguments():
    class Wrong:
        @hookimpl
        def gfshadow_step(self, row): ...

    return Wrong()


def unhashable():
    class Wrong:
        __hash__ = None

        @hookimpl
        def gfshadow_step(self): ...

    return Wrong()


def registers(*specs):
    return implementing("gfshadow_loggers", lambda: list(specs))


REFUSED = [
    (
        misspelt,
        r"Hook of plugin Wrong \(1.2\) must be a registered name, got 'gfshadow_stepp'. "
        r"Registered: gfshadow_attach, .*gfshadow_step.* Did you mean 'gfshadow_step'",
    ),
    (unmarked, "gfshadow_step of plugin Wrong must be a @hookimpl, got none. Decorate it"),
    (wrong_arguments, r"Plugin Wrong cannot be registered: .*\n.*\n.*\{'row'\}"),
    (unhashable, "Plugin Wrong must be hashable, got"),
    (object, "Plugin object must be an object with hooks, got"),
    (lambda: "my_module", "Plugin str must be an object with hooks, got 'my_module'"),
    (lambda: Listener, r"Plugin Listener must be a module or an instance, .* Pass Listener\(\)"),
    (
        lambda: registers(ProbeSpec(name="a", factory=list, summary="")),
        "gfshadow_loggers of Throwaway must be a list of LoggerSpec, got ProbeSpec",
    ),
    (
        lambda: registers("jsonl"),
        "gfshadow_loggers of Throwaway must be a list of LoggerSpec, got 'jsonl'",
    ),
    (
        lambda: implementing("gfshadow_loggers", lambda: 1 / 0),
        "Plugin Throwaway raised in gfshadow_loggers: ZeroDivisionError: division by zero",
    ),
    (
        lambda: registers(LoggerSpec(name="jsonl", factory=list, summary="")),
        "loggers must have one owner per name, got 'jsonl' from torch_gfshadow.loggers "
        r"\(torch-gfshadow .*\) and from Throwaway. Rename one",
    ),
]


@pytest.mark.parametrize(("make", "message"), REFUSED)
def test_a_plugin_that_would_be_silently_ignored_or_ambiguous_is_refused(make, message):
    with pytest.raises(PluginError, match=message):
        Plugins([make()])


@pytest.mark.parametrize(("make", "message"), REFUSED)
def test_the_test_kit_refuses_the_same_plugins(make, message):
    with pytest.raises(AssertionError, match=message):
        assert_hooks_valid(make())


def test_the_test_kit_accepts_a_good_plugin():
    assert_hooks_valid(Listener())


def test_a_hook_of_a_newer_version_can_be_marked_optional():
    class Ahead:
        @hookimpl(optionalhook=True)
        def gfshadow_tomorrow(self): ...

        @hookimpl
        def gfshadow_attach(self):
            heard.append("attach")

    heard = []
    Plugins([Ahead()]).notify("gfshadow_attach", session=None)
    assert heard == ["attach"]


def test_two_instances_of_one_class_are_two_plugins():
    listeners = [Listener(ValueError("first")), Listener()]
    plugins = Plugins(listeners)
    step(plugins, 1)
    step(plugins, 2)
    assert [listener.steps for listener in listeners] == [[1], [1, 2]]


def test_the_same_object_twice_is_one_plugin():
    listener = Listener()
    step(Plugins([listener, listener]), 1)
    assert listener.steps == [1]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"on_error": "ignore"}, ValueError, "on_error must be 'disable' or 'raise', got 'ignore'"),
        ({"plugins": "mine"}, TypeError, "plugins must be a list, got 'mine'"),
        ({"plugins": sys}, TypeError, "plugins must be a list, got <module 'sys'"),
        ({"disable": "mine"}, TypeError, "disable_plugins must be a list, got 'mine'"),
    ],
)
def test_wrong_arguments_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        Plugins(**arguments)


# --- isolation


@pytest.mark.parametrize("position", [0, 1, 2])
def test_a_plugin_that_raises_is_muted_and_stops_no_other(position, caplog):
    listeners = [Listener(), Listener(), Listener()]
    listeners[position].fault = ValueError("boom")
    plugins = Plugins(listeners)
    for number in range(3):
        step(plugins, number)
    for i, listener in enumerate(listeners):
        assert listener.steps == ([0] if i == position else [0, 1, 2])


def test_the_fault_is_logged_once_with_its_traceback_and_kept(caplog):
    plugins = Plugins([Listener(ValueError("boom"))])
    with caplog.at_level(logging.WARNING, logger="torch_gfshadow"):
        step(plugins, 1)
        step(plugins, 2)
    (entry,) = caplog.records
    message = "Plugin Listener raised in gfshadow_step: ValueError: boom."
    assert entry.getMessage() == f"{message} It is muted for this run."
    assert entry.exc_info[0] is ValueError
    assert "in gfshadow_step" in caplog.text
    assert [str(error) for error in plugins.errors] == [message]
    assert isinstance(plugins.errors[0], PluginError)


def test_a_fault_keeps_nothing_of_the_run_alive(monkeypatch):
    class Session:
        pass

    # The runner's own log capture keeps tracebacks; whatever handlers do is not ours.
    monkeypatch.setattr(logging.getLogger("torch_gfshadow.plugins"), "disabled", True)
    session = Session()
    alive = weakref.ref(session)
    plugins = Plugins([implementing("gfshadow_step", lambda *values: 1 / 0)])
    step(plugins, 1, session)
    del session
    gc.collect()
    assert plugins.errors
    assert alive() is None


def test_the_other_plugins_hear_of_the_fault_and_the_faulty_one_does_not():
    fault = ValueError("boom")
    faulty, healthy = Listener(fault), Listener()
    step(Plugins([faulty, healthy]), 1, session=object())
    assert healthy.heard == [fault]
    assert faulty.heard == []


def test_plugins_that_fail_while_they_hear_of_a_fault_make_no_further_faults_heard():
    def fail(*values):
        raise RuntimeError("also")

    fault, healthy = OSError(), Listener()
    deaf = [implementing("gfshadow_error", fail) for _ in range(2)]
    plugins = Plugins([healthy, *deaf, Listener(fault)])
    step(plugins, 1)
    assert healthy.heard == [fault]
    assert len(plugins.errors) == 3


def test_a_muted_plugin_is_muted_in_every_hook_of_this_session_and_of_no_other():
    class Two(Listener):
        @hookimpl
        def gfshadow_detach(self):
            self.steps.append("detach")

        @hookimpl
        def gfshadow_flow_for(self):
            return "mine"

    plugin = Two(ValueError())
    first, second = Plugins([plugin]), Plugins([plugin])
    step(first, 1)
    first.notify("gfshadow_detach", session=None)
    assert first.first("gfshadow_flow_for", optimizer=None, config={}) != "mine"
    second.notify("gfshadow_detach", session=None)
    assert plugin.steps == [1, "detach"]
    assert second.first("gfshadow_flow_for", optimizer=None, config={}) == "mine"


def test_on_error_raise_lets_the_exception_through_and_names_the_plugin():
    plugins = Plugins([Listener(ValueError("boom"))], on_error="raise")
    with pytest.raises(ValueError, match="boom") as error:
        step(plugins, 1)
    assert error.value.__notes__ == ["raised by plugin Listener in gfshadow_step"]


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, SystemExit])
def test_interrupts_pass_through(interrupt):
    plugins = Plugins([Listener(interrupt())])
    with pytest.raises(interrupt):
        step(plugins, 1)
    assert plugins.errors == []


def test_a_question_that_raises_names_the_plugin():
    plugin = implementing("gfshadow_flow_for", lambda *values: 1 / 0)
    message = "Plugin Throwaway raised in gfshadow_flow_for: ZeroDivisionError: division by zero"
    with pytest.raises(PluginError, match=message) as error:
        Plugins([plugin], on_error="raise").first("gfshadow_flow_for", optimizer=None, config={})
    assert isinstance(error.value.__cause__, ZeroDivisionError)


def test_a_question_that_raises_goes_on_to_the_next_plugin():
    broken = implementing("gfshadow_flow_for", lambda *values: 1 / 0)
    speaks = implementing("gfshadow_flow_for", lambda *values: "mine")
    plugins = Plugins([speaks, broken])
    assert plugins.first("gfshadow_flow_for", optimizer=None, config={}) == "mine"
    assert "Plugin Throwaway' raised in gfshadow_flow_for" in str(plugins.errors[0])


def test_questions_go_to_the_newest_plugin_first_except_where_it_asks_to_be_last():
    def answering(answer, **options):
        return implementing("gfshadow_flow_for", lambda *values: answer, **options)

    ask = {"optimizer": None, "config": {}}
    plugins = Plugins([answering("old"), answering("new"), answering("last", trylast=True)])
    assert plugins.first("gfshadow_flow_for", **ask) == "new"


def test_a_wrapper_wraps_only_its_own_plugin():
    class Wrapper:
        @hookimpl(wrapper=True)
        def gfshadow_step(self, record):
            yield
            raise ValueError("in the wrapper")

    listener = Listener()
    plugins = Plugins([listener, Wrapper()])
    step(plugins, 1)
    step(plugins, 2)
    assert listener.steps == [1, 2]
    assert len(plugins.errors) == 1


# --- switches


def test_hook_calls_are_traced_on_request(monkeypatch, capsys):
    monkeypatch.setenv("TORCH_GFSHADOW_TRACE_PLUGINS", "1")
    step(Plugins([Listener()]), 1)
    assert (
        "torch_gfshadow: gfshadow_step(record, session) -> :Listener\n" in capsys.readouterr().err
    )


@pytest.mark.parametrize("off", ["", "0"])
def test_hook_calls_are_not_traced_otherwise(off, monkeypatch, capsys):
    monkeypatch.setenv("TORCH_GFSHADOW_TRACE_PLUGINS", off)
    step(Plugins([Listener()]), 1)
    assert capsys.readouterr().err == ""


def test_importing_the_module_looks_for_no_plugin():
    code = """
        import importlib.metadata

        def entry_points(_look=importlib.metadata.entry_points, **selection):
            assert selection.get("group") != "torch_gfshadow", "looked"
            return _look(**selection)

        importlib.metadata.entry_points = entry_points
        import torch_gfshadow, torch_gfshadow.plugins, torch_gfshadow.testing
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True)
