# SPDX-License-Identifier: LGPL-2.1-or-later
"""Only raw images can be shared."""

from typing import Iterator

from vmguard.lint.document import within
from vmguard.lint.findings import Finding, Needs, Rule, Severity
from vmguard.lint.site import Site
from vmguard.lint.subject import Subject
from vmguard.text import plain

RULE = Rule(
    "VMG201",
    "shareable-not-raw",
    Severity.ERROR,
    Needs.XML,
    title="a shareable disk is an image with metadata of its own",
)


def check(one: Subject, site: Site) -> Iterator[Finding]:
    """Writers side by side need an image without a table that each of them keeps for itself."""
    for disk in one.disks:
        if disk.shareable and disk.written and disk.format and disk.format != "raw":
            yield one.finding(
                RULE,
                disk.what,
                within(disk, "driver"),
                f"{disk.what} is shareable, and a {plain(disk.format)} image: only raw ones can have more than one writer",
                "make it a raw image or a block device, or take <shareable/> out",
            )
