# SPDX-License-Identifier: LGPL-2.1-or-later
"""`vmguard store`: what the store is, and moving it."""

import argparse
import os
import sys
from typing import Any

from vmguard.cli import _show
from vmguard.cli.setup import confirmed
from vmguard.config import load
from vmguard.conversion import convert
from vmguard.errors import BadRequest, Misconfigured
from vmguard.leases.store import Store
from vmguard.setup import steps
from vmguard.setup.plan import carry_out
from vmguard.text import moment, plain


def add(commands: Any) -> None:
    """The subcommand."""
    store = commands.add_parser(
        "store",
        help="show the store of leases; `store convert` moves it",
        description="Show the store of leases of this host: what kind it is, how much room there is.",
    )
    store.add_argument("--json", action="store_true", help="one JSON document")
    store.set_defaults(run=run)
    more = store.add_subparsers(metavar="convert", required=False)
    moving = more.add_parser(
        "convert",
        help="move the leases of the cluster to another directory or block device",
        description="Move the leases of the whole cluster to PATH, a directory or a block device that all hosts share. No"
        " guest may run: stop them and run `vmguard leave` on all other hosts first, and afterwards `vmguard setup"
        " --store PATH` there. What is known of saved states is carried over. Interrupted, it is finished by running it"
        " again.",
    )
    moving.add_argument("path", metavar="PATH", help="the new store")
    moving.add_argument(
        "--shared", choices=("yes", "auto"), default="auto", help="yes: other hosts see PATH, though that does not show"
    )
    moving.add_argument("--yes", action="store_true", help="do not ask")
    moving.set_defaults(run=run_convert)


def run(options: argparse.Namespace) -> int:
    """Exit status 0; what is wrong is raised as vmguard's errors."""
    config = load()
    if config.store is None:
        raise Misconfigured("/etc/vmguard", "this host was not set up", "run `vmguard setup`")
    store = Store.open(config.store, config.cluster)
    room = store.room()
    report = {
        "version": 1,
        "path": store.path,
        "kind": store.kind,
        "cluster": store.cluster,
        "lockspace": store.lockspace,
        "io_timeout": store.io_timeout,
        "sector": store.sector,
        "created": store.created,
        "by": store.by,
        "converted": store.converted or None,
        "taken": room[0] if room else len(store.lease_names()),
        "places": room[1] if room else None,
        "damage": list(store.damage()),
    }
    if options.json:
        _show.as_json(report)
        return 1 if report["damage"] else 0
    print(f"store {plain(store.path)}, a {'block device' if room else 'directory'}")
    print(
        f"made {moment(store.created)} by {plain(store.by)}, io_timeout {store.io_timeout} s, cluster {store.cluster}"
    )
    if store.converted:
        print(f"took the place of another store {moment(store.converted)}")
    print(f"leases of {report['taken']} storage objects" + (f", room for {room[1]}" if room else ""))
    for text in store.damage():
        print(f"warning: {plain(text)}: run `vmguard gc --repair`")
    return 1 if report["damage"] else 0


def run_convert(options: argparse.Namespace) -> int:
    """Exit status 0 when the cluster has moved, 1 if that was not confirmed."""
    if os.geteuid() != 0:
        raise BadRequest("the leases are root's", "run it as root")
    os.umask(0o022)
    path = os.path.abspath(options.path)
    if not options.yes and not confirmed(f"Move the leases of the whole cluster from {load().store} to {path}?"):
        print("Nothing was changed.")
        return 1
    done = convert(path, lambda words: print(f"{plain(words)} ...", flush=True), options.shared == "yes")
    plan = steps.plan(steps.Wishes(store=done.new, shared=True if load().shared else None))
    carry_out(plan, lambda change: print(f"{change.what} ...", flush=True))
    print(f"The leases are in {plain(done.new)} now.")
    print(f"Carried over: who wrote {done.carried} storage objects last. Of {done.lost} nothing was known.")
    print(f"On every other host: vmguard setup --store {plain(done.new)}")
    sys.stdout.flush()
    return 0
