# SPDX-License-Identifier: LGPL-2.1-or-later
"""`vmguard doctor`: what makes the guard on this host silently useless, each with its fix."""

import argparse
import os
from typing import Any, List

from vmguard import host
from vmguard.cli import _show
from vmguard.doctor import Finding, Look, Severity, examine, mend
from vmguard.errors import BadRequest
from vmguard.text import plain

WORDS = {Severity.OK: "ok", Severity.WARNING: "warning", Severity.ERROR: "ERROR", Severity.UNKNOWN: "unknown"}


def add(commands: Any) -> None:
    """The subcommand."""
    doctor = commands.add_parser(
        "doctor",
        help="check everything that the guard on this host rests on; say what mends it",
        description="Check everything that the guard on this host rests on. Exit status: 0 all is well, 1 warnings,"
        " 2 something is not guarded or cannot start, 3 something could not be found out.",
    )
    doctor.add_argument("--json", action="store_true", help="one JSON document")
    doctor.add_argument("--fix", action="store_true", help="mend what can be mended without harm to anybody")
    doctor.add_argument("--quiet", action="store_true", help="only what is not well")
    doctor.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """The worst severity, as monitoring systems take it; an error counts more than what is unknown."""
    if os.geteuid() != 0:
        raise BadRequest("what the guard rests on can be seen by root only", "run it as root")
    look = Look()
    found = examine(look)
    mended: List[Finding] = []
    failed: List[str] = []
    if options.fix and any(finding.mendable for finding in found):
        before, failed = found, mend(found, look)
        found = examine(look)
        wrong = {(finding.check, finding.says) for finding in found if finding.severity}
        mended = [finding for finding in before if finding.mendable and (finding.check, finding.says) not in wrong]
    status = worst(found)
    if options.json:
        _show.as_json(
            {
                "version": 1,
                "host": host.name(),
                "status": WORDS[status].lower(),
                "findings": [_plain(finding) for finding in found],
                "mended": [_plain(finding) for finding in mended],
                "failed": failed,
            }
        )
    else:
        _print(found, mended, failed, options.quiet)
    return int(status)


def worst(found: List[Finding]) -> Severity:
    """Of all findings."""
    order = (Severity.OK, Severity.WARNING, Severity.UNKNOWN, Severity.ERROR)
    return max((finding.severity for finding in found), key=order.index, default=Severity.OK)


def _plain(finding: Finding) -> Any:
    return {
        "check": finding.check, "severity": WORDS[finding.severity].lower(), "says": finding.says, "fix": finding.fix,
        "mendable": finding.mendable,
    }  # fmt: skip


def _print(found: List[Finding], mended: List[Finding], failed: List[str], quiet: bool) -> None:
    for finding in mended:
        print(f"mended   {finding.check}: {plain(finding.says)}")
    for sentence in failed:
        print(f"not mended: {plain(sentence)}")
    for finding in found:
        if quiet and finding.severity is Severity.OK:
            continue
        print(f"{WORDS[finding.severity]:8} {finding.check}: {plain(finding.says)}")
        if finding.fix:
            print(f"         {'':{len(finding.check)}}  fix: {plain(finding.fix)}")
    bad = [finding for finding in found if finding.severity is not Severity.OK]
    if not bad and not quiet:
        print("All is well.")
    elif any(finding.mendable for finding in bad):
        print("`vmguard doctor --fix` mends what it can of this.")
