# SPDX-License-Identifier: LGPL-2.1-or-later
"""The command itself, whatever it is asked: where its output goes, and that it ends."""

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, List

import pytest

from vmguard import cli
from vmguard.cli import _show

ROOT = Path(__file__).resolve().parents[2]
CODE = "import sys; from vmguard.cli import main; sys.exit(main(sys.argv[1:]))"


def run(words: List[str], **how: Any) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        ["/usr/bin/python3", "-c", CODE, *words], cwd=ROOT, stderr=subprocess.PIPE, text=True, timeout=60, **how
    )


@pytest.mark.parametrize("words", (["--help"], ["explain", "VMG101"], ["rules"]), ids=" ".join)
def test_a_reader_that_has_had_enough(words: List[str]) -> None:
    """`vmguard ... | head -1`: not a word of Python's, and no failure."""
    reading, writing = os.pipe()
    os.close(reading)
    done = run(words, stdout=writing)
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("words", (["--version"], ["rules", "--json"]), ids=("little", "much"))
def test_a_full_disk_is_said(words: List[str]) -> None:
    with open("/dev/full", "w") as full:
        done = run(words, stdout=full)
    assert (done.returncode, done.stderr) == (3, "vmguard: the output could not be written: No space left on device\n")


def test_a_closed_output() -> None:
    done = run(["rules"], preexec_fn=lambda: os.close(1))
    assert (done.returncode, done.stderr) == (0, "")


def test_what_was_said_before_an_error_comes_before_it() -> None:
    code = CODE.replace("from vmguard.cli import main", "import vmguard.cli as cli; from vmguard.cli import main")
    code = code.replace("sys.exit", "cli.lint.run_rules.__code__ = said.__code__; sys.exit", 1)
    say = "def said(options):\n    from vmguard.errors import BadRequest\n    print('first')\n    raise BadRequest('then')\n"
    done = subprocess.run(
        ["/usr/bin/python3", "-c", say + code, "rules"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.stdout.splitlines() == ["first", "then"]


def test_a_look_that_hangs_ends() -> None:
    """sanlock has stopped: its calls do not come back, and no signal interrupts them."""
    code = CODE.replace("from vmguard.cli import main", "import vmguard.cli as cli; from vmguard.cli import main")
    code = code.replace("sys.exit", "cli.PATIENCE = 0.3; cli.status.load = lambda: time.sleep(50); sys.exit", 1)
    began = time.monotonic()
    done = subprocess.run(
        ["/usr/bin/python3", "-c", "import time\n" + code, "status"],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert done.returncode == 3 and time.monotonic() - began < 20
    assert "no answer within" in done.stderr and "vmguard doctor" in done.stderr


def test_what_changes_something_is_not_cut_short() -> None:
    """A join takes minutes after a crash; gc and a conversion are in the middle of something."""
    looking = {run.__module__.rpartition(".")[2] for run in cli.LOOKS}
    assert not looking & {"membership", "gc", "setup", "define", "override"}
    assert cli.store.run_convert not in cli.LOOKS


def test_a_narrow_terminal_shows_whole_paths(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("rich")
    monkeypatch.setenv("COLUMNS", "40")
    path = "/srv/images/of/the/customers/web-and-database.img"
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    _show.table("held", ("domain", "host", "what", "mode", "since"), [("web", "node1", path, "exclusive", "today")])
    shown = capsys.readouterr().out
    columns = [line.split("│")[3].strip() for line in shown.splitlines() if line.count("│") > 4]
    assert "…" not in shown and "".join(columns) == path
