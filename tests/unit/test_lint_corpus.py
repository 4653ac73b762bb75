# SPDX-License-Identifier: LGPL-2.1-or-later
"""libvirt's own test inputs: lint judges each of them, and none makes it stumble."""

import os
from collections import Counter
from pathlib import Path
from typing import List

import pytest
from linting import MODULES

from vmguard.lint import engine
from vmguard.lint.document import Origin
from vmguard.lint.engine import Report
from vmguard.lint.site import Site
from vmguard.lint.sources import files
from vmguard.storage.facts import LiveFacts

SOURCE = os.environ.get("LIBVIRT_SOURCE", "")
# The folder of QEMU inputs had the first name up to libvirt 9.9.
INPUTS = ("qemuxml2argvdata", "qemuxmlconfdata", "qemustatusxml2xmldata", "genericxml2xmlindata")

pytestmark = pytest.mark.skipif(not SOURCE, reason="LIBVIRT_SOURCE does not name a source tree of libvirt")


def folders() -> List[str]:
    return [path for path in (os.path.join(SOURCE, "tests", name) for name in INPUTS) if os.path.isdir(path)]


def judged(offline: bool) -> Report:
    site = Site(None if offline else LiveFacts(), inventory=False)
    return engine.run(list(files(folders(), "", local=not offline)), site, MODULES)


@pytest.mark.parametrize("offline", [True, False], ids=["offline", "on-this-host"])
def test_each_is_judged(offline: bool) -> None:
    report = judged(offline)
    counts = Counter(finding.rule for finding in report.findings)
    print(report.definitions, dict(sorted(counts.items())))
    assert report.definitions > 1000
    for finding in report.findings:
        assert finding.place is not None or finding.rule == "VMG001", finding
        if finding.place is not None:
            assert 0 < finding.place.column < finding.place.end <= len(finding.place.text) + 1, finding


def test_places_are_those_of_the_files() -> None:
    for finding in judged(True).findings:
        if finding.place is not None:
            with open(finding.source, encoding="utf-8") as file:
                assert file.read().split("\n")[finding.place.line - 1] == finding.place.text


def test_one_after_another_changes_nothing() -> None:
    """A definition by itself is judged as among all the others, where nothing is compared."""
    report = judged(True)
    by_source = Counter(finding.source for finding in report.findings)
    for path in sorted(by_source)[::97]:
        alone = engine.run([(Origin(path, local=False), Path(path).read_bytes)], Site(None), MODULES)
        assert len(alone.findings) == by_source[path], path
