# SPDX-License-Identifier: LGPL-2.1-or-later
"""
What has happened, out of the events of this host: `held`, `released`, `handover` of the guard, what the agent has claimed and
given back, refusals, overrides, and what the agent saw done to a held volume.

A span is one domain holding one storage object on one host. A host that was restarted has released all that it had, though
nobody was left to write that down: then the end of a span is the first thing that is known of the next boot.
"""

import calendar
import json
import os
import re
import time
from datetime import datetime
from typing import Any, BinaryIO, Dict, Iterable, Iterator, List, NamedTuple, Optional, Sequence, Tuple

from vmguard import events
from vmguard.errors import BadRequest

Event = Dict[str, Any]
Place = Tuple[int, int]  # the inode of a file of events, and how far it has been read

# How a volume comes to be held, and how it ceases to be.
_TAKES = ("held", "surprise", "conflict-over")
_GIVES = ("released", "given-back")


class Wanted(NamedTuple):
    """Which events are asked for. Empty: all."""

    since: float = 0.0  # seconds since the epoch
    disk: Tuple[str, ...] = ()  # paths and identities, any of which
    domain: Tuple[str, ...] = ()  # names and uuids, any of which
    host: str = ""

    def takes(self, event: Event) -> bool:
        """Whether an event is one of these."""
        if event["time"] < self.since:
            return False
        if self.host and event.get("host") != self.host:
            return False
        whose = (event.get("domain"), event.get("uuid"), event.get("holder"), event.get("holder_uuid"))
        if self.domain and not set(self.domain) & set(whose):
            return False
        return not self.disk or event["event"] in ("unseen", "watching") or bool(set(self.disk) & set(_names(event)))


OTHERWISE = "held otherwise"  # the same domain goes on to have it, in another mode


class Span(NamedTuple):
    """One domain that holds one storage object."""

    host: str
    domain: str
    uuid: str
    path: str
    identity: str
    mode: str
    since: float
    until: Optional[float] = None  # None: still
    ended: str = ""  # how: "released", "given-back", OTHERWISE, "lost with a restart of the host", "not seen; HOST had it next"
    instance: str = ""
    boot: str = ""


def _names(event: Event) -> Iterator[str]:
    for key in ("path", "identity"):
        if event.get(key):
            yield event[key]
    for disk in event.get("disks") or ():
        yield disk["path"]
        yield disk["identity"]
    # A refusal may name the disk in its sentence alone.
    if event["event"] in ("refused", "would-refuse", "overridden", "alarm", "ended"):
        for line in str(event.get("text", "")).splitlines()[1:]:
            key, colon, rest = line.strip().partition(":")
            if colon and key in ("disk", "path"):
                yield rest.strip()


_TEXTS = ("host", "domain", "uuid", "path", "identity", "mode", "instance", "boot", "holder", "holder_uuid")
_END_OF_TIME = 1e11  # beyond it a calendar knows no more

_PIECE = 1 << 22  # bytes

# How each event begins. Inside of one the quotes of a text are escaped.
_BEGIN = b'{"time": '


def parsed(lines: Iterable[bytes]) -> Iterator[Event]:
    """The events in lines; what a crash or a full disk has left of one is passed over, not what was written behind it."""
    for line in lines:
        try:
            event = json.loads(line[max(0, line.rfind(_BEGIN)) :])
        except ValueError:
            continue
        if _is_event(event):
            yield event


def _is_event(found: Any) -> bool:
    """Whether this is what `events.record` writes: other things may have come to lie in a file."""
    if not isinstance(found, dict) or not isinstance(found.get("time"), (int, float)):
        return False
    disks = found.get("disks") or []
    return (
        0 <= found["time"] < _END_OF_TIME
        and isinstance(found.get("event"), str)
        and all(isinstance(found.get(key, ""), str) for key in _TEXTS)
        and all(isinstance(found.get(key, 0), (int, float)) for key in ("from", "to"))
        and isinstance(disks, list)
        and all(isinstance(one, dict) and isinstance(one.get("path"), str) for one in disks)
        and all(isinstance(one.get("identity"), str) and isinstance(one.get("mode", ""), str) for one in disks)
    )


def _opened() -> List[BinaryIO]:
    """
    The files of this host's events, the oldest first. Raises OSError.

    Opened the other way round: one that is put aside meanwhile is met twice, and counts once; none is missed.
    """
    found: Dict[int, BinaryIO] = {}
    for path in (events.path(), *(f"{events.path()}.{number}" for number in range(1, events.KEPT + 1))):
        try:
            file = open(path, "rb")
        except FileNotFoundError:
            continue
        if found.setdefault(os.fstat(file.fileno()).st_ino, file) is not file:
            file.close()
    return list(found.values())[::-1]


