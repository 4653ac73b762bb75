# SPDX-License-Identifier: LGPL-2.1-or-later
"""Dirty pages that outlive the guest."""

from typing import Iterator

from vmguard.lint.document import within
from vmguard.lint.findings import Finding, Needs, Rule, Severity
from vmguard.lint.site import Site
from vmguard.lint.subject import Subject

RULE = Rule(
    "VMG404",
    "cache-unsafe-to-migrate",
    Severity.WARNING,
    Needs.HOST,
    title="what the guest writes waits in the cache of its host, while other hosts can reach the disk",
)


def check(one: Subject, site: Site) -> Iterator[Finding]:
    """Devices that other hosts reach, and files on NFS; a cluster filesystem sees to it itself."""
    for disk, storage in one.live_disks(site):
        if (
            not disk.written
            or disk.shareable
            or not (disk.use and disk.use.host_cached)
            or not storage.others_see_it
            or disk.cache == "unsafe"
        ):
            continue
        if storage.device is not None or storage.identity.startswith("file:nfs-"):
            yield one.finding(
                RULE,
                disk.what,
                within(disk, "driver"),
                f"{disk.what} is reached by other hosts, and written through the page cache of this one",
                "set cache='none' (libvirt's default is writeback)",
            )
