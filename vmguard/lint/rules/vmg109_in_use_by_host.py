# SPDX-License-Identifier: LGPL-2.1-or-later
"""The host is a writer, too."""

from typing import Iterator

from vmguard.errors import UsedByHost
from vmguard.lint.findings import Finding, Needs, Rule, Severity
from vmguard.lint.site import Site
from vmguard.lint.store import writes_store
from vmguard.lint.subject import Subject
from vmguard.text import plain

RULE = Rule("VMG109", "in-use-by-host", Severity.ERROR, Needs.HOST, deny=True, title="the host itself uses the disk")


def check(one: Subject, site: Site) -> Iterator[Finding]:
    """Mounted, swapped to, held by md, LVM or another map."""
    for part in one.parts:
        if isinstance(part.error, UsedByHost) and not writes_store(one, part, site):
            yield one.about(
                RULE,
                part,
                f"{part.use.what} is in use by this host itself: {plain(part.error.how)}",
                "unmount or deactivate it on this host, or give the guest another disk",
            )
