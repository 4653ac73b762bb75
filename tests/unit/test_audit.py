# SPDX-License-Identifier: LGPL-2.1-or-later
"""The audit trail: spans out of events, the picture, what others do to held volumes."""

import asyncio
import json
import os
import resource
import signal
import socket
import subprocess
import threading
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any, Dict, Iterator, List

import pytest

from vmguard import events, hook, host, instance, paths
from vmguard.audit import history, monitor, openers, shared, timeline
from vmguard.audit.held import AllHeld, Held
from vmguard.audit.history import Wanted
from vmguard.audit.openers import Openers
from vmguard.claims import LIES_UNDER, Claim, Mode
from vmguard.cli import audit, main
from vmguard.config import Config
from vmguard.domain import HostPath
from vmguard.errors import BadRequest, Holder, InUse
from vmguard.host import Process
from vmguard.instance import Instance, Want
from vmguard.lint import inotify
from vmguard.setup import daemons
from vmguard.storage import resolve
from vmguard.storage.facts import LiveFacts
from vmguard.text import moment

DISK = {"path": "/dev/vg/web", "identity": "lvm:a/b", "mode": "exclusive"}


def event(at: float, name: str, on: str = "node1", **data: Any) -> Dict[str, Any]:
    return {"time": at, "host": on, "event": name, "text": "", **data}


def started(at: float, on: str = "node1", number: int = 1, **data: Any) -> Dict[str, Any]:
    return event(at, "held", on, domain="web", uuid="u", instance=f"u.{number}", disks=[DISK], **data)


# -- history -----------------------------------------------------------------------------------------------------------


def test_spans_over_a_migration() -> None:
    found = [started(1), started(5, "node2", 2), event(6, "released", instance="u.1", disks=[DISK])]
    first, second = history.spans(found)
    assert (first.host, first.since, first.until, first.ended) == ("node1", 1, 6, "released")
    assert (second.host, second.since, second.until) == ("node2", 5, None)
    assert history.spans(found, ("lvm:a/b",)) and not history.spans(found, ("/other",))


def test_a_host_that_has_not_come_back() -> None:
    """Nobody writes down that its guest has ended; somebody else had the disk next, alone. A migration is no such thing."""
    found = [started(1), started(5, "node2", 2, coming=""), started(9, "node3", 3, coming="migrate")]
    first, second, third = history.spans(found)
    assert (first.until, second.until, third.until) == (5, None, None) and "node2" in first.ended
    shared = {**DISK, "mode": "shared"}
    found = [event(at, "held", f"node{at}", instance=f"u.{at}", disks=[shared]) for at in (1, 2)]
    assert [span.until for span in history.spans(found)] == [None, None], "readers are many"
    assert history.spans([*found, started(3, "node3", 3)])[0].until == 3, "and not beside a writer"


def test_what_is_read_comes_to_be_written() -> None:
    """A commit into a backing file."""
    shared = {**DISK, "mode": "shared"}
    mine = {"domain": "web", "instance": "u.1", "identity": DISK["identity"], "path": DISK["path"]}
    found = [event(1, "held", domain="web", instance="u.1", disks=[shared]), event(2, "surprise", mode="exclusive", **mine)]
    found += [event(3, "surprise", mode="exclusive", **mine), event(4, "released", instance="u.1")]
    assert [(span.mode, span.since, span.until) for span in history.spans(found)] == [("shared", 1, 2), ("exclusive", 2, 4)]


def test_plugged_and_unplugged() -> None:
    plugged = {"domain": "web", "uuid": "u", "instance": "u.1", "path": "/p", "identity": "file:p"}
    found = [
        started(1),
        event(2, "surprise", mode="exclusive", **plugged),
        event(3, "given-back", **plugged),
        event(4, "conflict-over", **plugged),  # without a mode: it does not have it any more
        event(5, "released", instance="u.1", disks=[DISK]),
    ]
    assert [(span.path, span.since, span.until) for span in history.spans(found)] == [("/dev/vg/web", 1, 5), ("/p", 2, 3)]


def test_a_host_that_was_restarted_has_nothing() -> None:
    found = [started(1, boot="a"), event(9, "watching", boot="b"), started(10, number=2, boot="b")]
    first, second = history.spans(found)
    assert first.until == 9 and "restart" in first.ended and second.until is None


def test_what_is_asked_for() -> None:
    refusal = event(3, "refused", domain="thief", text="it was not started\n  disk:  /dev/vg/web\n  by:    web")
    assert Wanted(disk=("/dev/vg/web",)).takes(refusal) and not Wanted(disk=("/dev/vg/we",)).takes(refusal)
    assert Wanted(domain=("thief",)).takes(refusal) and not Wanted(domain=("web",)).takes(refusal)
    assert not Wanted(since=4).takes(refusal) and not Wanted(host="node2").takes(refusal)
    assert Wanted(disk=("/x",)).takes(event(1, "unseen")), "that nobody looked is part of any answer"


def test_a_bug_is_shown_by_its_last_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The first one of a trace says nothing."""
    file = tmp_path / "events"
    trace = "Traceback (most recent call last):\n  File ...\nKeyError: 'web'\n"
    file.write_text(json.dumps(event(1.0, "bug", **{"text": trace})) + "\n")
    assert main(["audit", "--file", str(file)]) == 0
    assert "KeyError: 'web'" in capsys.readouterr().out


def test_a_clock_that_was_set_back(tmp_path: Path) -> None:
    """What one host wrote stays in its order; another's comes in between by time."""
    path = tmp_path / "e"
    found = [started(5000, number=1), event(1000, "released", instance="u.1"), started(1001, number=2)]
    path.write_text("".join(json.dumps(one) + "\n" for one in found))
    assert history.read(Wanted(), [str(path)]) == found
    other = started(4000, "node2", 3)
    assert history.in_order([*found, other]) == [other, *found]
    assert [span.until for span in history.spans(history.in_order([*found, other]))] == [None, 5000, 1000]


