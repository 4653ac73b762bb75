# SPDX-License-Identifier: LGPL-2.1-or-later
"""What one writes, the other must see."""

from typing import Iterator

from vmguard.lint.document import within
from vmguard.lint.findings import Finding, Needs, Rule, Severity
from vmguard.lint.site import Site
from vmguard.lint.subject import Subject
from vmguard.text import plain

RULE = Rule(
    "VMG202",
    "shareable-cached",
    Severity.ERROR,
    Needs.XML,
    title="a shareable disk goes through the page cache of its host",
)


def check(one: Subject, site: Site) -> Iterator[Finding]:
    """Only what is said: where nothing is, libvirt takes cache='none' for shareable disks."""
    for disk in one.disks:
        if disk.shareable and disk.written and disk.cache not in ("", "default", "none", "directsync"):
            yield one.finding(
                RULE,
                disk.what,
                within(disk, "driver"),
                f"{disk.what} is shareable, and cache='{plain(disk.cache)}' keeps a copy of it on each host",
                "set cache='none'",
            )
