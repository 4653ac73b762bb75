# SPDX-License-Identifier: LGPL-2.1-or-later
"""Storage without an identity that all hosts agree on."""

from typing import Iterator

from vmguard.domain import Access
from vmguard.errors import Unguardable
from vmguard.lint.findings import Finding, Needs, Rule, Severity
from vmguard.lint.looking import is_leg
from vmguard.lint.site import Site
from vmguard.lint.subject import Subject
from vmguard.text import plain

RULE = Rule(
    "VMG306",
    "unguardable-storage",
    Severity.ERROR,
    Needs.HOST,
    deny=True,
    title="writing this storage cannot be guarded",
)


def check(one: Subject, site: Site) -> Iterator[Finding]:
    """What the guard refuses for what it is, and no other rule tells apart."""
    for part in one.parts:
        error = part.error
        if not isinstance(error, Unguardable) or part.use.access is Access.READ:
            continue
        found = one.storages(part.use, site)
        if any(storage.identity.startswith("lvm:") or is_leg(storage) for storage in found):
            continue  # VMG106 and VMG110, VMG108
        instead = f"name {plain(error.instead)} instead" if error.instead else "move it to other storage"
        yield one.about(RULE, part, f"{part.use.what}: {plain(error.why)}", instead)
