# SPDX-License-Identifier: LGPL-2.1-or-later
"""The header against the definition."""

from typing import Iterator

from vmguard.lint.document import within
from vmguard.lint.findings import Finding, Needs, Rule, Severity
from vmguard.lint.images import header_format
from vmguard.lint.looking import header_trouble
from vmguard.lint.site import Site
from vmguard.lint.subject import Subject
from vmguard.text import plain

RULE = Rule(
    "VMG402",
    "driver-type-mismatch",
    Severity.ERROR,
    Needs.HOST,
    title="the format that is said is not the one that the image has",
)


def check(one: Subject, site: Site) -> Iterator[Finding]:
    """The header against <driver type=...>; and whatever else the guard finds to be no image of its format."""
    said = set()
    for disk, storage in one.live_disks(site):
        if storage.kind == "directory" or disk.device not in ("disk", "floppy") or not disk.format:
            continue
        seen = header_format(disk, site)
        # a fixed vpc image has its cookie at the end, and these have none that is looked for
        if seen and seen != disk.format and not (seen == "raw" and disk.format not in _HEADED):
            said.add(disk.what)
            words = "no image at all" if seen == "raw" else f"a {seen} image"
            yield one.finding(
                RULE,
                disk.what,
                within(disk, "driver"),
                f"{disk.what} is said to be {plain(disk.format)}, but is {words}",
                f"say type='{seen}' if it is meant; if a guest wrote that header into a raw disk, it is an attack",
            )
    for part in one.parts:
        error = header_trouble(part)
        if error is not None and part.use.what not in said:
            yield one.about(
                RULE,
                part,
                f"{part.use.what}: {plain(error.why)}",
                "say the format that it has (`qemu-img info` shows which)",
            )


_HEADED = ("qcow2", "qcow", "qed", "vhdx")