def in_order(found: Iterable[Event]) -> List[Event]:
    """By time; but those of one host in the order in which it wrote them, also where its clock was set back in between."""
    latest: Dict[str, float] = {}

    def when(event: Event) -> float:
        host = event.get("host", "")
        latest[host] = max(latest.get(host, 0.0), float(event["time"]))
        return latest[host]

    return sorted(found, key=when)


def read(wanted: Wanted, paths: Optional[Sequence[str]] = None) -> List[Event]:
    """All that is written down and wanted, in the order of time. Raises BadRequest where it may not be read."""
    found: List[Event] = []
    try:
        for file in _opened() if paths is None else [open(path, "rb") for path in paths]:
            with file:
                if paths is None and os.fstat(file.fileno()).st_mtime < wanted.since:
                    continue  # all of it is older
                found += [event for event in parsed(file) if wanted.takes(event)]
    except OSError as error:
        raise _unreadable(error) from error
    return in_order(found)


def read_on(wanted: Wanted) -> Tuple[List[Event], Place]:
    """The same of this host, and the place from which `follow` goes on: none is missed between the two, or told twice."""
    try:
        lines, where = new_lines((0, 0))
    except OSError as error:
        raise _unreadable(error) from error
    return in_order(filter(wanted.takes, parsed(lines))), where


def _unreadable(error: OSError) -> BadRequest:
    where = error.filename or events.path()
    return BadRequest(f"{where}: {error.strerror}", "run it as root" if isinstance(error, PermissionError) else "")


def new_lines(where: Place) -> Tuple[List[bytes], Place]:
    """The lines behind a place, over rotations; and the place behind them. Raises OSError."""
    found: List[bytes] = []
    places = [where]
    for lines, place in pieces(where):
        found += lines
        places.append(place)
    return found, places[-1]


def pieces(where: Place) -> Iterator[Tuple[List[bytes], Place]]:
    """The same, some megabytes at a time, each with the place behind it."""
    files = {os.fstat(file.fileno()).st_ino: file for file in _opened()}
    behind = where[0] not in files
    for inode, file in files.items():
        with file:
            behind = behind or inode == where[0]
            if not behind:
                continue
            at = where[1] if inode == where[0] else 0
            file.seek(max(0, at - 1))
            if at and file.read(1) != b"\n":
                at = 0  # somebody has emptied it, and it may have grown since
            lines: Optional[List[bytes]] = None
            while lines is None or lines:
                file.seek(at)
                data = _whole_lines(file)
                at += len(data)
                lines = data.splitlines()
                yield lines, (inode, at)


def _whole_lines(file: BinaryIO) -> bytes:
    """What comes next, up to the end of a line; b"" where no line has ended."""
    data = more = file.read(_PIECE)
    while more and b"\n" not in more:
        more = file.read(_PIECE)
        data += more
    return data[: data.rfind(b"\n") + 1]


def follow(wanted: Wanted, where: Place, pause: float = 0.2) -> Iterator[Event]:
    """What is written down behind a place, until interrupted; over rotations, too."""
    while True:
        if _goes_on(where):
            try:
                lines, where = new_lines(where)
            except OSError as error:
                raise _unreadable(error) from error
            yield from (event for event in parsed(lines) if wanted.takes(event))
        time.sleep(pause)


def _goes_on(where: Place) -> bool:
    """Whether anything may be behind a place: mostly there is not, and no file needs to be opened to see that."""
    try:
        newest = os.stat(events.path())
    except OSError:
        return True  # it has just been put aside, perhaps with what nobody has read
    return (newest.st_ino, newest.st_size) != where


