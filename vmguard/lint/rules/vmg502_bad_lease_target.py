# SPDX-License-Identifier: LGPL-2.1-or-later
"""A <lease> that leads nowhere."""

from typing import Iterator, Tuple

from vmguard.lint.doubles import LeaseMark
from vmguard.lint.findings import Finding, Needs, Rule, Severity
from vmguard.lint.leases import ALIGN, read_lease
from vmguard.lint.site import Site
from vmguard.lint.subject import Subject
from vmguard.storage.host import words
from vmguard.text import plain

RULE = Rule(
    "VMG502",
    "bad-lease-target",
    Severity.ERROR,
    Needs.HOST,
    deny=True,
    title="there is no such lease at the place that a <lease> names",
)


_HEAD = 512


def check(one: Subject, site: Site) -> Iterator[Finding]:
    """The path, the offset, and what sanlock wrote there."""
    for lease in one.leases():
        why, unread = _trouble(lease, site)
        if why:
            yield Finding(
                RULE.code,
                RULE.severity,
                lease.what,
                f"{plain(lease.what)}: {why}",
                "correct path and offset; `sanlock direct dump PATH` shows the leases that a file has",
                lease.place,
                unread=unread,
            )


def _trouble(lease: LeaseMark, site: Site) -> Tuple[str, bool]:
    """What is wrong, and whether that is only that it could not be looked at."""
    assert site.facts is not None
    if not lease.path:
        return "it names no path", False
    if lease.offset < 0 or lease.offset % ALIGN:
        return f"its offset is no multiple of {ALIGN}, the least that leases are apart", False
    try:
        head = site.facts.read(lease.path, _HEAD, lease.offset)
    except OSError as error:
        return f"{plain(lease.path)}: {words(error)}", not isinstance(error, (FileNotFoundError, NotADirectoryError))
    found = read_lease(head)
    if found is None:
        return f"{plain(lease.path)} has no lease of sanlock at {lease.offset}", False
    space, name = found
    if lease.lockspace and space != lease.lockspace:
        return f"the lease there is of lockspace {plain(space)}, not {plain(lease.lockspace)}", False
    if name != lease.key:
        return f"the lease there is named {plain(name)}", False
    return "", False
