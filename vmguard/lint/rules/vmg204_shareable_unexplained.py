# SPDX-License-Identifier: LGPL-2.1-or-later
"""A <shareable/> that nobody needs, or nobody explains."""

from typing import Iterator

from vmguard.claims import GUESTS_SHARE_IT
from vmguard.lint.doubles import Guest
from vmguard.lint.findings import Finding, Needs, Rule, Severity
from vmguard.lint.subject import Meeting

RULE = Rule(
    "VMG204",
    "shareable-unexplained",
    Severity.WARNING,
    Needs.INVENTORY,
    title="a shareable disk has one user, or no reason",
)


def compare(guest: Guest, meeting: Meeting) -> Iterator[Finding]:
    """One user: a warning. Several: a notice, which an <allow> with its reason answers."""
    for mark in guest.marks:
        claim = mark.claim
        if not (mark.direct and claim.what.startswith("disk ") and claim.why == GUESTS_SHARE_IT):
            continue
        users = meeting.index.users(claim.identity)
        if users < 2:
            text = (
                f"{claim.what} is shareable, and no other guest has it: all that this does is take its protection away"
            )
            yield Finding(RULE.code, RULE.severity, claim.what, text, "take <shareable/> out", mark.place)
        else:
            text = f"{claim.what} is written by {users} guests at the same time, and the definition does not say why"
            remedy = (
                "allow it with the reason, if the guests run a cluster filesystem on it; see `vmguard explain VMG204`"
            )
            yield Finding(RULE.code, Severity.NOTICE, claim.what, text, remedy, mark.place)
