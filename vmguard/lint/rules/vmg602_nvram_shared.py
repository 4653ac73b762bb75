# SPDX-License-Identifier: LGPL-2.1-or-later
"""One nvram file, two guests."""

from typing import Iterator

from vmguard.lint.doubles import Guest
from vmguard.lint.findings import Finding, Needs, Rule, Severity
from vmguard.lint.subject import Meeting, with_others

RULE = Rule(
    "VMG602",
    "nvram-shared",
    Severity.ERROR,
    Needs.INVENTORY,
    deny=True,
    title="two domains have one file of firmware variables",
)

_REMEDY = "name a file of its own in <nvram>; libvirt makes it from the template at the first start"


def compare(guest: Guest, meeting: Meeting) -> Iterator[Finding]:
    """Among domains."""
    yield from with_others(RULE, guest, meeting, "{mine} is one file with {theirs}", _REMEDY)
