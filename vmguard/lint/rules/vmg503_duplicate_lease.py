# SPDX-License-Identifier: LGPL-2.1-or-later
"""Two domains, one lease."""

from typing import Iterator

from vmguard.lint.doubles import Guest, LeaseMark
from vmguard.lint.findings import Finding, Needs, Other, Rule, Severity
from vmguard.lint.subject import Meeting
from vmguard.text import plain, quoted

RULE = Rule(
    "VMG503",
    "duplicate-lease",
    Severity.ERROR,
    Needs.INVENTORY,
    deny=True,
    title="two domains name one lease of sanlock",
)


def compare(guest: Guest, meeting: Meeting) -> Iterator[Finding]:
    """One key in one lockspace, or two keys at one place."""
    for lease in guest.leases:
        same_key = meeting.lease_keys.get((lease.lockspace, lease.key), [])
        same_place = meeting.lease_places.get((lease.path, lease.offset), [])
        for other, theirs in [*same_key, *same_place]:
            if other.key != guest.key:
                yield Finding(
                    RULE.code,
                    RULE.severity,
                    lease.what,
                    f"{plain(lease.what)} is {plain(theirs.what)} of {quoted(other.name)} as well: only one of the two can run",
                    "give each domain a lease of its own, at a place of its own",
                    lease.place,
                    others=(_other(other, theirs),),
                )
                break


def _other(other: Guest, theirs: LeaseMark) -> Other:
    line = theirs.place.line if theirs.place is not None else 0
    return Other(other.name, other.host, theirs.what, theirs.path, other.source, line)
