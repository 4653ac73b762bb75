# SPDX-License-Identifier: LGPL-2.1-or-later
"""Numbers that move."""

import posixpath
import re
from typing import Iterator

from vmguard.lint.document import within
from vmguard.lint.findings import Finding, Needs, Rule, Severity
from vmguard.lint.site import Site
from vmguard.lint.subject import Subject
from vmguard.text import plain

RULE = Rule(
    "VMG302", "dm-minor-name", Severity.WARNING, Needs.XML, title="a device-mapper device is named by its minor number"
)


_MINOR = re.compile(r"/dev/dm-[0-9]+")


def check(one: Subject, site: Site) -> Iterator[Finding]:
    """By the form of the name alone."""
    for disk in one.disks:
        if _MINOR.fullmatch(posixpath.normpath(disk.path)):
            yield one.finding(
                RULE,
                disk.what,
                within(disk, "source"),
                f"{disk.what}: {plain(disk.path)} is numbered in the order of activation, and may be another volume next time",
                "name it /dev/VG/LV, or by a link below /dev/mapper or /dev/disk/by-id",
            )
