# SPDX-License-Identifier: LGPL-2.1-or-later
"""Storage in <qemu:commandline>."""

from typing import Iterator

from vmguard.claims import path_of
from vmguard.lint.findings import Finding, Needs, Rule, Severity
from vmguard.lint.site import Site
from vmguard.lint.subject import Subject
from vmguard.text import plain

RULE = Rule(
    "VMG702",
    "qemu-commandline-drive",
    Severity.ERROR,
    Needs.XML,
    deny=True,
    title="storage is handed to QEMU behind libvirt's back",
)


def check(one: Subject, site: Site) -> Iterator[Finding]:
    """An error where the guard cannot read it either, else a warning: vmguard sees it, libvirt's own locks do not."""
    assert one.domain is not None
    for puzzle in one.domain.not_understood:
        if puzzle.what.startswith("qemu argument"):
            yield one.finding(
                RULE,
                puzzle.what,
                puzzle.line,
                f"{plain(puzzle.what)} cannot be understood: {plain(puzzle.why)}",
                "name the storage in a <disk>, or leave the argument out",
                unread=True,
            )
    for use in one.domain.uses:
        if use.what.startswith("qemu argument"):
            yield one.finding(
                RULE,
                use.what,
                use.line,
                f"{plain(use.what)} names storage that libvirt does not know of: {plain(path_of(use.location))}",
                "name it in a <disk>",
                Severity.WARNING,
            )
