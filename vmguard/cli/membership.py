# SPDX-License-Identifier: LGPL-2.1-or-later
"""`vmguard join` and `vmguard leave`."""

import argparse
from typing import Any

from vmguard.membership import join_host, leave_host


def add(commands: Any) -> None:
    """The two subcommands."""
    join = commands.add_parser(
        "join",
        help="become a member of the lockspace (done at boot)",
        description="Become a member of the lockspace of this host's store, which takes 2 io_timeouts + 1 s. Guests that lost"
        " their leases, because sanlock was restarted, are stopped meanwhile and get them back, or are killed if somebody else"
        " had their disks. Exit status 1 if a guest was killed or stays stopped.",
    )
    join.set_defaults(run=run_join)
    leave = commands.add_parser(
        "leave",
        help="leave the lockspace; refused while guests need it",
        description="Leave the lockspace of this host's store. Refused while guests on this host need their leases. No guest"
        " can start here until `vmguard join`, or the next boot.",
    )
    leave.set_defaults(run=run_leave)


def run_join(options: argparse.Namespace) -> int:
    """Exit status 1 if a guest had to be killed or is left stopped."""
    joined = join_host()
    print("this host was a member already" if joined.was_member else "this host is a member of the lockspace")
    for verb, names in (
        ("has its leases again, and goes on", joined.kept),
        ("was killed: somebody else had its disk meanwhile", joined.killed),
        ("stays stopped: its leases could not be taken; run `vmguard join` again", joined.unsure),
    ):
        for name in names:
            print(f"  {name}: {verb}")
    return 1 if joined.killed or joined.unsure else 0


def run_leave(options: argparse.Namespace) -> int:
    """Raises BadRequest while guests need their leases."""
    print("this host has left the lockspace" if leave_host() else "this host was no member")
    return 0