def test_a_refusal_is_found_by_any_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the disk's other paths, by its identity, by the uuid of the one that was refused, by the one that has it."""
    monkeypatch.setattr(paths, "LOG", str(tmp_path))
    monkeypatch.setattr(events, "_tell_system", lambda _: None)
    monkeypatch.setattr(hook.os, "geteuid", lambda: 0)
    claim = Claim("file:fs/1", Mode.EXCLUSIVE, "disk vda", "/srv/copy.img", "the guest may write it")
    holder = Holder(1, "node1", "web", "11111111-2222-3333-4444-555555555555", "/srv/web.img", 1.0)

    def refuse(*_: Any) -> None:
        raise InUse(claim, [holder])

    monkeypatch.setitem(hook.OPERATIONS, "prepare", refuse)
    xml = b"<domain type='kvm'><name>copy</name><uuid>AAAAAAAA22223333444455555555 5555</uuid></domain>"
    status, _ = hook.answer("prepare", "copy", xml, os.getpid())
    hook.answer("prepare", "copy", b"<no xml", os.getpid())
    assert status == hook.REFUSE
    found, nameless = history.read(Wanted())
    assert nameless["domain"] == "copy"
    for disk in ("/srv/copy.img", "file:fs/1"):
        assert Wanted(disk=(disk,)).takes(found)
    for whose in ("copy", "aaaaaaaa-2222-3333-4444-555555555555", "web", str(holder.uuid)):
        assert Wanted(domain=(whose,)).takes(found), whose


