# SPDX-License-Identifier: LGPL-2.1-or-later
"""The model of the protocol: what must hold holds, and what must not is caught."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

CHECK = Path(__file__).resolve().parents[2] / "docs/model/check"


def need_tools() -> None:
    for tool in ("spin", "gcc"):
        if shutil.which(tool) is None:
            if os.environ.get("CI") == "true":
                pytest.fail(f"{tool} is not installed")
            pytest.skip(f"{tool} is not installed")


def run(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([str(CHECK), *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.mark.timeout(600)
def test_model() -> None:
    need_tools()
    done = run()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in done.stdout.splitlines()[2:]]
    assert done.returncode == 0 and rows, done.stdout
    assert [row for row in rows if row[5] != row[6]] == []
    # Each of these changes one thing of the protocol: nothing is shown by a model that could not fail.
    assert {"good-two-faults", "good-everywhere", "drain-good"} <= {row[0] for row in rows if row[5] == "holds"}
    assert len([row for row in rows if row[6] == "violated"]) > 20


def test_a_violation_is_a_story() -> None:
    need_tools()
    done = run("--story", "no-ticket-look")
    assert "A: start G" in done.stdout and "assertion violated" in done.stdout
