# SPDX-License-Identifier: LGPL-2.1-or-later
"""One name, uuid or MAC address, two domains."""

from typing import Iterator, List, Optional

from vmguard.lint.doubles import Guest
from vmguard.lint.findings import Finding, Needs, Other, Place, Rule, Severity
from vmguard.lint.subject import Meeting, others_of
from vmguard.text import plain, quoted

RULE = Rule(
    "VMG601",
    "duplicate-identity",
    Severity.ERROR,
    Needs.INVENTORY,
    title="two domains have one uuid, name or MAC address",
)

_SHOWN = 5


def compare(guest: Guest, meeting: Meeting) -> Iterator[Finding]:
    """A definition of the same guest on another host (same name and uuid) is no other domain."""
    rest = others_of(meeting.uuids.get(guest.uuid, []), guest) if guest.uuid else []
    if rest:
        text = f"its uuid is that of {quoted(rest[0].name)} as well: only one of the two can run"
        yield _finding(text, "take <uuid> out; libvirt makes a new one", guest.uuid_place, rest)
    rest = others_of(meeting.names.get(guest.name, []), guest)
    if rest:
        text = "another domain has its name: neither can be defined, or migrate, where the other is"
        yield _finding(text, "give one of the two another name", guest.name_place, rest)
    for mac, place in guest.macs:
        rest = others_of(meeting.macs.get(mac, []), guest)
        if rest:
            text = f"the MAC address {plain(mac)} is that of {quoted(rest[0].name)} as well"
            yield _finding(text, "take <mac> out; libvirt makes a new one", place, rest)


def _finding(text: str, remedy: str, place: Optional[Place], rest: List[Guest]) -> Finding:
    others = tuple(Other(one.name, one.host, "", one.uuid, one.source, 0) for one in rest[:_SHOWN])
    return Finding(
        RULE.code, RULE.severity, "", text, remedy, place, others=others, more_others=len(rest) - len(others)
    )