@pytest.mark.parametrize("hangs", [False, True])
def test_a_disk_by_other_names(
    hangs: bool, log: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """That its storage does not answer may be why somebody asks."""
    monkeypatch.setattr(shared, "of_others", lambda _: ([], []))
    monkeypatch.setattr(audit, "_PATIENCE", 0.5)
    disk, link = log / "disk", log / "link"
    disk.write_bytes(b"x")
    link.symlink_to(disk)
    (storage,) = resolve(HostPath(str(disk)), LiveFacts())
    mine = {"path": str(disk), "identity": storage.identity, "mode": "exclusive"}
    events.record("held", domain="web", uuid="u", instance="u.1", disks=[mine])
    if hangs:
        real = audit._identities
        monkeypatch.setattr(audit, "_identities", lambda path: time.sleep(3) or real(path))
    assert main(["audit", "--disk", str(link)]) == 0
    said = capsys.readouterr()
    assert ("web" in said.out) is not hangs and ("does not answer" in said.err) is hangs
    assert main(["audit", "--disk", str(disk)]) == 0 and "web" in capsys.readouterr().out


def test_ways_to_look_that_exclude_each_other(log: Path) -> None:
    """Nobody waits in vain for what is not going to be shown."""
    for words in (["--held", "--follow"], ["--held", "--svg", "x"], ["--follow", "--svg", "x"]):
        with pytest.raises(SystemExit):
            main(["audit", "--disk", "/x", *words])


@pytest.mark.parametrize("uuid", ["AAAAAAAA-2222-3333-4444-555555555555", "aaaaaaaa222233334444555555555555"])
def test_a_uuid_however_it_is_written(
    uuid: str, log: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared, "of_others", lambda _: ([], []))
    events.record("held", domain="web", uuid="aaaaaaaa-2222-3333-4444-555555555555", instance="a.1", disks=[DISK])
    for words in ([], ["--held"]):
        assert main(["audit", "--json", "--domain", uuid, *words]) == 0
        assert "web" in capsys.readouterr().out


def test_half_a_line_is_no_event(tmp_path: Path) -> None:
    path = tmp_path / "e"
    path.write_bytes(json.dumps(started(1)).encode() + b'\n{"time": 2, "ev\n\xff\n[1]\n{"time": "x", "event": "y"}\n')
    assert [one["event"] for one in history.read(Wanted(), [str(path)])] == ["held"]


@pytest.mark.parametrize(
    "changes",
    [
        {"disks": [1]}, {"disks": {"path": 1}}, {"disks": [{"path": 1, "identity": "x"}]}, {"disks": [{}]}, {"disks": 7},
        {"domain": ["web"]}, {"host": 1}, {"time": float("nan")}, {"time": float("inf")}, {"time": -1}, {"event": None},
        {"event": "given-back"}, {"event": "surprise", "identity": "i", "mode": "exclusive"},
        {"event": "unseen", "from": "x", "to": []}, {"event": "contained", "disks": [{"path": "/x", "identity": "i"}]},
        {"time": 10**400},
    ],
)  # fmt: skip
def test_what_others_have_put_into_a_file(
    changes: Dict[str, Any], log: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another program's lines, or another version's: what is understood is shown, and nothing else is lost by it."""
    monkeypatch.setattr(shared, "of_others", lambda _: ([], []))
    found = [started(1000), {**started(1001), **changes}, event(1002, "released", instance="u.1", disks=[DISK])]
    (log / "e").write_text("".join(json.dumps(one) + "\n" for one in found))
    for words in ([], ["--json"], ["--held"], ["--disk", "/dev/vg/web", "--svg", str(log / "svg")], ["--domain", "web"]):
        assert main(["audit", "--file", str(log / "e"), *words]) == 0, words
    assert "/dev/vg/web" in capsys.readouterr().out and ElementTree.parse(log / "svg") is not None


def test_what_follows_half_a_line_is_not_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk, or a power cut: the next event is written behind what is left of one."""
    monkeypatch.setattr(paths, "LOG", str(tmp_path))
    monkeypatch.setattr(events, "_tell_system", lambda _: None)
    for rest in (b'{"time": 1, "host": "a", "event": "hel', b"\0" * 100, b'{"time": '):
        with open(events.path(), "ab") as file:
            file.write(rest)
        events.record("released", 'he wrote {"time": 7}', domain=rest.decode())
    assert [one["event"] for one in history.read(Wanted())] == ["released"] * 3


@pytest.mark.parametrize(
    "text, ago", [("90m", 5400), ("2d", 172800), ("today", None), ("2026-11-25", None), ("2026-11-25 14:00", None)]
)
def test_times(text: str, ago: Any) -> None:
    now = time.time()
    found = history.moment_of(text, now)
    assert ago is None or found == now - ago
    assert time.localtime(history.moment_of("yesterday", now)).tm_hour == 0
    for nonsense in ("@", "@x", "@-1", "2026-11-25 14:00 XYZ", "2026-13-01"):
        with pytest.raises(BadRequest):
            history.moment_of(nonsense, now)
    for nonsense in ("the day after", "\u00b2d", "9" * 400 + "d", "d", "-1d", ""):
        with pytest.raises(BadRequest):
            history.moment_of(nonsense, now)


@pytest.mark.parametrize(
    "text, seconds",
    [
        ("@1785000000.5", 1785000000.5),
        ("2026-07-25 17:20:00 UTC", 1785000000),
        ("2026-07-25T17:20:00Z", 1785000000),
        ("2026-07-25T18:20+01:00", 1785000000),
        ("2026-07-25 18:20:00 +0100", 1785000000),
        ("2026-07-25 19:20:00 CEST", 1785000000),
        ("2026-07-25 19:20:00", 1785000000),
        ("2026-10-25 02:30:00 CEST", 1792888200),  # there are two of it
        ("2026-10-25 02:30:00 CET", 1792891800),
    ],
)
def test_times_with_a_zone(text: str, seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """As they stand in our own output, and as others write them."""
    monkeypatch.setenv("TZ", "CET-1CEST,M3.5.0,M10.5.0/3")
    time.tzset()
    try:
        assert history.moment_of(text) == seconds
        assert history.moment_of(moment(seconds)) == int(seconds)
    finally:
        monkeypatch.undo()
        time.tzset()


def test_yesterday_is_the_day_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also on the days of 23 and 25 hours."""
    monkeypatch.setenv("TZ", "CET-1CEST,M3.5.0,M10.5.0/3")
    time.tzset()
    try:
        for late, before in (("2026-10-25 23:30", "2026-10-24"), ("2026-03-30 00:30", "2026-03-29")):
            assert history.moment_of("yesterday", history.moment_of(late)) == history.moment_of(before), late
    finally:
        monkeypatch.undo()
        time.tzset()


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Files of events that are put aside every few dozen lines."""
    monkeypatch.setattr(paths, "LOG", str(tmp_path))
    monkeypatch.setattr(events, "MAX_BYTES", 3000)
    monkeypatch.setattr(events, "_tell_system", lambda _: None)
    return tmp_path


def test_the_log_goes_on_over_rotation(log: Path) -> None:
    events.record("first")
    for number in range(100):
        events.record("refused", "x" * 50, number=number)
    kept = [one["number"] for one in history.read(Wanted()) if "number" in one]
    assert kept == list(range(kept[0], 100)) and len(events.files()) == events.KEPT + 1


def test_whoever_follows_misses_nothing(log: Path) -> None:
    """Neither what is written while the rest is shown, nor what two rotations put aside while he does not look."""
    events.record("refused", number=0)
    before, place = history.read_on(Wanted())
    events.record("refused", number=1)
    following = history.follow(Wanted(), place, pause=0.001)
    heard = [one["number"] for one in before] + [next(following)["number"]]
    for number in range(2, 60):
        events.record("refused", "x" * 50, number=number)
    assert len(events.files()) > 2
    heard += [next(following)["number"] for _ in range(2, 60)]
    assert heard == list(range(60))


def test_a_line_that_is_just_being_written(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its process waits for the processor, meanwhile others put the file aside, and whoever follows goes on to the next."""
    events.record("refused", "x" * 3100, number=0)
    events.record("refused", number=1)
    _, place = history.read_on(Wanted())
    looks = iter(range(1000))
    monkeypatch.setattr(history.time, "sleep", lambda _: next(looks))
    following = history.follow(Wanted(), place)
    real, heard = os.write, []

    def late(fd: int, data: bytes) -> int:
        monkeypatch.setattr(os, "write", real)
        events.record("refused", "x" * 3100, number=2)
        events.record("refused", number=3)
        heard.extend(next(following)["number"] for _ in range(2))
        return real(fd, data)

    monkeypatch.setattr(os, "write", late)
    events.record("refused", number=4)
    events.record("refused", number=5)
    heard += [next(following)["number"] for _ in range(2)]
    assert heard == [2, 3, 4, 5]
    events.record("refused", "x" * 3100, number=6)
    assert os.path.exists(events.path() + ".1"), "it is put aside by the next"


def test_a_file_that_is_put_aside_while_all_are_read(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The newest has become the one before it by the time that its turn comes."""
    for number in range(40):
        events.record("refused", "x" * 50, number=number)
    monkeypatch.setattr(events, "MAX_BYTES", 1 << 30)
    real, moves = open, [True]

    def put_aside(path: str, *words: Any, **more: Any) -> Any:
        file = real(path, *words, **more)
        if moves and str(path).startswith(str(log)):
            moves.pop()
            with real(events.path(), "ab") as current:
                events._rotate(current.fileno())
            events.record("refused", number=99)
        return file

    monkeypatch.setattr("builtins.open", put_aside)
    assert {one["number"] for one in history.read(Wanted())} >= set(range(40))
    moves.append(True)
    lines, place = history.new_lines((0, 0))
    lines += history.new_lines(place)[0]
    found = [one["number"] for one in history.parsed(lines)]
    assert sorted(found) == sorted(one["number"] for one in history.read(Wanted()))


def test_a_log_that_was_emptied_goes_on(log: Path) -> None:
    """By hand, because the disk was full."""
    events.record("refused", "x" * 500, number=0)
    _, place = history.new_lines((0, 0))
    os.truncate(events.path(), 0)
    events.record("refused", number=1)
    lines, _ = history.new_lines(place)
    assert [one["number"] for one in history.parsed(lines)] == [1]


def test_a_log_that_was_emptied_and_has_grown_since(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To more than it was when somebody last looked."""
    monkeypatch.setattr(events, "MAX_BYTES", 1 << 30)
    events.record("refused", "x" * 50, number=0)
    _, place = history.new_lines((0, 0))
    os.truncate(events.path(), 0)
    for number in range(1, 30):
        events.record("refused", "y" * 7, number=number)
    assert [one["number"] for one in history.parsed(history.new_lines(place)[0])] == list(range(1, 30))


def test_whoever_follows_opens_nothing_in_vain(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events.record("refused", number=0)
    _, place = history.read_on(Wanted())
    looks = []

    def pause(_: float) -> None:
        looks.append(len(looks))
        if len(looks) == 50:
            monkeypatch.setattr("builtins.open", real)
            events.record("refused", number=1)

    real = open
    monkeypatch.setattr("builtins.open", lambda *_, **__: pytest.fail("opened"))
    monkeypatch.setattr(history.time, "sleep", pause)
    assert next(history.follow(Wanted(), place))["number"] == 1 and len(looks) == 50


def test_what_is_older_is_not_even_read(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """check_vmguard asks for the last hour every minute; a busy host keeps 80 MB."""
    monkeypatch.setattr(events, "MAX_BYTES", 500)
    for number in range(8):
        events.record("refused", "x" * 100, number=number)
    old = time.time() - 7200
    for path in events.files()[:-1]:
        Path(path).write_text("".join(json.dumps({**event(old, "refused"), "number": -1}) + "\n" for _ in range(3)))
        os.utime(path, (old, old))
    asked: List[float] = []
    wanted = Wanted(since=time.time() - 3600)
    monkeypatch.setattr(Wanted, "takes", lambda self, one: asked.append(one["time"]) or one["time"] >= self.since)
    assert history.read(wanted) and min(asked) > old


def test_two_that_rotate_at_once_lose_nothing(tmp_path: Path) -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); from vmguard import events, paths; paths.LOG = sys.argv[2];"
        "events.MAX_BYTES = 20000; events.KEPT = 100; events._tell_system = lambda _: None\n"
        "for n in range(300): events.record('x', 'y' * 200, n=n, who=sys.argv[3])"
    )
    root = str(Path(__file__).resolve().parents[2])
    running = [subprocess.Popen(["/usr/bin/python3", "-I", "-c", code, root, str(tmp_path), who]) for who in "abc"]
    assert all(one.wait() == 0 for one in running)
    found = [json.loads(line) for path in tmp_path.iterdir() for line in path.read_text().splitlines()]
    assert len(found) == 900 and len({(one["who"], one["n"]) for one in found}) == 900


def test_the_journal_gets_fields(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paths, "LOG", str(tmp_path))
    monkeypatch.setattr(events, "JOURNAL", str(tmp_path / "journal"))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journal:
        journal.bind(events.JOURNAL)
        events.record("conflict", "two\nlines", domain="web", disks=[1])
        data = journal.recv(65536)
    fields: Dict[bytes, bytes] = {}
    while data:
        name, _, rest = data.partition(b"\n")
        size = int.from_bytes(rest[:8], "little")
        fields[name], data = rest[8 : 8 + size], rest[8 + size + 1 :]
    assert fields[b"MESSAGE"] == b"conflict: web: two\nlines" and fields[b"PRIORITY"] == b"4"
    assert fields[b"VMGUARD_DOMAIN"] == b"web" and fields[b"VMGUARD_DISKS"] == b"[1]"
    assert fields[b"VMGUARD_EVENT"] == b"conflict" and fields[b"SYSLOG_IDENTIFIER"] == b"vmguard"


def test_a_name_hides_nothing_in_the_journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """journalctl shows no message with a control character in it; and any user can start a QEMU of any name."""
    monkeypatch.setattr(paths, "LOG", str(tmp_path))
    monkeypatch.setattr(events, "JOURNAL", str(tmp_path / "none"))
    said: List[str] = []
    monkeypatch.setattr("syslog.syslog", lambda _, text: said.append(text))
    events.record("conflict", "w\x1b[2J\0\udcff\u202eb: it is written here\n  by:    d\u00e9", domain="w")
    assert said == ["conflict: w\\x1b[2J\\x00\\udcff\\u202eb: it is written here\n  by:    d\u00e9"]


def test_a_journal_that_has_stopped_keeps_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """syslog(3) goes to the same daemon, and waits for it."""
    monkeypatch.setattr(paths, "LOG", str(tmp_path))
    monkeypatch.setattr(events, "JOURNAL", str(tmp_path / "journal"))
    monkeypatch.setattr("syslog.syslog", lambda *_: pytest.fail("it waits"))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journal:
        journal.bind(events.JOURNAL)
        for number in range(1000):
            events.record("conflict", "x" * 1000, number=number)
    assert len(history.read(Wanted())) == 1000


@pytest.mark.parametrize("watched", [True, False])
def test_a_guest_that_a_crash_has_ended_is_not_shown_as_running(
    watched: bool, log: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """That the host was started again is in events of no domain, or is not written down at all."""
    monkeypatch.setattr(shared, "of_others", lambda _: ([], []))
    monkeypatch.setattr(events, "MAX_BYTES", 1 << 30)
    me, now = host.name(), time.time()
    found = [started(now - 3 * 10**8, me, boot="a"), event(now - 60, "held", me, instance="v.1", disks=[], boot="b")]
    Path(events.path()).write_text("".join(json.dumps(one) + "\n" for one in (found if watched else found[:1])))
    for words in (["--domain", "web"], ["--disk", DISK["path"]], []):
        assert main(["audit", "--held", "--json", *words]) == 0
        (span,) = (json.loads(line) for line in capsys.readouterr().out.splitlines())
        assert span["until"] is not None and "restart" in span["ended"], words
    assert main(["audit", "--json"]) == 0
    assert [json.loads(line)["event"] for line in capsys.readouterr().out.splitlines()] == ["held"] * (1 + watched)
    assert main(["audit", "--held", "--json", "--domain", "other"]) == 0 and not capsys.readouterr().out


# -- the picture -------------------------------------------------------------------------------------------------------


def test_the_picture_is_xml_and_shows_all() -> None:
    found = [
        started(1000, boot="a"),
        event(1100, "refused", "node2", domain='<th"ief>', text="a\n  disk: /dev/vg/web"),
        event(1200, "unseen", **{"from": 1150, "to": 1200}),
        event(1300, "resized", domain="web", **{key: DISK[key] for key in ("path", "identity")}),
    ]
    text = timeline.draw("/dev/vg/web", history.spans(found), found, history.gaps(found), 2000)
    root = ElementTree.fromstring(text)
    words = [one.text or "" for one in root.iter() if one.text]
    assert any("web on node1, exclusive" in one for one in words) and '<th"ief>' in words
    assert sum("not watched" in one for one in words) == 1
    assert any(one.startswith("refused") for one in words) and any(one.startswith("resized") for one in words)
    assert "prefers-color-scheme: dark" in text
    assert ElementTree.fromstring(timeline.draw("/x", [], [], [], 2000)) is not None


def test_the_picture_of_a_host_whose_clock_was_not_set_yet() -> None:
    """What was written down in 1970 stands beside the present."""
    found = [started(0), event(1.8e9, "released", instance="u.1", disks=[DISK])]
    text = timeline.draw("/dev/vg/web", history.spans(found), found, [], 1.8e9)
    assert ElementTree.fromstring(text) is not None and text.count('class="grid"') <= 9


def test_the_picture_of_an_image_that_thousands_had() -> None:
    """A base image, and a guest for each test run: the work grows with what is drawn, not with its square."""
    found = [event(at, "held", domain=f"d{at}", instance=f"u.{at}", disks=[DISK]) for at in range(4000)]
    found += [event(at, "refused", domain=f"d{at}") for at in range(4000)]
    began = time.process_time()
    text = timeline.draw("/dev/vg/web", history.spans(found), found, [], 5000)
    assert text.count("<rect") > 4000 and time.process_time() - began < 1


# -- what others do ----------------------------------------------------------------------------------------------------


class Watched:
    """A monitor over a /sys and a /proc of the test's."""

    def __init__(self, root: Path, patch: pytest.MonkeyPatch) -> None:
        patch.setattr(paths, "RUN", str(root / "run"))
        patch.setattr(monitor, "SYS", str(root / "sys"))
        patch.setattr(host, "PROC", str(root / "proc"))
        self.root = root
        self.device = root / "sys/dev/block/253:4"
        self.put(self.device / "size", "2048\n")
        self.put(self.device / "dm/name", "vg-web\n")
        self.put(self.device / "dm/uuid", "LVM-aabb\n")
        (self.device / "holders").mkdir()
        self.put(root / "proc/self/mountinfo", "1 0 8:1 / / rw - ext4 /dev/sda1 rw\n")
        claim = Claim("lvm:a/b", Mode.EXCLUSIVE, "disk vda", "/dev/vg/web", "the guest may write it", device="253:4")
        under = Claim("lun:1", Mode.SHARED, "disk vda", "/dev/sda", LIES_UNDER + "disk vda")
        instance.write(Instance("i", "u", "web", "", Process(1, 1), "running", (Want(claim), Want(under)), 0))
        self.told: List[Dict[str, Any]] = []
        self.monitor = monitor.Monitor(self.tell, lambda _: True)
        self.monitor.look(everything=True)

    @staticmethod
    def put(path: Path, text: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def tell(self, event: str, text: str, **data: Any) -> None:
        self.told.append({"event": event, "text": text, **data})

    def happens(self, action: str = "change", **properties: str) -> List[str]:
        self.told.clear()
        self.monitor.happened(action, os.makedev(253, 4), properties)
        return [one["event"] for one in self.told]


@pytest.fixture
def seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Watched:
    return Watched(tmp_path, monkeypatch)


def test_resized_renamed_removed(seen: Watched) -> None:
    assert not seen.told and seen.happens() == []
    seen.put(seen.device / "size", "4096\n")
    assert seen.happens() == ["resized"] and seen.told[0]["size"] == 4096 * 512 and seen.told[0]["domain"] == "web"
    seen.put(seen.device / "dm/name", "vg-other\n")
    assert seen.happens() == ["renamed"]
    for path in ("size", "dm/name", "dm/uuid"):
        (seen.device / path).unlink()
    assert seen.happens("remove") == ["removed"]


def test_a_number_that_is_another_devices_now(seen: Watched) -> None:
    """The guest is gone, another has a volume with the same number: neither was it resized, nor is it left unwatched."""
    now: List[List[str]] = []

    class Watching:
        def watch(self, held: Dict[str, Any]) -> None:
            now.append(list(held))

        def look(self) -> None:
            pass

    seen.monitor._openers = Watching()  # type: ignore[assignment]
    claim = Claim("lvm:a/c", Mode.EXCLUSIVE, "disk vda", "/dev/vg/other", "the guest may write it", device="253:4")
    for one in instance.load_all():
        instance.forget(one)
    instance.write(Instance("j", "v", "db", "", Process(1, 1), "running", (Want(claim),), 0))
    for path, text in (("size", "4096\n"), ("dm/name", "vg-other\n"), ("dm/uuid", "LVM-ccdd\n")):
        seen.put(seen.device / path, text)
    assert seen.happens() == []
    seen.monitor.look()
    assert now == [["/dev/vg/other"]], "what an event has shown is watched from the next look on"


def test_mapped_and_snapshotted(seen: Watched) -> None:
    (seen.device / "holders" / "dm-9").mkdir()
    seen.put(seen.root / "sys/block/dm-9/dm/name", "guests-root\n")
    assert seen.happens() == ["mapped"] and "guests-root" in seen.told[0]["text"]
    assert seen.happens() == []
    (seen.device / "holders" / "dm-10").mkdir()
    seen.put(seen.root / "sys/dev/block/253:10/slaves/dm-4/dev", "253:4\n")
    seen.monitor.happened("add", os.makedev(253, 10), {})
    assert [one["event"] for one in seen.told] == ["mapped"]
    seen.told.clear()
    seen.monitor.happened("add", os.makedev(253, 77), {"DM_UUID": "LVM-aabb-real"})
    assert [one["event"] for one in seen.told] == ["snapshotted"]


def test_a_volume_that_comes_up_here(seen: Watched) -> None:
    """Once each time it is activated; not one that a guest of this host holds, nor a layer of a volume."""
    uuid, number = "LVM-" + "a" * 64, os.makedev(253, 9)
    for action in ("add", "change", "change"):
        seen.monitor.happened(action, number, {} if action == "add" else {"DM_UUID": uuid, "DM_NAME": "vg-other"})
    seen.monitor.happened("change", os.makedev(253, 8), {"DM_UUID": uuid + "-real", "DM_NAME": "vg-other-real"})
    seen.happens(DM_UUID="LVM-" + "b" * 64, DM_NAME="vg-web")
    assert seen.monitor.came_up() == ["/dev/mapper/vg-other"] and seen.monitor.came_up() == []
    seen.monitor.happened("remove", number, {})
    seen.monitor.happened("change", number, {"DM_UUID": uuid, "DM_NAME": "vg-other"})
    assert seen.monitor.came_up() == ["/dev/mapper/vg-other"]


def test_mounted(seen: Watched) -> None:
    path = seen.root / "proc/self/mountinfo"
    path.write_text(path.read_text() + "2 1 253:4 / /mnt rw - ext4 /dev/mapper/vg-web rw\n")
    seen.monitor._see_mounts()
    seen.monitor._see_mounts()
    assert [one["event"] for one in seen.told] == ["mounted"] and seen.told[0]["place"] == "/mnt"


def test_mounted_where_the_name_breaks_lines(seen: Watched) -> None:
    """The kernel escapes blanks and line ends alone; any user may mount by FUSE, in a folder of any name."""
    path = seen.root / "proc/self/mountinfo"
    hostile = "/home/u/a\u2028b\x0cc\u3000-\u3000d\u3000/dev/mapper/vg-web"
    path.write_text(
        path.read_text()
        + f"2 1 0:40 / {hostile} rw - fuse.x x rw\n3 1 253:4 / /a\\040b rw - ext4 /dev/mapper/vg-web rw\n",
        encoding="utf-8",
    )
    seen.monitor._see_mounts()
    assert [one["place"] for one in seen.told] == ["/a b"]


def test_what_a_user_mounts_is_not_looked_up(seen: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    """The source of a FUSE mount is text of whoever mounted it."""
    asked: List[str] = []
    monkeypatch.setattr(monitor, "_number_of", lambda source: asked.append(source) or ("253:4" if source else ""))
    path = seen.root / "proc/self/mountinfo"
    path.write_text("2 1 0:40 / /home/u/m rw - fuse.x /dev/shm/link rw\n3 1 0:41 / /data rw - btrfs /dev/mapper/vg-web rw\n")
    seen.monitor._see_mounts()
    assert [one["place"] for one in seen.told] == ["/data"] and "/dev/shm/link" not in asked


def test_what_changed_while_nobody_looked(seen: Watched) -> None:
    """The agent comes back: the gap is told, and what is different."""
    path = Path(paths.RUN) / "watching.json"
    os.utime(path, (time.time() - 600, time.time() - 600))
    seen.put(seen.device / "size", "8192\n")
    told = started_again(seen)
    assert [one["event"] for one in told] == ["unseen", "watching", "resized"]
    assert 590 < told[0]["to"] - told[0]["from"] < 620 and told[2]["size"] == 8192 * 512


def test_an_agent_that_gets_no_inotify_says_so(seen: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    """There are so many for each user."""

    def full(*_: Any) -> None:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(monitor, "Openers", full)
    monkeypatch.setattr(events, "record", lambda *_, **__: None)
    told = started_again(seen)
    assert [one["event"] for one in told] == ["unseen", "watching"]


def started_again(seen: Watched) -> List[Dict[str, Any]]:
    """What an agent tells that starts now."""
    told: List[Dict[str, Any]] = []

    async def again() -> None:
        new = monitor.Monitor(lambda event, text, **data: told.append({"event": event, **data}), lambda _: True)
        new._listen_to_mounts = new._listen_to_udev = lambda: None  # type: ignore[method-assign]
        new.start()
        new.stop()

    seen.put(seen.root / "proc/sys/kernel/random/boot_id", "boot\n")
    asyncio.run(again())
    return told


@pytest.mark.parametrize(
    "kept", ["[]", '{"dev', '{"devices": {}, "mounted": [], "over": [["a"]]}', '{"devices": [], "mounted": [], "over": []}',
             '{"devices": {"253:4": {"there": true}}, "mounted": [], "over": []}', '{"devices": {}, "mounted": 1, "over": []}'],
)  # fmt: skip
def test_what_an_agent_of_another_version_remembered(kept: str, seen: Watched) -> None:
    """It must not keep this one from starting, again and again."""
    path = Path(paths.RUN) / "watching.json"
    path.write_text(kept)
    for one in instance.load_all():
        instance.write(one._replace(since=time.time() - 3600))
    assert [one["event"] for one in started_again(seen)] == ["unseen", "watching"]
    assert json.loads(path.read_text())["devices"]["253:4"]["size"] == 2048 * 512


def test_a_clock_that_was_set_back_while_nobody_looked(seen: Watched) -> None:
    path = Path(paths.RUN) / "watching.json"
    os.utime(path, (time.time() + 3600, time.time() + 3600))
    told = started_again(seen)
    assert [one["event"] for one in told] == ["unseen", "watching"] and told[0]["from"] == told[0]["to"]
    os.utime(path, (time.time() + 3600, time.time() + 3600))
    assert not daemons.agent_watches(), "the one that wrote it would have written since"


@pytest.mark.parametrize("ago, words", [(3600, ["unseen", "watching"]), (1, ["watching"])])
def test_a_host_on_which_nobody_has_watched_so_far(seen: Watched, ago: float, words: List[str]) -> None:
    """Its guests were started with it, and the agent an hour later."""
    (Path(paths.RUN) / "watching.json").unlink()
    for one in instance.load_all():
        instance.write(one._replace(since=time.time() - ago))
    told = started_again(seen)
    assert [one["event"] for one in told] == words
    assert words == ["watching"] or 3590 < told[0]["to"] - told[0]["from"] < 3700


def test_what_got_lost_is_unseen(seen: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody opens held files faster than anybody can look: what he wrote among that cannot be told, and is not hidden."""
    monkeypatch.setattr(inotify.os, "read", lambda _fd, _size: inotify._EVENT.pack(-1, inotify._OVERFLOW, 0, 0))
    openers = Openers(seen.monitor._about, seen.monitor._unseen, lambda _: True)
    openers.happened()
    assert [one["event"] for one in seen.told] == ["unseen"] and "inotify" in seen.told[0]["text"]
    openers.close()


def test_what_vanishes_while_others_are_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One thread says what to watch, another hears of what happens: a guest ends, and its images are removed."""
    names = [str(tmp_path / name) for name in "abc"]
    for name in names:
        Path(name).write_text("")
    files = inotify.Files()
    files.watch(names[:2])

    class Libc:
        inotify_add_watch = files._libc.inotify_add_watch

        def inotify_rm_watch(self, *_: Any) -> None:
            for name in names[:2]:
                if os.path.exists(name):
                    os.unlink(name)
            list(files.changes())

    files._libc = Libc()  # type: ignore[assignment]
    files.watch(names[2:])
    assert list(files._numbers) == names[2:]
    files.close()


def test_what_is_held_is_disks_of_all_kinds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shared or alone; a pool's volume by its device, as the definition has no path of it. No log, which virtlogd writes."""
    monkeypatch.setattr(paths, "RUN", str(tmp_path))
    made = [
        Claim("a", Mode.SHARED, "disk hda", "/srv/tools.iso", "the guest reads it"),
        Claim("b", Mode.EXCLUSIVE, "disk vdb", "volume x of pool y", "the guest may write it", device="253:7"),
        Claim("c", Mode.EXCLUSIVE, "disk vdc", "volume z of pool y", "the guest may write it"),
        Claim("vm:u", Mode.EXCLUSIVE, "the domain itself", "web", "one uuid runs once"),
        Claim("d", Mode.EXCLUSIVE, "serial 0, log", "/var/log/web.log", "the guest may write it"),
    ]
    for name in ("web", "db"):
        instance.write(Instance(name, "u", name, "", Process(1, 1), "running", tuple(map(Want, made)), 0))
    all_ = AllHeld()
    assert all_.refresh()
    assert {path: [one.domain for one in found] for path, found in all_.paths().items()} == {
        "/srv/tools.iso": ["db", "web"], "/dev/block/253:7": ["db", "web"],
    }  # fmt: skip


def test_records_that_are_written_at_once(seen: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within one step of the clock of files: a look between the two sees the first, and the folder is as old after the second."""
    now = time.time_ns()
    monkeypatch.setattr("time.time_ns", lambda: now + 10**6)
    all_ = AllHeld()
    (web,) = instance.load_all()
    for state in ("held", "running"):
        wants = web.wants if state == "running" else ()
        instance.write(web._replace(state=state, wants=wants))
        for path in (instance.directory(), f"{instance.directory()}/i.json"):
            os.utime(path, ns=(now, now))
        all_.refresh()
    assert [one.path for one in all_] == ["/dev/vg/web"]


def test_another_guest_is_no_change(seen: Watched) -> None:
    instance.write(Instance("j", "v", "db", "", Process(1, 1), "running", (), 0))
    seen.monitor.look()
    assert not seen.told


def test_who_has_it_open_for_writing(tmp_path: Path) -> None:
    names = [tmp_path / name for name in ("disk", "link", "other")]
    for path in (names[0], names[2]):
        path.write_bytes(b"x")
    names[1].hardlink_to(names[0]) if hasattr(Path, "hardlink_to") else os.link(names[0], names[1])
    with open(names[0], "rb") as readable:
        reader = subprocess.Popen(["sleep", "60"], pass_fds=[readable.fileno()])
    with open(names[0], "ab") as writable:
        writer = subprocess.Popen(["sleep", "60"], pass_fds=[writable.fileno()])
    try:
        found = openers.writers([*map(str, names), str(tmp_path / "none")])
        assert [found.pop(str(name)) for name in names[:2]] == [[(writer.pid, "sleep")]] * 2
        assert list(found.values()) == [[], []]
    finally:
        for one in (reader, writer):
            one.kill()
            one.wait()


class Watching:
    """Openers of real files, held by guests; each has a QEMU if it is said so."""

    def __init__(self, patch: pytest.MonkeyPatch, quiet: bool = True) -> None:
        patch.setattr(openers, "_AGAIN", 0.05)
        patch.setattr(openers, "_PAUSE", 0.05)
        patch.setattr(host, "qemu_processes", lambda: tuple(self.qemus))
        self.qemus: List[host.Qemu] = []
        self.told: List[Any] = []
        self.openers = Openers(self.about, lambda text: self.told.append(("unseen", text)), lambda _: quiet)
        asyncio.get_running_loop().add_reader(self.openers.fileno(), self.openers.happened)

    def about(self, one: Held, event: str, text: str, **data: Any) -> None:
        self.told.append((event, text, one.domain, data.get("pid")))

    async def hold(self, *held: Held) -> None:
        class These(AllHeld):
            def __iter__(self) -> Iterator[Held]:
                return iter(held)

        self.openers.watch(These().paths())
        await self.settled()

    async def settled(self) -> None:
        await asyncio.sleep(0.05)
        while self.openers._task is not None and not self.openers._task.done():
            await asyncio.sleep(0.01)

    def events(self) -> List[Any]:
        found, self.told = self.told, []
        return found


def watching(patch: pytest.MonkeyPatch, what: Any, **more: Any) -> None:
    async def run() -> None:
        one = Watching(patch, **more)
        try:
            await asyncio.wait_for(what(one), 30)
        finally:
            asyncio.get_running_loop().remove_reader(one.openers.fileno())
            one.openers.close()

    asyncio.run(run())


def held(path: Path, domain: str = "web") -> Held:
    return Held(str(path), "file:1", "", domain, "uuid-of-" + domain, 0.0)


def test_readers_are_told_of_who_writes_what_they_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A base image that several guests read, by whichever name: a writer of it is told once, the guests' own QEMUs are not."""
    base, link = tmp_path / "base", tmp_path / "link"
    base.write_bytes(b"x")
    link.symlink_to(base)

    async def what(one: Watching) -> None:
        await one.hold(held(base), held(base, "db"), held(link, "mail"))
        with open(base, "ab") as file:
            writer = subprocess.Popen(["sleep", "60"], pass_fds=[file.fileno()])
        try:
            one.qemus = [host.Qemu(Process(writer.pid, 1), "uuid-of-db", "db", False)]
            await one.settled()
            assert not one.events(), "a guest that shares it writes it, by whichever name"
            one.qemus = []
            await asyncio.sleep(0.1)
            base.open("rb").close()
            await one.settled()
            assert {(event[0], event[2], event[3]) for event in one.events()} == {
                ("opened", domain, writer.pid) for domain in ("web", "mail")
            }, "once for each name"
            base.open("rb").close()
            await one.settled()
            assert not one.events(), "he is known"
            await one.hold(held(base, "db"))
        finally:
            writer.kill()
            writer.wait()
        base.open("ab").close()
        await one.settled()
        base.write_bytes(b"y")
        await asyncio.sleep(0.1)
        await one.settled()
        assert "db" in [event[2] for event in one.events()], "one guest has ended, and the others are watched over still"

    watching(monkeypatch, what)


def test_who_had_it_open_before_it_was_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the guest was started, or before the agent was."""
    disk = tmp_path / "disk"
    disk.write_bytes(b"x")

    async def what(one: Watching) -> None:
        with open(disk, "ab") as file:
            writer = subprocess.Popen(["sleep", "60"], pass_fds=[file.fileno()])
        try:
            await one.hold(held(disk))
            assert [(event[0], event[3]) for event in one.events()] == [("opened", writer.pid)]
            await one.hold(held(disk), held(disk, "db"))
            assert not one.events(), "he is known"
        finally:
            writer.kill()
            writer.wait()

    watching(monkeypatch, what)


@pytest.mark.parametrize("how, word, text", [
    ("unlink", "removed", "was removed"), ("replace", "removed", "another file"), ("rename", "renamed", "another name"),
])  # fmt: skip
def test_a_file_that_loses_its_name(
    how: str, word: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under its guest, which goes on with it."""
    disk, other = tmp_path / "disk", tmp_path / "other"
    disk.write_bytes(b"x")
    other.write_bytes(b"y")

    async def what(one: Watching) -> None:
        await one.hold(held(disk))
        with open(disk, "rb"):
            disk.chmod(0o600)
            await one.settled()
            assert not one.events()
            {"unlink": disk.unlink, "replace": lambda: other.replace(disk), "rename": lambda: disk.rename(tmp_path / "x")}[how]()
            await one.settled()
            ((event, words, domain, _),) = one.events()
            assert (event, domain) == (word, "web") and text in words
            os.utime(tmp_path / "x") if how == "rename" else None
            await one.settled()
            assert not one.events(), "that is known"

    watching(monkeypatch, what)


def test_a_folder_is_not_watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The state of a TPM, which swtpm writes for the guest; a folder that virtiofsd serves."""
    async def what(one: Watching) -> None:
        await one.hold(held(tmp_path))
        (tmp_path / "state").write_text("x")
        await one.settled()
        assert not one.events()

    watching(monkeypatch, what)


def test_what_is_written_by_somebody_who_has_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = tmp_path / "disk"
    disk.write_bytes(b"x")

    async def what(one: Watching) -> None:
        await one.hold(held(disk))
        disk.write_bytes(b"y")
        await one.settled()
        assert [event[1] for event in one.events()] == ["somebody had it open for writing, who has ended already"]

    watching(monkeypatch, what)


def test_storage_that_hangs_and_a_kernel_that_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What cannot be seen is said, once; an agent that is blind looks as one that sees nothing."""
    monkeypatch.setattr(openers, "_HANGS", 0.0)
    go_on = threading.Event()

    async def what(one: Watching) -> None:
        monkeypatch.setattr(one.openers._files, "watch", lambda _: not go_on.wait(10))
        one.openers._held = {"/x": []}
        one.openers.watch({})
        for _ in range(3):
            await asyncio.sleep(0.01)
            one.openers.look()
        assert [text for _, text in one.events()] == ["who opens held volumes cannot be seen: storage hangs"]
        go_on.set()
        for _ in range(3):
            await asyncio.sleep(0.05)
            one.openers.look()
        assert ["max_user_watches" in text for _, text in one.events()] == [True]

    watching(monkeypatch, what)


# -- of several hosts --------------------------------------------------------------------------------------------------


def test_other_hosts_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each copies what it wrote down to the store, whole lines, each once; a store that hangs keeps nobody."""
    store = tmp_path / "store"
    store.mkdir()
    monkeypatch.setattr(events, "_tell_system", lambda _: None)

    def on(number: int) -> None:
        for name in ("LOG", "STATE"):
            folder = tmp_path / f"{name}{number}"
            folder.mkdir(exist_ok=True)
            monkeypatch.setattr(paths, name, str(folder))
        made = Config(store=str(store), cluster="abcd", host_id=number, shared=True)
        monkeypatch.setattr(shared, "load", lambda: made)

    on(1)
    events.record("held", domain="web", disks=[DISK])
    shared.publish()
    shared.publish()
    with open(events.path(), "ab") as file:
        file.write(b'{"time": 5, "event": "half')
    shared.publish()
    copy = store / "history" / "1.jsonl"
    events.record("released", domain="web")
    before, full = copy.read_bytes(), tmp_path / "STATE1" / "published.json.tmp"
    full.mkdir()  # where it has come to cannot be kept
    with pytest.raises(OSError):
        shared.publish()
    assert copy.read_bytes() == before, "else the same is copied every few seconds, until nothing else is left"
    full.rmdir()
    os.unlink(tmp_path / "STATE1" / "published.json")  # a copy that was cut short is made again
    shared.publish()
    assert shared.of_others(Wanted()) == ([], []), "its own it has already"
    on(2)
    found, missing = shared.of_others(Wanted(domain=("web",)))
    assert not missing and [one["event"] for one in found] == ["held", "released"]
    assert shared.of_others(Wanted(domain=("db",))) == ([], [])
    put_aside = [started(number, number=number) for number in range(20)]
    (store / "history" / "4.jsonl.1").write_text("".join(json.dumps(one) + "\n" for one in put_aside))
    (store / "history" / "4.jsonl").write_text(json.dumps(started(7, number=20)) + "\n")
    assert [one["instance"] for one in shared.of_others(Wanted(host="node1"))[0]] == [f"u.{n}" for n in range(21)]
    (store / "history" / "5.jsonl").mkdir()
    for name in ("lost+found", "4.jsonl.swp", "notes", ".nfs01"):
        (store / "history" / name).mkdir()
    found, missing = shared.of_others(Wanted(host="node1"))
    assert len(found) == 21 and len(missing) == 1 and "5.jsonl: " in missing[0], "what lies beside them hides nobody's trail"
    os.mkfifo(store / "history" / "3.jsonl")
    monkeypatch.setattr(shared, "_PATIENCE", 0.3)
    found, missing = shared.of_others(Wanted(domain=("web",)))
    assert len(found) == 2 and "does not answer" in missing[0]


def test_a_trail_is_copied_in_pieces(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A host whose store has just come to be shared has 80 MB to copy, and its agent may not have as much memory."""
    monkeypatch.setattr(paths, "STATE", str(log))
    monkeypatch.setattr(shared, "load", lambda: Config(store=str(log), cluster="abcd", host_id=1, shared=True))
    monkeypatch.setattr(history, "_PIECE", 1000)
    for number in range(30):
        events.record("held", "x" * 100, number=number)
    events.record("held", "y" * 2500, number=30)  # longer than a piece
    with open(events.path(), "ab") as file:
        file.write(b'{"time": 1, "event": "half')
    monkeypatch.setattr(events, "MAX_BYTES", 1 << 30)
    whole, _ = history.new_lines((0, 0))
    appended: List[int] = []
    append = shared._append
    monkeypatch.setattr(shared, "_append", lambda path, data: appended.append(len(data)) or append(path, data))
    shared.publish()
    copied = (log / "history" / "1.jsonl").read_bytes().splitlines()
    assert copied == whole and json.loads(copied[-1])["number"] == 30
    assert len(appended) > 4 and sorted(appended)[-2] <= 1000
    shared.publish()
    assert (log / "history" / "1.jsonl").read_bytes().splitlines() == whole


def test_a_store_that_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of what is new, and then all of it again and again, would be twice in the trail."""
    monkeypatch.setattr(events, "_tell_system", lambda _: None)
    for name in ("LOG", "STATE"):
        monkeypatch.setattr(paths, name, str(tmp_path))
    monkeypatch.setattr(shared, "load", lambda: Config(store=str(tmp_path), cluster="abcd", host_id=1, shared=True))
    for number in range(100):
        events.record("held", "x" * 100, number=number)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (5000, limit[1]))
        for _ in range(2):
            with pytest.raises(OSError):
                shared.publish()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, handler)
    shared.publish()
    lines = (tmp_path / "history" / "1.jsonl").read_text().splitlines()
    assert [json.loads(line)["number"] for line in lines] == list(range(100))


def test_a_trail_that_is_put_aside_while_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its agent goes on to write: what was the newest is the one before it when its turn comes."""
    path = tmp_path / "4.jsonl"
    for number, name in enumerate(("4.jsonl.1", "4.jsonl")):
        (tmp_path / name).write_text(json.dumps(started(number, number=number)) + "\n")
    real, moves = open, [True]

    def put_aside(name: str, *words: Any, **more: Any) -> Any:
        file = real(name, *words, **more)
        if moves:
            moves.pop()
            os.rename(path, f"{path}.1")
        return file

    monkeypatch.setattr("builtins.open", put_aside)
    status, text = shared._trail(str(path))
    assert not status and "u.1" in text
