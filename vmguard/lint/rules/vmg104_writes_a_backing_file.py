# SPDX-License-Identifier: LGPL-2.1-or-later
"""An image and its overlay in use at the same time."""

from typing import Iterator

from vmguard.lint.doubles import Guest
from vmguard.lint.findings import Finding, Needs, Rule, Severity
from vmguard.lint.site import Site
from vmguard.lint.subject import Meeting, Subject, with_itself, with_others

RULE = Rule(
    "VMG104",
    "writes-a-backing-file",
    Severity.ERROR,
    Needs.INVENTORY,
    deny=True,
    title="a disk that is written lies under an overlay",
)

_REMEDY = "make the base read-only, or give its writer a copy (qemu-img convert)"


def check(one: Subject, site: Site) -> Iterator[Finding]:
    """Among the places of one domain."""
    yield from with_itself(
        RULE, one, "{mine} and {theirs} are an image and its overlay, and the image is written", _REMEDY
    )


def compare(guest: Guest, meeting: Meeting) -> Iterator[Finding]:
    """Among domains."""
    yield from with_others(
        RULE, guest, meeting, "{mine} and {theirs} are an image and its overlay, and the image is written", _REMEDY
    )
