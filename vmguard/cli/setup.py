# SPDX-License-Identifier: LGPL-2.1-or-later
"""vmguard setup: prepare this host, or take the guard off it."""

import argparse
import json
import os
import sys
from typing import Any, List

from vmguard import config
from vmguard.config import Guarding
from vmguard.errors import BadRequest
from vmguard.setup import removal, steps
from vmguard.setup.plan import Change, Plan, carry_out
from vmguard.text import plain


def add(subparsers: Any) -> None:
    """Add the subcommand to the main parser."""
    parser = subparsers.add_parser(
        "setup",
        help="prepare this host, or take the guard off it",
        description="Prepare this host, or take the guard off it (--remove). What is to be changed is shown first, with what"
        " stood there before. It can be run again at any time, also after it was interrupted.",
    )
    yes_no = argparse.BooleanOptionalAction
    parser.add_argument("--store", metavar="PATH", help="directory or block device of the leases, which all hosts share")
    parser.add_argument("--host-id", type=_host_id, metavar="N|auto", help="this host's number in the store")
    parser.add_argument("--io-timeout", type=_io_timeout, metavar="S", help="sanlock's unit of time, in seconds (10)")
    shared = ("yes", "no", "auto")
    parser.add_argument("--shared", choices=shared, default="auto", help="whether other hosts see the store (auto)")
    parser.add_argument("--single-host", action=yes_no, help="there is no other host that could reach storage of this one")
    parser.add_argument(
        "--accept-no-watchdog", action=yes_no, help="start guests also where nothing ends one that has lost its leases"
    )
    mode = "enforce: refuse what would endanger data; audit: let it pass and record it; off: look at nothing"
    parser.add_argument("--mode", choices=[each.value for each in Guarding], help=mode)
    parser.add_argument("--remove", action="store_true", help="take the guard off this host")
    keep = "with --remove: go on although guests run; they keep the leases that they have"
    parser.add_argument("--keep-guests", action="store_true", help=keep)
    parser.add_argument("--yes", action="store_true", help="do not ask")
    parser.add_argument("--dry-run", action="store_true", help="show what would be changed, and change nothing")
    parser.add_argument("--no-restart", action="store_true", help="do not restart libvirt's daemon, but say that it must be")
    parser.add_argument("--json", action="store_true", help="say it in JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """
    Plan, show, ask, do. 0: this host is as it should be; 1: not carried out. What is wrong is raised as vmguard's
    errors.
    """
    if os.geteuid() != 0:
        raise BadRequest("setup changes this host's configuration", "run it as root")
    if args.json and not (args.yes or args.dry_run):
        raise BadRequest("--json cannot ask", "add --yes or --dry-run")
    if args.keep_guests and not args.remove:
        raise BadRequest("--keep-guests is for --remove only", "add --remove, or leave it out")
    os.umask(0o022)
    plan = removal.plan(not args.no_restart, args.keep_guests) if args.remove else steps.plan(_wishes(args))
    if not args.json:
        _show(plan)
    done: List[Change] = []
    if plan.changes and not args.dry_run:
        many = len(plan.changes)
        if not args.yes and not confirmed(f"Make {'this change' if many == 1 else f'these {many} changes'}?"):
            print("Nothing was changed.")
            return 1
        carry_out(plan, lambda change: _doing(change, done, args.json))
    if args.json:
        print(json.dumps(_as_data(plan, len(done)), indent=1))
    else:
        _close(plan, args)
    return 0


def _wishes(args: argparse.Namespace) -> steps.Wishes:
    return steps.Wishes(
        store=args.store,
        host_id=args.host_id,
        io_timeout=args.io_timeout,
        single_host=args.single_host,
        shared=None if args.shared == "auto" else args.shared == "yes",
        accept_no_watchdog=args.accept_no_watchdog,
        mode=Guarding(args.mode) if args.mode else None,
        restart=not args.no_restart,
    )


def _host_id(text: str) -> Any:
    if text == "auto":
        return None
    return _number(text, config.MAX_HOST_ID)


def _io_timeout(text: str) -> int:
    return _number(text, config.MAX_IO_TIMEOUT)


def _number(text: str, most: int) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 7 and 1 <= int(text) <= most):
        raise argparse.ArgumentTypeError(f"a whole number from 1 to {most} is wanted")
    return int(text)


def _show(plan: Plan) -> None:
    if plan.changes:
        print("To be changed on this host:\n")
    for number, change in enumerate(plan.changes, 1):
        print(f"{number:3}. {change.what}: {plain(change.where)}")
        _show_text("was", change.before)
        _show_text("becomes", change.after)
    if plan.changes:
        print()
    for remark in plan.remarks:
        print(f"Note: {plain(remark)}\n")


def _show_text(label: str, text: Any) -> None:
    if text is None:
        text = "not there" if label == "was" else "taken away"
    lines = [line for line in text.splitlines() if line and not line.startswith("#")] or ["empty"]
    print(f"       {label + ':':9}{plain(lines[0])}")
    for line in lines[1:]:
        print(f"       {'':9}{plain(line)}")


def confirmed(question: str) -> bool:
    """Whether somebody at the terminal says yes. Raises BadRequest where nobody is."""
    if not sys.stdin.isatty():
        raise BadRequest("nobody is there to ask", "add --yes to change this, or --dry-run to look only")
    try:
        answer = input(f"{question} [y/N] ")
    except EOFError:
        return False
    return answer.strip().lower() in ("y", "yes")


def _doing(change: Change, done: List[Change], silent: bool) -> None:
    done.append(change)
    if not silent:
        print(f"{change.what} ...", flush=True)


def _close(plan: Plan, args: argparse.Namespace) -> None:
    if not plan.changes:
        print("Nothing to do: this host is not set up." if args.remove else "Nothing to do: this host is set up.")
    elif args.dry_run:
        print("Nothing was changed.")
    elif args.remove:
        print("The guard is off this host.")
    else:
        print("This host is set up.")
    for sentence in plan.left:
        print(f"\nLeft to do: {plain(sentence)}")


def _as_data(plan: Plan, done: int) -> Any:
    changes = [
        {"what": each.what, "where": each.where, "before": each.before, "after": each.after, "done": number < done}
        for number, each in enumerate(plan.changes)
    ]
    return {"changes": changes, "remarks": plan.remarks, "left": plan.left}
