# SPDX-License-Identifier: LGPL-2.1-or-later
"""Names that move."""

import posixpath
import re
from typing import Iterator

from vmguard.lint.document import within
from vmguard.lint.findings import Finding, Needs, Rule, Severity
from vmguard.lint.site import Site
from vmguard.lint.subject import Subject
from vmguard.text import plain

RULE = Rule(
    "VMG301",
    "unstable-device-name",
    Severity.WARNING,
    Needs.XML,
    title="a device is named in the order in which it was found",
)


_UNSTABLE = re.compile(r"/dev/(?:(?:sd|vd|hd|xvd)[a-z]+\d*|nvme\d+n\d+(?:p\d+)?|loop\d+(?:p\d+)?|nbd\d+|md\d+|rbd\d+)")


def check(one: Subject, site: Site) -> Iterator[Finding]:
    """By the form of the name alone."""
    for disk in one.disks:
        if (
            disk.device != "cdrom"
            and disk.path.startswith("/dev/")
            and _UNSTABLE.fullmatch(posixpath.normpath(disk.path))
        ):
            yield one.finding(
                RULE,
                disk.what,
                within(disk, "source"),
                f"{disk.what}: {plain(disk.path)} may be another device after the next boot, and on the next host",
                "name it by a link below /dev/disk/by-id (ls -l /dev/disk/by-id shows which)",
            )
