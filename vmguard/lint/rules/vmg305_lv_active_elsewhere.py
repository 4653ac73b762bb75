# SPDX-License-Identifier: LGPL-2.1-or-later
"""A volume that another host has."""

from typing import Iterator

from vmguard.lint.document import within
from vmguard.lint.findings import Finding, Needs, Rule, Severity
from vmguard.lint.site import Site
from vmguard.lint.subject import Subject
from vmguard.text import plain

RULE = Rule(
    "VMG305",
    "lv-active-elsewhere",
    Severity.ERROR,
    Needs.CLUSTER,
    deny=True,
    title="a logical volume belongs to another host",
)


def missing(one: Subject, site: Site) -> str:
    """Why LVM could not be asked, where that matters."""
    volumes = any(storage.identity.startswith("lvm:") for _, storage in one.live_disks(site))
    return site.lvm_trouble if volumes else ""


def check(one: Subject, site: Site) -> Iterator[Finding]:
    """By the volume group's system id, and by what lvmlockd says."""
    for disk, storage in one.live_disks(site):
        volume = site.volumes.get(storage.identity)
        if volume is None or disk.shareable:
            continue
        foreign = bool(volume.system_id) and volume.system_id != site.system_id
        if foreign or volume.active_remotely:
            whose = f"belongs to {plain(volume.system_id)}" if foreign else "is active on another host"
            yield one.finding(
                RULE,
                disk.what,
                within(disk, "source"),
                f"{disk.what}: {plain(volume.name)} {whose}",
                "deactivate it there first (lvchange -an), and see that no guest runs on it",
            )
