"""Every hook has a real user under plugins/, and a section in the documentation."""

import inspect
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner

from torch_gfshadow import hookspecs
from torch_gfshadow.cli import main

ROOT = Path(__file__).parent.parent
PACKAGES = sorted((ROOT / "plugins").iterdir())
HOOKS = sorted(name for name in dir(hookspecs) if name.startswith("gfshadow_"))


def users():
    """Hook → packages that implement it, as pluggy sees them; each module loads without extras."""
    code = (
        "import importlib, sys, torch_gfshadow.hookspecs as h, pluggy\n"
        "manager = pluggy.PluginManager(h.PROJECT)\n"
        "for path in sys.argv[1:]:\n"
        "    root, name = path.rsplit('/', 1)\n"
        "    sys.path.insert(0, path)\n"
        "    module = importlib.import_module(name.replace('-', '_'))\n"
        "    for hook in dir(module):\n"
        "        if manager.parse_hookimpl_opts(module, hook) is not None: print(hook, name)\n"
        "heavy = {'tensorboard', 'mlflow', 'wandb', 'pyarrow', 'transformers', 'plotly'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, PACKAGES)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = {}
    for line in done.stdout.splitlines():
        hook, name = line.split()
        found.setdefault(hook, []).append(name)
    return found


def test_every_hook_is_used_by_a_real_package_and_none_loads_its_library_early():
    found = users()
    assert set(found) == set(HOOKS)
    assert all(found.values())


def test_the_page_of_hooks_is_made_from_their_specifications():
    outcome = CliRunner().invoke(main, ["plugins", "hooks"])
    assert outcome.exit_code == 0
    page = (ROOT / "docs" / "hooks.md").read_text(encoding="utf-8")
    assert outcome.output == page, "run: gfshadow plugins hooks > docs/hooks.md"
    for name in HOOKS:
        function = getattr(hookspecs, name)
        arguments = list(inspect.signature(function).parameters)
        assert f"### `{name}({', '.join(arguments)})`" in page
        section = page.split(f"### `{name}(")[1].split("\n### ")[0]
        assert set(re.findall(r"^\| `(\w+)` \|", section, flags=re.M)) == set(arguments)


@pytest.mark.parametrize("package", PACKAGES, ids=lambda path: path.name)
def test_every_package_is_complete(package):
    project = tomllib.loads((package / "pyproject.toml").read_text())["project"]
    module = package.name.replace("-", "_")
    assert project["name"] == package.name
    assert list(project["entry-points"]["torch_gfshadow"].values()) == [module]
    assert project["license"] == "Apache-2.0"
    assert project["dependencies"][0].startswith("torch-gfshadow")
    assert (package / module / "py.typed").exists()
    assert list((package / "tests").glob("test_*.py"))
    readme = (package / "README.md").read_text(encoding="utf-8")
    assert readme.startswith(f"# {package.name}\n")
    assert package.name in (ROOT / "docs" / "plugins.md").read_text(encoding="utf-8")


def test_the_citation_names_software_and_paper():
    text = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert f"\nversion: {version}\n" in text
    assert "cff-version: 1.2.0" in text
    assert "Elkabetz" in text
    assert "arXiv:2107.06608" in text
