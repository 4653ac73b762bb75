# SPDX-License-Identifier: LGPL-2.1-or-later
"""Two paths, one thing."""

from typing import Iterator

from vmguard.lint.doubles import Guest
from vmguard.lint.findings import Finding, Needs, Rule, Severity
from vmguard.lint.site import Site
from vmguard.lint.subject import Meeting, Subject, with_itself, with_others

RULE = Rule(
    "VMG103",
    "alias-path",
    Severity.ERROR,
    Needs.HOST,
    deny=True,
    title="another path leads to a disk that is in use already",
)

_REMEDY = "give one of the two a disk of its own; `vmguard identify PATH...` shows what both paths are"


def check(one: Subject, site: Site) -> Iterator[Finding]:
    """Among the places of one domain."""
    yield from with_itself(RULE, one, "{mine} is {theirs} by another name", _REMEDY)


def compare(guest: Guest, meeting: Meeting) -> Iterator[Finding]:
    """Among domains."""
    yield from with_others(RULE, guest, meeting, "{mine} is {theirs} by another name", _REMEDY)
