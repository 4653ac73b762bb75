# SPDX-License-Identifier: LGPL-2.1-or-later
"""What cannot be read cannot be guarded."""

from typing import Iterator

from vmguard.lint.findings import Finding, Needs, Rule, Severity
from vmguard.lint.site import Site
from vmguard.lint.subject import Subject
from vmguard.text import plain

RULE = Rule(
    "VMG001",
    "unreadable-domain",
    Severity.ERROR,
    Needs.XML,
    deny=True,
    title="the definition cannot be read or understood",
)


def check(one: Subject, site: Site) -> Iterator[Finding]:
    """What the guard's own reader refuses, or says that it does not understand."""
    if one.error is not None:
        yield Finding(
            RULE.code,
            RULE.severity,
            "",
            f"the definition cannot be read: {plain(one.error.why)}",
            "mend it; `virt-xml-validate FILE domain` says what libvirt expects",
            one.place_of_error(),
            unread=True,
        )
        return
    assert one.domain is not None
    for puzzle in one.domain.not_understood:
        if not puzzle.what.startswith("qemu argument"):  # VMG702
            yield one.finding(
                RULE,
                puzzle.what,
                puzzle.line,
                f"{plain(puzzle.what)} cannot be understood: {plain(puzzle.why)}",
                "name the storage in a way that the definition shows",
                unread=True,
            )
    trouble = site.schema.trouble(one.xml) if site.schema is not None else None
    if trouble is not None:
        yield Finding(
            RULE.code,
            RULE.severity,
            "",
            f"it does not follow libvirt's schema: {plain(trouble[1])}",
            "correct it; `virsh define --validate` refuses it too",
            one.place_of_line(trouble[0]),
        )
