# SPDX-License-Identifier: LGPL-2.1-or-later
"""Snapshots beside their origins, and layers that LVM hides."""

from typing import Iterator

from vmguard.errors import Unguardable
from vmguard.lint.doubles import Guest
from vmguard.lint.findings import Finding, Needs, Rule, Severity
from vmguard.lint.looking import Part
from vmguard.lint.site import Site
from vmguard.lint.subject import Meeting, Subject, with_itself, with_others
from vmguard.text import plain

RULE = Rule(
    "VMG106",
    "snapshot-and-origin",
    Severity.ERROR,
    Needs.HOST,
    deny=True,
    title="a snapshot and its origin, or a hidden layer of LVM, are in use as disks",
)


_REMEDY = "leave one of the two to the host, or copy it to a volume of its own"


def check(one: Subject, site: Site) -> Iterator[Finding]:
    """A hidden layer named as a disk, and a snapshot beside its origin in one domain."""
    yield from with_itself(RULE, one, "{mine} and {theirs} are a volume and its snapshot", _REMEDY)
    for part in one.parts:
        error = part.error
        if isinstance(error, Unguardable) and is_hidden_volume(one, part, site):
            instead = (
                f"name {plain(error.instead)} instead" if error.instead else "name a volume that LVM shows by itself"
            )
            yield one.about(RULE, part, f"{part.use.what}: {plain(error.why)}", instead)


def compare(guest: Guest, meeting: Meeting) -> Iterator[Finding]:
    """Among domains."""
    yield from with_others(RULE, guest, meeting, "{mine} and {theirs} are a volume and its snapshot", _REMEDY)


def is_hidden_volume(one: Subject, part: Part, site: Site) -> bool:
    """Whether a use that cannot be guarded is one of LVM's hidden volumes."""
    return any(storage.identity.startswith("lvm:") for storage in one.storages(part.use, site))
