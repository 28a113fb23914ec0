"""The documentation is executed: every block of every page, in order, as a reader would."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from pages import ROOT, Block, blocks, needs, run_page

from torch_gfshadow import Status
from torch_gfshadow.record import FIELDS

DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(DOCS)))
def test_every_block_of_the_page_runs(page, tmp_path, monkeypatch):
    for module in needs(page.read_text(encoding="utf-8")):
        pytest.importorskip(module)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["page"])
    run_page(page, tmp_path)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(DOCS)))
def test_a_fence_says_its_language_and_none_hides_python(page):
    for block in blocks(page.read_text(encoding="utf-8")):
        assert block.language, f"{page}, line {block.line}: a fence without a language"
        assert block.language in ("python", "bash", "text", "toml", "yaml", "json"), block
        assert block.language != "python" or not block.mark.startswith("not run"), (
            f"{page}, line {block.line}: Python always runs"
        )


def test_every_page_is_in_the_navigation_and_every_picture_exists():
    config = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    for page in PAGES:
        name = page.relative_to(DOCS).as_posix()
        assert re.search(rf"(^|[\s:]){re.escape(name)}$", config, flags=re.M), f"{name}: not in nav"
        for alt, target in re.findall(r"!\[(.*?)\]\((.*?)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).is_file(), f"{name}: no picture {target}"
            assert len(alt) > 20, f"{name}: {target} needs words for those who cannot see it"


@pytest.mark.skipif(
    importlib.util.find_spec("mkdocs") is None, reason='pip install "torch-gfshadow[docs]"'
)
def test_the_site_builds_without_a_warning(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "-q", "-d", str(tmp_path / "site")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1", "PYTHONDONTWRITEBYTECODE": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for page in PAGES:
        name = page.relative_to(DOCS).with_suffix("")
        built = tmp_path / "site" / (name if name.name != "index" else name.parent) / "index.html"
        html = built.read_text(encoding="utf-8")
        # everything comes with the page: nothing is loaded from elsewhere
        loads = r'<(?:script|img|iframe)[^>]*\ssrc="(https?:)?//|<link[^>]*rel="stylesheet"[^>]*//'
        assert not re.search(loads, html), f"{built} loads something from the network"
        assert "\\(" not in html.split("<article", 1)[1], f"{built}: LaTeX was left as it is"


# -- the mechanism itself -------------------------------------------------------------------------


def page(tmp_path, text):
    path = tmp_path / "page.md"
    path.write_text(text, encoding="utf-8")
    return path


def test_blocks_share_a_namespace_and_a_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = (
        "```python\nx = 2\n```\n\n"
        '```python title="double.py"\nprint(2 * 21)\n```\n\n'
        "- in a list:\n\n    ```bash\n    python double.py\n    ```\n\n"
        "    <!-- prints -->\n    ```text\n    4...\n    ```\n\n"
        "```python\nprint(x)\n```\n\n<!-- prints -->\n\n```text\n2\n```\n"
    )
    assert run_page(page(tmp_path, text), tmp_path) == 4


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("# a\n\n```python\n1 / 0\n```\n", "page.md, line 3: ZeroDivisionError"),
        ("```python\nimport warnings; warnings.warn('old')\n```\n", "line 1: UserWarning: old"),
        ("```bash\nfalse\n```\n", "exits with 1"),
        ("```python\nprint(1)\n```\n<!-- prints -->\n```text\n2\n```\n", "line 5 says"),
        ('```python\n--8<-- "examples/none.py"\n```\n', "which does not exist"),
        ('```bash\npip install "torch-gfshadow[nonsense]"\n```\n', "no extra nonsense"),
        ("```bash\npip install evil && true\n```\n", "on its own"),
    ],
)
def test_what_is_wrong_in_a_page_is_found_and_its_line_named(text, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(AssertionError, match=re.escape(message)):
        run_page(page(tmp_path, text), tmp_path)


def test_exempt_blocks_say_why(tmp_path):
    text = "<!-- not run: needs two machines -->\n```bash\nfalse\n```\n<!-- needs: nope.nope -->\n"
    assert run_page(page(tmp_path, text), tmp_path) == 0
    assert needs(text) == ["nope.nope"]
    assert blocks(text) == [Block("bash", "", "false\n", "not run: needs two machines", 2)]


# -- what the pages promise to list ---------------------------------------------------------------


def test_reading_the_numbers_explains_every_field_and_every_status():
    text = (DOCS / "reading.md").read_text(encoding="utf-8")
    explained = set(re.findall(r"`([a-z_]+)`", text))
    assert set(FIELDS) - {"status_detail", "extras"} <= explained
    assert {status.value for status in Status} <= explained


@pytest.mark.parametrize("family", ["", "solvers", "flows", "probes", "bounds", "inits", "loggers"])
def test_the_api_page_has_all_that_is_exported(family):
    module = importlib.import_module(f"torch_gfshadow.{family}".rstrip("."))
    names = set(getattr(module, "__all__", ()))
    for node in ast.parse(Path(module.__file__).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom):  # "X as X" says that X is public
            names |= {alias.name for alias in node.names if alias.asname == alias.name}
    assert len(names) > 4
    known = set(re.findall(r"\w+", (DOCS / "api.md").read_text(encoding="utf-8")))
    assert {name for name in names if not name.startswith("gfshadow_")} <= known


def test_guarantees_name_tests_that_exist():
    text = (DOCS / "guarantees.md").read_text(encoding="utf-8")
    names = set(re.findall(r"`(test_\w+\.py)`", text))
    assert len(names) > 5
    assert all((ROOT / "tests" / name).is_file() for name in names)
