# SPDX-License-Identifier: LGPL-2.1-or-later
"""`vmguard report --html FILE`: the storage of a cluster on one page."""

import argparse
import os
import tempfile
from typing import Any

from vmguard.cli import lint
from vmguard.errors import BadRequest


def add(commands: Any) -> None:
    """The subcommand."""
    report = commands.add_parser(
        "report",
        help="the storage of a cluster on one page of HTML",
        description="Write one page of HTML, without anything outside of it: guests, hosts and disks, who shares what"
        " with whom, and what vmguard lint finds.",
    )
    report.add_argument("files", metavar="FILE|FOLDER", nargs="*", help="definitions")
    report.add_argument("--html", metavar="FILE", required=True, help="the page to write")
    report.add_argument("--all", action="store_true", help="every domain of this host")
    report.add_argument(
        "--connect", metavar="URI", action="append", default=[], help="every domain of a libvirt connection"
    )
    report.add_argument("--inventory", metavar="FOLDER", action="append", default=[], help="definitions of other hosts")
    report.add_argument("--offline", action="store_true", help="look at nothing of this host")
    report.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Exit status 0 whatever was found. Raises BadRequest and Misconfigured."""
    from vmguard.lint import engine, html, registry, site

    named = [name for name in options.files if name != "-"]
    if not (named or options.all or options.connect or options.inventory):
        options.all = True
    found = lint.gather(named, options.all, options.connect, options.inventory, options.offline)
    # Here nothing is only compared with: the page is of them all.
    found = [(origin._replace(target=True), read) for origin, read in found]
    report = engine.run(found, site.here(options.offline, inventory=True), registry.load(), lint.progress())
    folder = os.path.dirname(os.path.abspath(options.html))
    try:
        # whole or not at all: it may be served while it is made anew
        handle, new = tempfile.mkstemp(prefix=".vmguard-", dir=folder)
        with os.fdopen(handle, "w", encoding="utf-8", errors="replace") as file:
            file.write(html.page(report))
        os.chmod(new, 0o644)
        os.replace(new, options.html)
    except OSError as error:
        raise BadRequest(f"{options.html}: {error.strerror}") from error
    counts = engine.tally(report)
    print(f"{options.html}: {report.definitions} definitions, {counts['errors']} errors, {counts['warnings']} warnings")
    return 0
