# SPDX-License-Identifier: LGPL-2.1-or-later
"""One TPM state, two guests."""

from typing import Iterator

from vmguard.lint.doubles import Guest
from vmguard.lint.findings import Finding, Needs, Rule, Severity
from vmguard.lint.subject import Meeting, with_others

RULE = Rule(
    "VMG603", "tpm-state-shared", Severity.ERROR, Needs.INVENTORY, deny=True, title="two domains have one TPM state"
)

_REMEDY = "take the <source> out of <backend>: libvirt then keeps the state of each uuid apart"


def compare(guest: Guest, meeting: Meeting) -> Iterator[Finding]:
    """Among domains."""
    yield from with_others(RULE, guest, meeting, "{mine} is one with {theirs}", _REMEDY)
