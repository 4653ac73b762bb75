# SPDX-License-Identifier: LGPL-2.1-or-later
"""Shared here, alone there."""

from typing import Iterator

from vmguard.lint.doubles import Guest
from vmguard.lint.findings import Finding, Needs, Rule, Severity
from vmguard.lint.site import Site
from vmguard.lint.subject import Meeting, Subject, with_itself, with_others

RULE = Rule(
    "VMG203",
    "shareable-mismatch",
    Severity.ERROR,
    Needs.INVENTORY,
    deny=True,
    title="a disk is shared by one guest and used alone by another",
)

_REMEDY = (
    "mark it <shareable/> in all of them, if the guests run a cluster filesystem on it; else give each its own disk"
)


def check(one: Subject, site: Site) -> Iterator[Finding]:
    """Among the places of one domain."""
    yield from with_itself(
        RULE, one, "{mine} and {theirs} are one disk, which only one of them calls shareable", _REMEDY
    )


def compare(guest: Guest, meeting: Meeting) -> Iterator[Finding]:
    """Among domains."""
    yield from with_others(
        RULE, guest, meeting, "{mine} and {theirs} are one disk, which only one of the two calls shareable", _REMEDY
    )
