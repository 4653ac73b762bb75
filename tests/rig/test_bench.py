# SPDX-License-Identifier: LGPL-2.1-or-later
"""The benchmark runs: one round of each measure, and its page and drawing have a figure where there must be one."""

import xml.etree.ElementTree
from pathlib import Path

import bench
import pytest
from bench_measures import NotMeasured, Result, downtime, in_turns
from bench_page import ratio, spread


def test_one_round(tmp_path: Path) -> None:
    words = ["--rounds", "1", "--storms", "1", "--guests", "3", "--disks", "1,9", "--to", str(tmp_path)]
    assert bench.main(words) == 0
    rows = {}
    for line in (tmp_path / "benchmarks.md").read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        rows[cells[0]] = cells[1:]
    for title in ("`virsh start`, 1 disk", "`virsh destroy`, 1 disk", "live migration", "3 starts at once"):
        assert all(float(cell) > 0 for cell in rows[title]), (title, rows[title])
    assert rows["its downtime"][0].isdigit()
    # The plugin takes eight leases at the most; nothing but a guard refuses.
    assert [cell.startswith("none") for cell in rows["`virsh start`, 9 disks"][:3]] == [False, True, False]
    assert [cell.startswith("none") for cell in rows["a refusal"][:3]] == [True, False, False]
    assert rows["processes of vmguard on the host"] == ["0", "0", "0"]
    xml.etree.ElementTree.parse(tmp_path / "benchmarks.svg")


def test_rounds_alternate() -> None:
    order = []

    def measure(name: str) -> "list[float]":
        order.append(name)
        if name == "lame":
            raise NotMeasured("it cannot")
        return [float(len(order))]

    names = ("one", "lame", "other")
    (result,) = in_turns(["x"], {name: lambda name=name: measure(name) for name in names}, rounds=2)  # type: ignore[misc]
    assert order == ["one", "lame", "other", "one", "other", "one", "other"]
    assert result == Result("x", {"one": [4.0, 6.0], "lame": [], "other": [5.0, 7.0]}, {"lame": "it cannot"})
    assert ratio(result, "other", "one") == pytest.approx((5 / 4 + 7 / 6) / 2)
    assert ratio(result, "one", "lame") is None


def test_figures() -> None:
    assert spread([3.0]) == "3"
    assert spread([1.0, 2.0, 3.0, 4.0, 100.0]) == "3 (2–4)"
    assert spread([]) == "—"
    assert downtime("Job type: Completed\nTotal downtime:       37           ms\n") == 37
    with pytest.raises(AssertionError):
        downtime("Job type: None\n")
