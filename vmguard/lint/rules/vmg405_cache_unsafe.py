# SPDX-License-Identifier: LGPL-2.1-or-later
"""Flushes that are not made."""

from typing import Iterator

from vmguard.lint.document import within
from vmguard.lint.findings import Finding, Needs, Rule, Severity
from vmguard.lint.site import Site
from vmguard.lint.subject import Subject

RULE = Rule(
    "VMG405",
    "cache-unsafe",
    Severity.ERROR,
    Needs.XML,
    title="the host ignores the guest that asks it to write to disk",
)


def check(one: Subject, site: Site) -> Iterator[Finding]:
    """By the attribute alone; a disk that is only read, or thrown away at the end, loses nothing."""
    for disk in one.disks:
        if disk.cache == "unsafe" and disk.written and disk.element.first("transient") is None:
            yield one.finding(
                RULE,
                disk.what,
                within(disk, "driver"),
                f"{disk.what}: cache='unsafe' loses writes that the guest was told are safe, when its host fails",
                "set cache='none', or writeback",
            )
