# SPDX-License-Identifier: LGPL-2.1-or-later
"""The audit trail: spans out of events, the picture, what others do to held volumes."""

import asyncio
import json
import os
import socket
import subprocess
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any, Dict, List

import pytest

from vmguard import events, host, instance, paths
from vmguard.audit import history, monitor, shared, timeline
from vmguard.audit.history import Wanted
from vmguard.claims import LIES_UNDER, Claim, Mode
from vmguard.config import Config
from vmguard.errors import BadRequest
from vmguard.host import Process
from vmguard.instance import Instance, Want

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
    assert Wanted(domain="thief").takes(refusal) and not Wanted(domain="web").takes(refusal)
    assert not Wanted(since=4).takes(refusal) and not Wanted(host="node2").takes(refusal)
    assert Wanted(disk=("/x",)).takes(event(1, "unseen")), "that nobody looked is part of any answer"


def test_half_a_line_is_no_event(tmp_path: Path) -> None:
    path = tmp_path / "e"
    path.write_bytes(json.dumps(started(1)).encode() + b'\n{"time": 2, "ev\n\xff\n[1]\n{"time": "x", "event": "y"}\n')
    assert [one["event"] for one in history.read(Wanted(), [str(path)])] == ["held"]


@pytest.mark.parametrize(
    "text, ago", [("90m", 5400), ("2d", 172800), ("today", None), ("2026-11-25", None), ("2026-11-25 14:00", None)]
)
def test_times(text: str, ago: Any) -> None:
    now = time.time()
    found = history.moment_of(text, now)
    assert ago is None or found == now - ago
    assert time.localtime(history.moment_of("yesterday", now)).tm_hour == 0
    with pytest.raises(BadRequest):
        history.moment_of("the day after", now)


def test_the_log_goes_on_over_rotation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paths, "LOG", str(tmp_path))
    monkeypatch.setattr(events, "MAX_BYTES", 3000)
    monkeypatch.setattr(events, "_tell_system", lambda _: None)
    heard: List[int] = []
    following = history.follow(Wanted(), pause=0.001)
    events.record("first")
    for number in range(100):
        events.record("refused", "x" * 50, number=number)
    kept = [one["number"] for one in history.read(Wanted()) if "number" in one]
    assert kept == list(range(kept[0], 100)) and len(events.files()) == events.KEPT + 1
    events.record("refused", number=100)
    del following, heard


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
    now: List[Any] = []

    class Files:
        def watch(self, paths: List[str]) -> None:
            now.append(paths)

    seen.monitor._files = Files()  # type: ignore[assignment]
    claim = Claim("lvm:a/c", Mode.EXCLUSIVE, "disk vda", "/dev/vg/other", "the guest may write it", device="253:4")
    for one in instance.load_all():
        instance.forget(one)
    instance.write(Instance("j", "v", "db", "", Process(1, 1), "running", (Want(claim),), 0))
    for path, text in (("size", "4096\n"), ("dm/name", "vg-other\n"), ("dm/uuid", "LVM-ccdd\n")):
        seen.put(seen.device / path, text)
    assert seen.happens() == []
    seen.monitor.look()
    seen.monitor._thread.shutdown()
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


def test_what_changed_while_nobody_looked(seen: Watched) -> None:
    """The agent comes back: the gap is told, and what is different."""
    path = Path(paths.RUN) / "watching.json"
    os.utime(path, (time.time() - 600, time.time() - 600))
    seen.put(seen.device / "size", "8192\n")
    told: List[Dict[str, Any]] = []

    async def again() -> None:
        new = monitor.Monitor(lambda event, text, **data: told.append({"event": event, **data}), lambda _: True)
        new._listen_to_mounts = new._listen_to_udev = lambda: None  # type: ignore[method-assign]
        new.start()
        new.stop()

    host_boot = seen.root / "proc/sys/kernel/random/boot_id"
    seen.put(host_boot, "boot\n")
    asyncio.run(again())
    assert [one["event"] for one in told] == ["unseen", "watching", "resized"]
    assert 590 < told[0]["to"] - told[0]["from"] < 620 and told[2]["size"] == 8192 * 512


def test_another_guest_is_no_change(seen: Watched) -> None:
    instance.write(Instance("j", "v", "db", "", Process(1, 1), "running", (), 0))
    seen.monitor.look()
    assert not seen.told


def test_who_has_it_open_for_writing(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    path.write_bytes(b"x")
    with open(path, "rb") as readable:
        reader = subprocess.Popen(["sleep", "60"], pass_fds=[readable.fileno()])
    with open(path, "ab") as writable:
        writer = subprocess.Popen(["sleep", "60"], pass_fds=[writable.fileno()])
    try:
        assert monitor.writers(str(path)) == [(writer.pid, "sleep")]
    finally:
        for one in (reader, writer):
            one.kill()
            one.wait()
    assert monitor.writers(str(tmp_path / "none")) == []


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
    os.unlink(tmp_path / "STATE1" / "published.json")  # a copy that was cut short is made again
    shared.publish()
    assert shared.of_others(Wanted()) == ([], True), "its own it has already"
    on(2)
    found, answered = shared.of_others(Wanted(domain="web"))
    assert answered and [one["event"] for one in found] == ["held"]
    assert shared.of_others(Wanted(domain="db")) == ([], True)
    os.mkfifo(store / "history" / "3.jsonl")
    monkeypatch.setattr(shared, "_PATIENCE", 0.3)
    assert shared.of_others(Wanted()) == ([], False)
