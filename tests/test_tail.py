"""Following a run: nothing lost, nothing twice, whatever the file does meanwhile."""

import io
import json
import os
import pty
import subprocess
import sys
import threading
import time

import pytest
from click.testing import CliRunner
from rich.console import Console
from test_report import records

from torch_gfshadow import Status
from torch_gfshadow.cli import main
from torch_gfshadow.cli._live import LiveView, sparkline
from torch_gfshadow.loggers import Follower, JsonlLogger
from torch_gfshadow.record import Record


def steps(items):
    return [item.step for item in items if isinstance(item, Record)]


def test_only_whole_new_lines_are_returned_once(tmp_path):
    path = tmp_path / "r.jsonl"
    follower = Follower(path)
    assert follower.poll() == []
    logger = JsonlLogger(path)
    logger.start({})
    rows = records(4)
    logger.write(rows[0])
    assert [item["type"] for item in follower.poll() if not isinstance(item, Record)] == ["header"]
    line = json.dumps({"type": "record", **rows[1].to_dict()}).encode() + b"\n"
    with path.open("ab") as file:
        file.write(line[:30])
        file.flush()
        assert follower.poll() == []
        file.write(line[30:])
    assert follower.poll() == [rows[1]]
    assert follower.poll() == []


def test_a_file_that_was_replaced_is_read_anew(tmp_path):
    path = tmp_path / "r.jsonl"
    follower = Follower(path)
    for n in (5, 3):
        path.unlink(missing_ok=True)
        logger = JsonlLogger(path)
        logger.start({})
        for row in records(n):
            logger.write(row)
        logger.finish({})
        assert steps(follower.poll()) == list(range(n))


@pytest.mark.parametrize("line", [b"{\n", b"[1]\n", b'{"type": "note"}\n'])
def test_a_foreign_line_is_named(tmp_path, line):
    path = tmp_path / "r.jsonl"
    path.write_bytes(b"\n" + line)
    with pytest.raises(ValueError, match=r"r\.jsonl, line 2"):
        Follower(path).poll()


def test_the_command_follows_a_run_that_begins_later_and_ends_with_it(tmp_path):
    path = tmp_path / "r.jsonl"

    def train():
        time.sleep(0.2)
        logger = JsonlLogger(path)
        logger.start({})
        for row in records(30):
            logger.write(row)
            time.sleep(0.005)
        logger.finish({})

    thread = threading.Thread(target=train)
    thread.start()
    done = CliRunner().invoke(main, ["tail", str(path), "--interval", "0.02"])
    thread.join()
    assert done.exit_code == 0, done.output
    shown = [line.split()[0] for line in done.stdout.splitlines() if line.strip()]
    assert [s for s in shown if s.isdigit()] == [str(k) for k in range(30)]


def test_json_lines_read_back_as_records(tmp_path):
    path = tmp_path / "r.jsonl"
    logger = JsonlLogger(path)
    logger.start({})
    for row in records(10):
        logger.write(row)
    done = CliRunner().invoke(main, ["tail", str(path), "--once", "--json", "--every", "3"])
    got = [Record.from_dict(json.loads(line)) for line in done.stdout.splitlines()]
    assert got == list(records(10))[::3]


def test_bad_paths_say_what_to_do(tmp_path):
    for arguments, words in (
        ([str(tmp_path)], "Name the JSONL file in it"),
        ([str(tmp_path / "none"), "--once"], "Leave --once out"),
    ):
        done = CliRunner().invoke(main, ["tail", *arguments])
        assert done.exit_code == 2
        assert words in done.stderr


def rendered(view):
    console = Console(width=110, force_terminal=False, record=True, file=io.StringIO())
    console.print(view)
    return console.export_text()


def test_the_panel_keeps_the_latest_value_of_each_quantity_and_its_step():
    view = LiveView("run")
    assert "waiting for records" in rendered(view)
    for row in records(38):
        view.add(row)
    text = rendered(view)
    assert "step 37 · t = 3.7" in text
    assert "0.0185 ± 0.0007" in text
    assert "9 ± 0.3" in text
    assert "step 30" in text  # the probe's
    assert "tube" in text
    assert "(certified)" in text
    view.add({"type": "summary"})
    assert "finished" in rendered(view)
    view.add({"type": "header"})
    assert "running" in rendered(view)


def test_a_string_of_a_plugin_cannot_move_the_cursor_or_style_the_panel():
    view = LiveView("[bold]x[/bold]\x1b[2J")
    row = records(2, solver="\x1b[31mred[/]", status=Status.BLOW_UP, status_detail="[link]\x07")[1]
    view.add(row)
    text = rendered(view)
    assert "\x1b" not in text
    assert "\x07" not in text
    assert "[bold]x[/bold]" in text
    assert "[link]" in text


def test_a_sparkline_rises_with_the_values_and_is_logarithmic_over_decades():
    assert sparkline([1.0, 2.0, 3.0]) == "▁▅█"
    assert sparkline([1.0, 10.0, 100.0]) == "▁▅█"
    assert sparkline([1.0]) == ""
    assert len(sparkline([float(i) for i in range(999)])) <= 40


def test_on_a_terminal_it_draws_the_panel(tmp_path):
    path = tmp_path / "r.jsonl"
    logger = JsonlLogger(path)
    logger.start({})
    for row in records(20):
        logger.write(row)
    logger.finish({})
    master, slave = pty.openpty()
    command = [sys.executable, "-m", "torch_gfshadow", "tail", str(path)]
    env = {**os.environ, "TERM": "xterm", "COLUMNS": "100", "LINES": "40"}
    process = subprocess.Popen(command, stdout=slave, stderr=slave, env=env)
    os.close(slave)
    out = b""
    while True:
        try:
            part = os.read(master, 65536)
        except OSError:
            break
        if not part:
            break
        out += part
    os.close(master)
    assert process.wait(60) == 0
    text = out.decode()
    assert "╭" in text
    assert "finished · step 19" in text
