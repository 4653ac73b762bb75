# SPDX-License-Identifier: LGPL-2.1-or-later
"""No format is raw."""

from typing import Iterator

from vmguard.domain import Location, NetworkVolume
from vmguard.lint.document import within
from vmguard.lint.findings import Finding, Needs, Rule, Severity
from vmguard.lint.site import Site
from vmguard.lint.subject import Subject

RULE = Rule("VMG401", "driver-type-missing", Severity.ERROR, Needs.XML, title="the format of a disk image is not said")


def check(one: Subject, site: Site) -> Iterator[Finding]:
    """Disks whose bytes may be an image: what libvirt takes for raw without a word."""
    for disk in one.disks:
        if disk.use is None or disk.format or disk.device not in ("disk", "floppy"):
            continue
        if disk.kind in ("file", "block", "network") and not (
            disk.kind == "network" and _never_image(disk.use.location)
        ):
            yield one.finding(
                RULE,
                disk.what,
                within(disk, "driver"),
                f"the format of {disk.what} is not said: libvirt takes it for raw, whatever it is",
                "<driver name='qemu' type='qcow2'/>, or raw (`qemu-img info` shows which)",
            )


def _never_image(location: Location) -> bool:
    return isinstance(location, NetworkVolume) and location.protocol in ("rbd", "iscsi", "sheepdog", "vxhs")
