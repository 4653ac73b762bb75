# SPDX-License-Identifier: LGPL-2.1-or-later
"""A disk and its partition."""

from typing import Iterator

from vmguard.lint.doubles import Guest
from vmguard.lint.findings import Finding, Needs, Rule, Severity
from vmguard.lint.site import Site
from vmguard.lint.subject import Meeting, Subject, with_itself, with_others

RULE = Rule(
    "VMG107",
    "partition-and-disk",
    Severity.ERROR,
    Needs.HOST,
    deny=True,
    title="a whole disk and a partition of it are both in use",
)

_REMEDY = "give one of the two a disk of its own"


def check(one: Subject, site: Site) -> Iterator[Finding]:
    """Among the places of one domain."""
    yield from with_itself(RULE, one, "{mine} and {theirs} are a disk and a partition of it", _REMEDY)


def compare(guest: Guest, meeting: Meeting) -> Iterator[Finding]:
    """Among domains."""
    yield from with_others(RULE, guest, meeting, "{mine} and {theirs} are a disk and a partition of it", _REMEDY)
