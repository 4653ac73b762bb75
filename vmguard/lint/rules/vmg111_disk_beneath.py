# SPDX-License-Identifier: LGPL-2.1-or-later
"""A device, and a disk that lies on it: file, md, LUKS, DRBD."""

from typing import Iterator

from vmguard.lint.doubles import Guest
from vmguard.lint.findings import Finding, Needs, Rule, Severity
from vmguard.lint.site import Site
from vmguard.lint.subject import Meeting, Subject, with_itself, with_others

RULE = Rule(
    "VMG111",
    "disk-beneath",
    Severity.ERROR,
    Needs.HOST,
    deny=True,
    title="a device given whole lies under the disk of another guest",
)

_REMEDY = "give the guest that has the lower device whole another one"


def check(one: Subject, site: Site) -> Iterator[Finding]:
    """Among the places of one domain."""
    yield from with_itself(RULE, one, "{mine} and {theirs} lie on one another", _REMEDY)


def compare(guest: Guest, meeting: Meeting) -> Iterator[Finding]:
    """Among domains."""
    yield from with_others(RULE, guest, meeting, "{mine} and {theirs} lie on one another", _REMEDY)
