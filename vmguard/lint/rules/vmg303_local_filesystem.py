# SPDX-License-Identifier: LGPL-2.1-or-later
"""The same path, another file on each host."""

from typing import Iterator

from vmguard.lint.document import within
from vmguard.lint.findings import Finding, Needs, Rule, Severity
from vmguard.lint.site import Site
from vmguard.lint.subject import Subject

RULE = Rule(
    "VMG303",
    "local-filesystem",
    Severity.ERROR,
    Needs.CLUSTER,
    title="an image lies on a filesystem that only this host has",
)


def check(one: Subject, site: Site) -> Iterator[Finding]:
    """Disks that are written: what is only read is often put on each host on purpose."""
    if site.config is None or not site.config.shared:
        return
    shared = site.shared_files()
    for disk, storage in one.live_disks(site):
        if shared and storage.identity.startswith(shared):
            continue
        if disk.written and storage.kind in ("file", "directory") and not storage.others_see_it:
            yield one.finding(
                RULE,
                disk.what,
                within(disk, "source"),
                f"{disk.what} lies on a filesystem of this host alone: on another host the same path is another file",
                "move it to storage that all hosts share, or allow it with the reason (a guest that never moves)",
            )
