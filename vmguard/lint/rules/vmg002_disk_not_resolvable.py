# SPDX-License-Identifier: LGPL-2.1-or-later
"""The guard refuses what it cannot find."""

from typing import Iterator

from vmguard.lint.findings import Finding, Needs, Rule, Severity
from vmguard.lint.looking import header_trouble, unresolved
from vmguard.lint.site import Site
from vmguard.lint.subject import Subject
from vmguard.text import plain

RULE = Rule(
    "VMG002",
    "disk-not-resolvable",
    Severity.ERROR,
    Needs.HOST,
    deny=True,
    title="what a path leads to cannot be found out on this host",
)


def check(one: Subject, site: Site) -> Iterator[Finding]:
    """Each use of which the guard cannot tell what it is."""
    for part in one.parts:
        error = unresolved(part)
        if error is not None and header_trouble(part) is None:  # VMG402
            yield one.about(
                RULE,
                part,
                f"{part.use.what} cannot be found out: {plain(error.path)}: {plain(error.why)}",
                "make it available on this host, or correct the path; for definitions of another host use --offline",
                unread=True,
            )
