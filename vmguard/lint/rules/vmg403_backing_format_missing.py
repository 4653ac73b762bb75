# SPDX-License-Identifier: LGPL-2.1-or-later
"""A backing file without a format."""

from typing import Iterator

from vmguard.lint.document import within
from vmguard.lint.findings import Finding, Needs, Rule, Severity
from vmguard.lint.images import unsaid_formats
from vmguard.lint.site import Site
from vmguard.lint.subject import Subject
from vmguard.text import plain

RULE = Rule(
    "VMG403",
    "backing-format-missing",
    Severity.WARNING,
    Needs.HOST,
    title="an image does not say what format its backing file has",
)


def check(one: Subject, site: Site) -> Iterator[Finding]:
    """The header of each image that names a backing file."""
    for disk in one.disks:
        if disk.use is None or disk.use.format is None or disk.use.chain_ends or disk.use.backing:
            continue
        for image, behind in unsaid_formats(one, disk.use, site):
            yield one.finding(
                RULE,
                disk.what,
                within(disk, "source"),
                f"{disk.what}: {plain(image)} does not say the format of its backing file {plain(behind)}",
                f"qemu-img rebase -u -F raw -b {plain(behind)} {plain(image)} (or qcow2), while no guest has it open",
            )
