# SPDX-License-Identifier: LGPL-2.1-or-later
"""A volume group without lock type and system id."""

from typing import Iterator

from vmguard.lint.document import within
from vmguard.lint.findings import Finding, Needs, Rule, Severity
from vmguard.lint.site import Site
from vmguard.lint.subject import Subject
from vmguard.text import plain

RULE = Rule("VMG304", "lv-without-owner", Severity.ERROR, Needs.HOST, title="a shared volume group belongs to nobody")


def missing(one: Subject, site: Site) -> str:
    """Why LVM could not be asked, where that matters."""
    volumes = any(storage.identity.startswith("lvm:") for _, storage in one.live_disks(site))
    return site.lvm_trouble if volumes else ""


def check(one: Subject, site: Site) -> Iterator[Finding]:
    """Only where other hosts can reach what lies beneath."""
    for disk, storage in one.live_disks(site):
        volume = site.volumes.get(storage.identity)
        if volume is None or volume.system_id or volume.lock_type not in ("", "none"):
            continue
        if storage.others_see_it:
            group = volume.name.partition("/")[0]
            yield one.finding(
                RULE,
                disk.what,
                within(disk, "source"),
                f"{disk.what}: any host that sees the volume group {plain(group)} can activate and change it",
                f"vgchange --lock-type sanlock {plain(group)} (lvmlockd), or vgchange --systemid on the one host that has it",
            )
