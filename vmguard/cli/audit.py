# SPDX-License-Identifier: LGPL-2.1-or-later
"""`vmguard audit`: who held which volume when, and what else happened to it."""

import argparse
import json
import os
import sys
import time
from typing import Any, Dict, List, Tuple

from vmguard import deadline, host
from vmguard.audit import history, shared, timeline
from vmguard.audit.history import Event, Span, Wanted
from vmguard.cli import _show
from vmguard.domain import HostPath, uuid_in
from vmguard.errors import BadRequest, Error, Late
from vmguard.text import duration, moment, plain

# Seconds, until a disk that is asked about is taken for one that does not answer.
_PATIENCE = 10.0


def add(commands: Any) -> None:
    """The subcommand."""
    audit = commands.add_parser(
        "audit",
        help="who held which volume when, and what was done to it",
        description="Show what has happened: who held which volume from when until when, refusals, overrides, handovers,"
        " conflicts, and what others did to a volume that a guest held. Of other hosts, what their vmguardd has copied to the"
        " store. Times at which vmguardd did not watch are shown as unseen.",
    )
    audit.add_argument("--disk", metavar="PATH|IDENTITY", default="", help="of one disk, by any of its paths")
    audit.add_argument("--domain", metavar="NAME|UUID", default="", help="of one domain")
    audit.add_argument("--host", metavar="NAME", default="", help="of one host")
    moments = "90m, 12h, 3d (ago), yesterday, 2026-11-25, '2026-11-25 14:00', with a zone behind it or not, @SECONDS"
    audit.add_argument("--since", metavar="WHEN", default="", help=moments)
    elsewhere = "read events that were kept elsewhere instead; can be repeated"
    audit.add_argument("--file", metavar="FILE", action="append", default=[], help=elsewhere)
    how = audit.add_mutually_exclusive_group()
    how.add_argument("--held", action="store_true", help="only who held what from when until when")
    how.add_argument("--follow", "-f", action="store_true", help="go on with what happens on this host from now on")
    how.add_argument("--svg", metavar="FILE", help="the life of one disk as a picture (with --disk)")
    audit.add_argument("--json", action="store_true", help="one JSON object a line")
    audit.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Exit status 0."""
    since = history.moment_of(options.since) if options.since else 0.0
    disk = _names(options.disk) if options.disk else ()
    wanted = Wanted(since, disk, _whose(options.domain), options.host)
    if options.svg and not disk:
        raise BadRequest("a picture shows one disk", "add --disk")
    if options.file and options.follow:
        raise BadRequest("files that were kept elsewhere do not go on", "leave out --file or --follow")
    # A span may have begun before what is asked for, and end with what concerns the whole host.
    whole = bool(options.svg or options.held)
    asked = Wanted(host=options.host) if whole else wanted
    if options.file:
        found, place = history.read(asked, options.file), (0, 0)
    else:
        found, place = history.read_on(asked)
        elsewhere, missing = shared.of_others(asked)
        for why in missing:
            print(f"what other hosts have written down is not shown whole: {why}", file=sys.stderr)
        found = history.in_order([*found, *([_booted()] if whole else []), *elsewhere])
    if options.svg:
        return _draw(options, wanted, found)
    if options.held:
        return _held(options, wanted, found)
    told = list(filter(wanted.takes, found))
    for event in told:
        _print(event, options.json)
    if not told and not options.json:
        print("nothing is written down about that", file=sys.stderr)
    if options.follow:
        sys.stdout.flush()
        for event in history.follow(wanted, place):
            _print(event, options.json)
            sys.stdout.flush()
    return 0


def _whose(domain: str) -> Tuple[str, ...]:
    """A domain as it was asked for: a name, or a uuid however it is written."""
    return tuple(filter(None, (domain, uuid_in(domain))))


def _names(disk: str) -> Tuple[str, ...]:
    """A disk as it was asked for, and the identities that it has on this host."""
    if not disk.startswith("/"):
        return (disk,)
    try:
        _, text = deadline.run(_PATIENCE, lambda: (0, json.dumps(_identities(disk))))
    except Late:  # which may be why somebody asks what happened
        print(f"{plain(disk)} does not answer: what is known of it by other names is not shown", file=sys.stderr)
        return (disk,)
    return (disk, *json.loads(text))


def _identities(path: str) -> List[str]:
    """None of what is not there, or not to be identified: it may have been another thing then."""
    from vmguard.storage import resolve
    from vmguard.storage.facts import LiveFacts

    try:
        found = resolve(HostPath(path), LiveFacts()) if os.path.exists(path) else ()
    except Error:
        return []
    return [name for storage in found for name in (storage.identity, *storage.also)]


def _booted() -> Event:
    """That this host was started, which nobody may have written down yet: what was held before is held no longer."""
    began = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
    return {"time": began, "host": host.name(), "event": "booted", "boot": host.boot_id()}


def _spans(wanted: Wanted, found: List[Event], now: float) -> List[Span]:
    return [
        span
        for span in history.spans(found, wanted.disk)
        if (span.until or now) >= wanted.since and (not wanted.domain or {*wanted.domain} & {span.domain, span.uuid})
    ]


def _draw(options: argparse.Namespace, wanted: Wanted, found: List[Event]) -> int:
    now = time.time()
    marks = list(filter(wanted.takes, found))
    text = timeline.draw(options.disk, _spans(wanted, found, now), marks, history.gaps(found), now)
    if options.svg == "-":
        sys.stdout.write(text)
        return 0
    try:
        with open(options.svg, "w", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise BadRequest(f"{options.svg}: {error.strerror}") from error
    return 0


def _held(options: argparse.Namespace, wanted: Wanted, events: List[Event]) -> int:
    now = time.time()
    found = _spans(wanted, events, now)
    if options.json:
        for span in found:
            print(json.dumps(span._asdict()))
        return 0
    rows = [
        (
            moment(span.since),
            moment(span.until) if span.until is not None else "now",
            duration((span.until or now) - span.since),
            span.host,
            span.domain,
            span.mode,
            span.path,
        )
        for span in found
    ]
    _show.table("held", ("from", "until", "for", "host", "domain", "mode", "what"), rows)
    return 0


def _print(event: Event, as_json: bool) -> None:
    if as_json:
        print(json.dumps(event))
        return
    domain = plain(event.get("domain") or "")
    print(f"{moment(event['time'])}  {plain(str(event.get('host', '')))}  {event['event']:<13} {domain:<16} {_words(event)}")


def _words(event: Dict[str, Any]) -> str:
    if event.get("disks") is not None and not event.get("text"):
        disks = ", ".join(f"{plain(one['path'])} ({one.get('mode', '?')})" for one in event["disks"])
        return disks or "no disks"
    lines = str(event.get("text", "")).splitlines() or [""]
    if event["event"] == "bug":
        return plain(lines[-1])  # of a trace
    # The first line says it all; of those below, the ones that name somebody.
    more = [line.strip() for line in lines[1:] if line.strip().startswith(("disk:", "path:", "by:"))]
    return "; ".join(plain(" ".join(line.split())) for line in [lines[0], *more])
