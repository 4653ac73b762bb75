# SPDX-License-Identifier: LGPL-2.1-or-later
"""A physical volume as a disk, and a logical volume on it."""

from typing import Iterator

from vmguard.lint.doubles import Guest
from vmguard.lint.findings import Finding, Needs, Rule, Severity
from vmguard.lint.site import Site
from vmguard.lint.subject import Meeting, Subject, with_itself, with_others

RULE = Rule(
    "VMG105",
    "lv-over-used-pv",
    Severity.ERROR,
    Needs.HOST,
    deny=True,
    title="a disk given whole is a physical volume under a logical volume that is in use",
)

_REMEDY = "give the guest a logical volume or a disk of its own in place of the physical volume"


def check(one: Subject, site: Site) -> Iterator[Finding]:
    """Among the places of one domain."""
    yield from with_itself(
        RULE, one, "{mine} and {theirs} are a logical volume and a physical volume under it", _REMEDY
    )


def compare(guest: Guest, meeting: Meeting) -> Iterator[Finding]:
    """Among domains."""
    yield from with_others(
        RULE, guest, meeting, "{mine} and {theirs} are a logical volume and a physical volume under it", _REMEDY
    )
