# SPDX-License-Identifier: LGPL-2.1-or-later
"""One path in two domains."""

from typing import Iterator

from vmguard.lint.doubles import Guest
from vmguard.lint.findings import Finding, Needs, Rule, Severity
from vmguard.lint.subject import Meeting, with_others

RULE = Rule(
    "VMG102",
    "source-in-other-domain",
    Severity.ERROR,
    Needs.INVENTORY,
    deny=True,
    title="another domain has the same disk",
)

_REMEDY = "give one of the two a disk of its own (after a clone: copy the image and change the path)"


def compare(guest: Guest, meeting: Meeting) -> Iterator[Finding]:
    """Among domains."""
    yield from with_others(RULE, guest, meeting, "{mine} is {theirs} as well", _REMEDY)
