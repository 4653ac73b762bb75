# SPDX-License-Identifier: LGPL-2.1-or-later
"""A leg in place of the map."""

from typing import Iterator

from vmguard.lint.findings import Finding, Needs, Rule, Severity
from vmguard.lint.looking import is_leg
from vmguard.lint.site import Site
from vmguard.lint.subject import Subject
from vmguard.text import plain

RULE = Rule(
    "VMG108", "multipath-leg", Severity.ERROR, Needs.HOST, deny=True, title="a disk is one path of a multipath map"
)


def check(one: Subject, site: Site) -> Iterator[Finding]:
    """A leg, or a partition of one, that the guest would write or read past the map; or one behind a device given whole."""
    for part in one.parts:
        storage = next(filter(is_leg, one.storages(part.use, site)), None)
        if storage is not None:
            yield one.about(
                RULE,
                part,
                f"{part.use.what}: {plain(storage.not_writable or '')}",
                f"name {plain(storage.instead or 'the map')} instead",
            )
