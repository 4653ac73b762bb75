# SPDX-License-Identifier: LGPL-2.1-or-later
"""A leg in place of the map."""

from typing import Iterator

from vmguard.lint.document import within
from vmguard.lint.findings import Finding, Needs, Rule, Severity
from vmguard.lint.site import Site
from vmguard.lint.subject import Subject
from vmguard.text import plain

RULE = Rule(
    "VMG108", "multipath-leg", Severity.ERROR, Needs.HOST, deny=True, title="a disk is one path of a multipath map"
)

# As disks.py puts it.
_LEG = "one path of the multipath map"


def check(one: Subject, site: Site) -> Iterator[Finding]:
    """A leg, or a partition of one, that the guest would write or read past the map."""
    for disk, storage in one.live_disks(site):
        if storage.not_writable and _LEG in storage.not_writable:
            yield one.finding(
                RULE,
                disk.what,
                within(disk, "source"),
                f"{disk.what}: {plain(storage.not_writable)}",
                f"name {plain(storage.instead or 'the map')} instead",
            )
