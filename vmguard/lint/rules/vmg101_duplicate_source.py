# SPDX-License-Identifier: LGPL-2.1-or-later
"""One domain, one path, two disks."""

from typing import Iterator

from vmguard.lint.findings import Finding, Needs, Rule, Severity
from vmguard.lint.site import Site
from vmguard.lint.subject import Subject, with_itself

RULE = Rule(
    "VMG101",
    "duplicate-source",
    Severity.ERROR,
    Needs.XML,
    deny=True,
    title="one domain names one disk twice, and writes it",
)

_REMEDY = "take one of the two out of the definition"


def check(one: Subject, site: Site) -> Iterator[Finding]:
    """Among the places of one domain."""
    yield from with_itself(RULE, one, "{mine} is {theirs} once more", _REMEDY)
