# SPDX-License-Identifier: LGPL-2.1-or-later
"""`vmguard identify PATH`: what a path physically is."""

import argparse
import os
from typing import Any, Dict

from vmguard.cli import _show
from vmguard.domain import HostPath
from vmguard.storage import Storage, describe, resolve
from vmguard.storage.facts import LiveFacts
from vmguard.text import plain


def add(commands: Any) -> None:
    """The subcommand."""
    identify = commands.add_parser(
        "identify",
        help="what a path physically is, and how that is known",
        description="Print the identity of what a path leads to: equal for all names of one thing, on all hosts.",
    )
    identify.add_argument("paths", metavar="PATH", nargs="+", help="a file, a device, or a link to one")
    identify.add_argument("--json", action="store_true", help="one JSON document")
    identify.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Raises Unresolvable for a path that leads nowhere."""
    facts = LiveFacts()
    found = {path: resolve(HostPath(os.path.abspath(path)), facts) for path in options.paths}
    if options.json:
        plain_objects = {path: [_plain(storage) for storage in objects] for path, objects in found.items()}
        _show.as_json({"version": 1, "paths": plain_objects})
        return 0
    for path, objects in found.items():
        print(plain(path))
        for storage in objects:
            for line in describe(storage):
                print(f"  {line}")
        if not objects:
            print("  no storage: nothing there keeps what a guest writes")
    return 0


def _plain(storage: Storage) -> Dict[str, Any]:
    record = storage._asdict()
    record["under"] = [_plain(one) for one in storage.under]
    record["one_host"] = [_plain(one) for one in storage.one_host]
    return record
