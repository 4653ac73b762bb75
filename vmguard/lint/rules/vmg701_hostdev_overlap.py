# SPDX-License-Identifier: LGPL-2.1-or-later
"""A device given whole, and a disk in it."""

from typing import Iterator

from vmguard.lint.doubles import Guest
from vmguard.lint.findings import Finding, Needs, Rule, Severity
from vmguard.lint.site import Site
from vmguard.lint.subject import Meeting, Subject, with_itself, with_others

RULE = Rule(
    "VMG701",
    "hostdev-overlap",
    Severity.ERROR,
    Needs.HOST,
    deny=True,
    title="a device given to a guest whole holds the disk of a guest",
)

_REMEDY = "give the guest the disk alone, or move the other disk away"


def check(one: Subject, site: Site) -> Iterator[Finding]:
    """Among the places of one domain."""
    yield from with_itself(RULE, one, "{mine} and {theirs} are a device given whole and a disk in it", _REMEDY)


def compare(guest: Guest, meeting: Meeting) -> Iterator[Finding]:
    """Among domains."""
    yield from with_others(
        RULE, guest, meeting, "{mine} and {theirs} are a device given whole and a disk in it", _REMEDY
    )
