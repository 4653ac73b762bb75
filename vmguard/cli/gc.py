# SPDX-License-Identifier: LGPL-2.1-or-later
"""`vmguard gc`: give back what nobody needs, mend what is damaged."""

import argparse
from typing import Any

from vmguard.cli import _domains, _show
from vmguard.gc import collect


def add(commands: Any) -> None:
    """The subcommand."""
    gc = commands.add_parser(
        "gc",
        help="give back what nobody needs; with --repair, make damaged leases anew",
        description="Look for leases that are held for nobody, records that cannot be read, remains of lease files and"
        " damaged leases, and mend what is certain. Exit status 1 if something is left to do.",
    )
    gc.add_argument("--dry-run", action="store_true", help="say it, change nothing")
    gc.add_argument("--repair", action="store_true", help="make damaged leases anew where nobody can be holding them")
    gc.add_argument("--force", metavar="REASON", default="", help="with --repair: also where another host might")
    gc.add_argument("--json", action="store_true", help="one JSON document")
    gc.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Exit status 1 if anything is left that needs a hand."""
    found = collect(_domains.off, repair=options.repair, force=options.force, dry_run=options.dry_run)
    if options.json:
        _show.as_json({"version": 1, "found": [one._asdict() for one in found]})
    else:
        for one in found:
            print(f"{'mended' if one.mended else 'left'}: {one.what}: {one.text}")
        if not found:
            print("nothing to do")
    return 0 if all(one.mended for one in found) else 1