def spans(found: Sequence[Event], disk: Sequence[str] = ()) -> List[Span]:
    """Who held what from when until when, by the events; only of these paths and identities, if any are given."""
    over: List[Span] = []
    held: Dict[Tuple[str, str, str], Span] = {}  # by host, start of the guest, and identity
    boots: Dict[str, str] = {}
    begun: Dict[Tuple[str, str, str], int] = {}  # by which event
    alone: Dict[str, List[Tuple[int, Span]]] = {}  # by identity: who was let have it alone, and not beside its own source
    for number, event in enumerate(found):
        name, host = event["event"], event.get("host", "")
        boot = event.get("boot") or boots.get(host, "")
        if boot != boots.setdefault(host, boot):
            boots[host] = boot
            for key in [key for key in held if key[0] == host and held[key].boot not in ("", boot)]:
                over.append(held.pop(key)._replace(until=event["time"], ended="lost with a restart of the host"))
        if name not in _TAKES + _GIVES:
            continue
        # Of a record beside that of the start (".late", ".found"): the start's.
        whose = ".".join(str(event.get("instance", "")).split(".")[:2])
        disks = event.get("disks") or ([event] if event.get("identity") and event.get("mode") else [])
        if name in _TAKES:
            for one in disks:
                key, span = (host, whose, one["identity"]), _span(event, one, boot)
                known = held.get(key)
                if known is not None and known.mode != span.mode:  # what it has read it comes to write
                    over.append(held.pop(key)._replace(until=event["time"], ended=OTHERWISE))
                if key not in held:
                    held[key], begun[key] = span, number
                if span.mode == "exclusive" and event.get("coming") != "migrate":
                    alone.setdefault(span.identity, []).append((number, span))
        elif name == "given-back":
            given = held.pop((host, whose, event.get("identity", "")), None)
            over += [given._replace(until=event["time"], ended=name)] if given is not None else []
        else:
            for key in [key for key in held if key[:2] == (host, whose)]:
                over.append(held.pop(key)._replace(until=event["time"], ended=name))
    left = [_lost(span, begun[key], alone.get(span.identity, ())) for key, span in held.items()]
    both = sorted([*over, *left], key=lambda span: (span.since, span.path))
    return [span for span in both if not disk or span.path in disk or span.identity in disk]


def _lost(span: Span, begun: int, alone: Sequence[Tuple[int, Span]]) -> Span:
    """
    What is held still, as far as anybody has written down. A host that is down writes nothing: what another one has had alone
    since, it has no more.
    """
    then = next((one for number, one in alone if number > begun and one.host != span.host), None)
    return span if then is None else span._replace(until=then.since, ended=f"not seen; {then.host} had it next")


def _span(event: Event, disk: Dict[str, Any], boot: str) -> Span:
    return Span(
        host=event.get("host", ""),
        domain=event.get("domain", ""),
        uuid=event.get("uuid", ""),
        path=disk.get("path", ""),
        identity=disk["identity"],
        mode=disk.get("mode", ""),
        since=event["time"],
        instance=event.get("instance", ""),
        boot=boot,
    )


def gaps(found: Sequence[Event]) -> List[Tuple[str, float, float]]:
    """When nobody watched what was done to held volumes: host, from, to."""
    return [
        (event.get("host", ""), float(event["from"]), float(event["to"]))
        for event in found
        if event["event"] == "unseen" and "from" in event and "to" in event
    ]


_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}


def moment_of(text: str, now: Optional[float] = None) -> float:
    """
    Seconds since the epoch: "90m" (ago), "2026-11-25", "2026-11-25 14:00", "2026-11-25T14:00:30", "yesterday", "today",
    "@1764079200". A time is local, or in the zone behind it: "2026-11-25 14:00:30 UTC", as we show times, "…T14:00:30+01:00".

    Raises BadRequest.
    """
    now = time.time() if now is None else now
    word = text.strip().lower()
    if word[:1] == "@" and re.fullmatch(r"@[0-9]{1,11}(\.[0-9]*)?", word):
        return float(word[1:])
    if word[:-1].isdecimal() and word[-1:] in _UNITS and len(word) < 20:
        return now - int(word[:-1]) * _UNITS[word[-1]]
    if word in ("today", "yesterday"):
        day = time.localtime(now)
        return time.mktime((day.tm_year, day.tm_mon, day.tm_mday - (word == "yesterday"), 0, 0, 0, 0, 0, -1))
    for form in ("%Y-%m-%d", "%Y-%m-%d %H:%M", "%Y-%m-%d %H:%M:%S", "%Y-%m-%dT%H:%M", "%Y-%m-%dT%H:%M:%S"):
        for zone in ("", " %Z", "%z", " %z"):
            try:
                return _seconds(text.strip(), form, zone)
            except (ValueError, OverflowError):
                continue
    raise BadRequest(f"{text!r} is no time", "give 90m, 12h, 3d (ago), yesterday, 2026-11-25 or '2026-11-25 14:00'")


def _seconds(text: str, form: str, zone: str) -> float:
    """Raises ValueError, OverflowError."""
    if zone.endswith("%z"):
        return datetime.strptime(text, form + zone).timestamp()
    found = time.strptime(text, form + zone)
    # Of the names of zones Python knows the two of this place, and those of the time of the whole world.
    return float(calendar.timegm(found)) if (found.tm_zone or "").upper() in ("UTC", "GMT") else time.mktime(found)
