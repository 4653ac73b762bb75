# SPDX-License-Identifier: LGPL-2.1-or-later
"""Read here, written there."""

from typing import Iterator

from vmguard.lint.doubles import Guest
from vmguard.lint.findings import Finding, Needs, Rule, Severity
from vmguard.lint.site import Site
from vmguard.lint.subject import Meeting, Subject, with_itself, with_others

RULE = Rule(
    "VMG205",
    "reader-beside-writer",
    Severity.WARNING,
    Needs.INVENTORY,
    deny=True,
    title="a disk is read by one guest while another may write it",
)

_REMEDY = "give the reader a snapshot or a copy; both can run only one after the other"


def check(one: Subject, site: Site) -> Iterator[Finding]:
    """Among the places of one domain."""
    yield from with_itself(RULE, one, "{mine} and {theirs} are one disk, read by one and written by the other", _REMEDY)


def compare(guest: Guest, meeting: Meeting) -> Iterator[Finding]:
    """Among domains."""
    yield from with_others(
        RULE, guest, meeting, "{mine} and {theirs} are one disk, read by one and written by the other", _REMEDY
    )
