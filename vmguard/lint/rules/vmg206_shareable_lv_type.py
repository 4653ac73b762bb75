# SPDX-License-Identifier: LGPL-2.1-or-later
"""Volumes that cannot be active on two hosts."""

from typing import Iterator

from vmguard.lint.document import within
from vmguard.lint.findings import Finding, Needs, Rule, Severity
from vmguard.lint.site import Site
from vmguard.lint.subject import Subject

RULE = Rule(
    "VMG206",
    "shareable-lv-type",
    Severity.ERROR,
    Needs.HOST,
    deny=True,
    title="a shareable disk is a logical volume that only one host can have active",
)


_ONE_HOST = ("thin", "thin-pool", "cache", "cache-pool", "writecache", "mirror", "raid", "snapshot", "vdo", "integrity")


def check(one: Subject, site: Site) -> Iterator[Finding]:
    """By LVM's own report, and by the pool that lies beneath."""
    for disk, storage in one.live_disks(site):
        if not disk.shareable or not storage.identity.startswith("lvm:"):
            continue
        volume = site.volumes.get(storage.identity)
        kinds = sorted(kind for kind in (volume.kinds if volume else ()) if kind.startswith(_ONE_HOST))
        if storage.one_host:
            kinds = kinds or ["thin"]
        elif any(below.identity.startswith("lvm:") for below in storage.under):
            kinds = kinds or ["snapshot"]
        if kinds:
            yield one.finding(
                RULE,
                disk.what,
                within(disk, "source"),
                f"{disk.what} is shareable, and a logical volume of type {kinds[0]}: only one host can have it active",
                "use a linear or striped volume, or give each guest its own disk",
            )
