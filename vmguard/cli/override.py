# SPDX-License-Identifier: LGPL-2.1-or-later
"""`vmguard override`: let one start through, with a reason, written down."""

import argparse
import os
import time
from typing import Any

from vmguard import events, overrides
from vmguard.cli import _domains, _show
from vmguard.errors import BadRequest
from vmguard.text import duration, moment, quoted


def add(commands: Any) -> None:
    """The subcommand."""
    override = commands.add_parser(
        "override",
        help="let the next start of one domain through, whatever is found",
        description="Let the next start of one domain on this host through, whatever the guard finds. It counts for one"
        f" start and for {duration(overrides.VALID_SECONDS)}. If another guest writes the disk, it will be destroyed:"
        " look at `vmguard check DOMAIN` first.",
    )
    which = "name, uuid, or an XML file (with a / in it); without it, list what is pending"
    override.add_argument("domain", metavar="DOMAIN", nargs="?", help=which)
    override.add_argument("--reason", help="why; it is written to the event log")
    override.add_argument("--withdraw", action="store_true", help="take an unused override back")
    override.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Give, withdraw or list."""
    if options.domain is None:
        rows = [(one.name, one.reason, one.by, moment(one.given)) for one in overrides.pending()]
        _show.table("overrides that wait for their start", ("domain", "reason", "by", "given"), rows)
        return 0
    domain = _domains.domain_of(options.domain)
    if not domain.uuid:
        raise BadRequest("the definition has no uuid, so its start could not be recognized", "give it a <uuid>")
    if options.withdraw:
        print("withdrawn" if overrides.withdraw(domain.uuid) else "there was none")
        return 0
    if not (options.reason or "").strip():
        raise BadRequest("an override needs a reason", f"vmguard override {options.domain} --reason '...'")
    by = os.environ.get("SUDO_USER") or os.environ.get("LOGNAME") or f"uid {os.getuid()}"
    overrides.give(overrides.Override(domain.uuid, domain.name, options.reason.strip(), by, time.time()))
    events.record("override-given", options.reason, domain=domain.name, uuid=domain.uuid, by=by)
    print(f"the next start of {quoted(domain.name)} on this host goes through, within an hour and once")
    return 0
