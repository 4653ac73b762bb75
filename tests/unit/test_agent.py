# SPDX-License-Identifier: LGPL-2.1-or-later
"""The parts of vmguardd that need no host: who runs, what wakes it, what is a conflict, how children end."""

import asyncio
import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any, Dict, Iterator, List

import pytest

from vmguard import deadline, host, instance, libvirtstate, overrides, owning, paths
from vmguard.agent import acting, daemon, defining, guests, looking, standing, work
from vmguard.agent.defining import Wrong
from vmguard.claims import GUESTS_SHARE_IT, LIES_UNDER, Claim, Mode
from vmguard.config import Config, OnConflict
from vmguard.errors import CannotTell, Holder, InUse, SanlockDown
from vmguard.host import Process, Qemu
from vmguard.instance import Instance, Want
from vmguard.openfiles import Finding, Findings, Opened, Verdict
from vmguard.storage import Storage

# Other guests may run on this machine.
NAME = f"unit-{os.getpid()}"
UUID = "11111111-2222-3333-4444-555555555555"


# -- who runs ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def qemu(tmp_path: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """A process with QEMU's arguments and some files open."""
    (tmp_path / "disk").write_bytes(b"x")
    words = ["qemu-system-x86_64", "-c", "while read l; do eval $l; done", "-name", f"guest={NAME}", "-uuid", UUID]
    with open(tmp_path / "disk", "rb") as disk:
        process = subprocess.Popen(words, executable="/bin/bash", stdin=subprocess.PIPE, pass_fds=[disk.fileno()])
    yield process
    process.kill()
    process.wait()


def said(process: "subprocess.Popen[bytes]", command: str, done: Any) -> None:
    assert process.stdin is not None
    process.stdin.write(command.encode() + b"\n")
    process.stdin.flush()
    end = time.monotonic() + 10
    while not done() and time.monotonic() < end:
        time.sleep(0.01)
    assert done()


def test_a_guest_comes_changes_and_goes(qemu: "subprocess.Popen[bytes]", tmp_path: Path) -> None:
    all_ = guests.Guests()
    while not all_.of_name(NAME):  # between fork and exec it is no QEMU yet: it is looked at again
        all_.scan()
    (guest,) = all_.of_name(NAME)
    assert guest.qemu.uuid == UUID and guest.due is not None, "it is looked at, to begin with"
    guest.due = None
    guest.remember()
    all_.look()
    assert guest.due is None, "nothing has changed"
    folder = f"/proc/{qemu.pid}/fd"
    said(qemu, f"exec 9<{tmp_path}/disk", lambda: os.path.exists(folder + "/9"))
    assert guest.changed(closely=True) and guest.changed(closely=False) == all_._counts
    all_.look()
    assert guest.due is not None or not all_._counts
    guest.remember()
    (tmp_path / "other").write_bytes(b"y")
    said(qemu, f"exec 9<{tmp_path}/other", lambda: os.readlink(folder + "/9").endswith("other"))
    assert not guest.changed(closely=False) and guest.changed(closely=True), "as many, but others"
    qemu.kill()
    qemu.wait()
    assert guest in all_.scan() and not all_.of_name(NAME)


def test_each_ones_turn_comes(qemu: "subprocess.Popen[bytes]", tmp_path: Path) -> None:
    """As many open files as before, but others: noticed within a round of looks."""
    all_ = guests.Guests()
    while not all_.of_name(NAME):
        all_.scan()
    (guest,) = all_.of_name(NAME)
    said(qemu, f"exec 9<{tmp_path}/disk", lambda: os.path.exists(f"/proc/{qemu.pid}/fd/9"))
    guest.due = None
    guest.remember()
    (tmp_path / "other").write_bytes(b"y")
    said(qemu, f"exec 9<{tmp_path}/other", lambda: os.readlink(f"/proc/{qemu.pid}/fd/9").endswith("other"))
    for _ in range(guests._ROUND):
        all_.look()
    assert guest.due is not None


def test_what_becomes_a_qemu_late_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A script that prepares for minutes and ends with exec; or another process has the number now."""
    monkeypatch.setattr(guests, "_BECOMES", 0.0)
    script = f"read l; exec -a qemu-system-x86_64 bash -c 'read l' -name guest={NAME} -uuid {UUID}"
    process = subprocess.Popen(["/bin/bash", "-c", script], stdin=subprocess.PIPE)
    try:
        all_ = guests.Guests()
        for _ in range(3):
            all_.scan()
        assert process.pid in all_._strangers
        said(process, "go", lambda: host.qemu(process.pid) is not None)
        for _ in range(guests._ROUND):
            all_.scan()
        assert [guest.process.pid for guest in all_.of_name(NAME)] == [process.pid]
        assert process.pid not in all_._strangers
    finally:
        process.kill()
        process.wait()


# -- children ----------------------------------------------------------------------------------------------------------


def test_a_child_tells_and_ends() -> None:
    heard: List[Dict[str, Any]] = []

    def tell() -> None:
        deadline.tell({"seen": 1})
        deadline.tell({"seen": 2})

    ended = asyncio.run(work.child(tell, 10, heard.append))
    assert ended.whole and [one["seen"] for one in heard] == [1, 2]


def test_a_child_that_hangs_is_killed_and_what_it_told_counts() -> None:
    heard: List[Dict[str, Any]] = []

    def hang() -> None:
        deadline.tell({"pid": os.getpid()})
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
        time.sleep(600)

    began = time.monotonic()
    ended = asyncio.run(work.child(hang, 0.3, heard.append))
    assert not ended.whole and time.monotonic() - began < 5
    while host.process(heard[0]["pid"]) is not None and time.monotonic() - began < 10:
        work.reap()
    assert host.process(heard[0]["pid"]) is None


def test_an_error_in_a_child_comes_back_as_text() -> None:
    def fail() -> None:
        raise ValueError("nobody meant it")

    ended = asyncio.run(work.child(fail, 10, lambda _: None))
    assert not ended.whole and "nobody meant it" in ended.text


def test_a_child_that_is_killed_while_it_tells() -> None:
    """What it was about to say was cut off: no more than that is lost."""
    heard: List[Dict[str, Any]] = []

    def half() -> None:
        deadline.tell({"seen": 1})
        assert deadline._pipe is not None
        os.write(deadline._pipe, b'{"seen": ')
        os.kill(os.getpid(), signal.SIGKILL)

    ended = asyncio.run(work.child(half, 10, heard.append))
    assert not ended.whole and [one["seen"] for one in heard] == [1]


def test_a_look_that_could_not_begin_is_made_up_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no memory for another process: what was noticed must not be forgotten with it."""
    monkeypatch.setattr(paths, "LOG", str(tmp_path))
    monkeypatch.setattr(daemon.events, "_tell_system", lambda _: None)

    def full(*_: Any) -> None:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(work.deadline, "begin", full)
    config = Config(store="/x", cluster="abcd", host_id=1)

    async def look() -> None:
        agent = daemon.Agent()
        all_ = [guests.Guest(Qemu(Process(number, 1), f"u{number}", "web", False)) for number in (1, 2)]
        for guest in all_:
            guest.due = None
        agent._begin(agent._look(all_, config))
        await asyncio.gather(*agent._acting, return_exceptions=True)
        assert all(guest.due is not None for guest in all_)

    asyncio.run(look())


def test_the_loop_goes_on_while_a_child_works() -> None:
    async def both() -> int:
        turns = 0

        async def count() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0.01)

        task = asyncio.ensure_future(count())
        await work.child(lambda: time.sleep(0.5), 10, lambda _: None)
        task.cancel()
        return turns

    assert asyncio.run(both()) > 10


def test_programs() -> None:
    done = asyncio.run(work.program(["/bin/sh", "-c", "cat; echo to err >&2; exit 3"], "in", 10))
    assert done.whole and done.status == 3 and done.text == "into err\n"
    began = time.monotonic()
    late = asyncio.run(work.program(["/bin/sh", "-c", "sleep 600 & sleep 600"], "", 0.3))
    assert not late.whole and time.monotonic() - began < 5


def test_one_that_hangs_keeps_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Storage that does not answer, under more guests than there are children: the others are looked at all the same."""
    monkeypatch.setattr(paths, "RUN", str(tmp_path / "run"))
    monkeypatch.setattr(paths, "LOG", str(tmp_path / "log"))
    monkeypatch.setattr(daemon, "load", lambda: Config(store="/x", cluster="abcd", host_id=1, deadline=2.0))
    monkeypatch.setattr(daemon.events, "_tell_system", lambda _: None)
    running = [subprocess.Popen(["sleep", "60"]) for _ in range(30)]

    def look_at(qemu: Qemu, *_: Any) -> looking.Seen:
        if qemu.name != "fine":
            time.sleep(600)
        return looking.Seen("calm")

    monkeypatch.setattr(looking, "look_at", look_at)

    async def both() -> float:
        agent = daemon.Agent()
        agent._sweep = None
        for number, process in enumerate(running):
            found = host.process(process.pid)
            assert found is not None
            name = "fine" if number == 29 else f"hangs{number}"
            agent.guests.by_pid[process.pid] = guests.Guest(Qemu(found, f"u{number}", name, False))
        (fine,) = agent.guests.of_name("fine")
        fine.due = None
        await agent._look_at_those_due()
        assert agent._looks == daemon._LOOKS - 1
        fine.urgent = True
        fine.wake()
        began = time.monotonic()
        await agent._look_at_those_due()
        while fine.busy:
            await asyncio.sleep(0.01)
        took = time.monotonic() - began
        for task in agent._acting:
            task.cancel()
        await asyncio.sleep(0)
        return took

    try:
        assert asyncio.run(both()) < 1.5
    finally:
        for one in running:
            one.kill()
            one.wait()


@pytest.mark.parametrize("left", [True, False])
def test_what_could_not_be_given_back_is_tried_again(left: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """sanlock or the store did not answer when the guest ended, and nobody calls a hook on this host any more."""
    monkeypatch.setattr(paths, "RUN", str(tmp_path))
    gone = one()._replace(boot_id=host.boot_id(), qemu=Process(2**22 + 1, 1))
    instance.write(gone)
    monkeypatch.setattr(looking, "load", lambda: Config(store="/x", cluster="abcd", host_id=1))
    monkeypatch.setattr(looking, "here", lambda _config: None)

    def sweep(_this: Any) -> None:
        if left:
            raise SanlockDown(111)
        instance.forget(gone)

    monkeypatch.setattr(looking.giving, "sweep", sweep)

    async def swept_once() -> Any:
        agent = daemon.Agent()
        agent._sweep = None
        await agent._swept(10)
        return agent._sweep

    assert (asyncio.run(swept_once()) is not None) is left


@pytest.mark.parametrize("state", ["intent", "held"])
@pytest.mark.parametrize(("age", "swept"), [(0.0, False), (60.0, True), (-3600.0, True)])
def test_a_start_that_nobody_goes_on_with(
    age: float, swept: bool, state: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its hook or libvirtd is dead, or the clock was put back: the sweep finds out. One that is under way is let be."""
    monkeypatch.setattr(paths, "RUN", str(tmp_path))
    instance.write(one()._replace(state=state, since=time.time() - age))

    async def due() -> bool:
        agent = daemon.Agent()
        agent._config, agent._sweep = Config(store="/x", cluster="abcd", host_id=1), None
        agent.monitor._refresh()
        agent._sweeps = True
        agent._see_leftovers()
        assert agent._sweep is None, "one at a time"
        agent._sweeps = False
        agent._see_leftovers()
        found, agent._sweep = agent._sweep is not None, None
        agent._see_leftovers()
        assert agent._sweep is None, "not at each look"
        return found

    assert asyncio.run(due()) is swept


@pytest.mark.parametrize(
    ("state", "libvirtd", "runs", "dead"),
    [
        ("intent", True, True, True),  # of what a guest that runs came to have
        ("held", True, False, False),
        ("held", False, False, True),
        ("held", False, True, False),
        ("running", True, False, True),
        ("running", True, True, False),
    ],
)
def test_what_a_sweep_is_for(
    state: str, libvirtd: bool, runs: bool, dead: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paths, "RUN", str(tmp_path))
    me = host.process(os.getpid())
    assert me is not None
    daemon_ = me if libvirtd else me._replace(start=1)
    instance.write(one()._replace(state=state, boot_id=host.boot_id(), libvirtd=daemon_))
    monkeypatch.setattr(looking, "qemu_of", lambda _: me if runs else None)
    assert looking._any_dead() is dead


def test_who_has_ended_has_closed_his_files_himself(qemu: "subprocess.Popen[bytes]") -> None:
    """A guest that runs and has the files of before was not it; one that is gone may have been."""

    async def quiet() -> List[bool]:
        agent = daemon.Agent()
        found = [agent._is_quiet(UUID)]
        while not agent.guests.of_name(NAME):
            agent.guests.scan()
        (guest,) = agent.guests.of_name(NAME)
        guest.remember()
        guest.due = None
        found.append(agent._is_quiet(UUID))
        qemu.kill()
        qemu.wait()
        return [*found, agent._is_quiet(UUID)]

    assert asyncio.run(quiet()) == [False, True, False]


# -- standing ----------------------------------------------------------------------------------------------------------


def test_what_came_up_is_asked_for_once_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """And dropped where no other host sees the store: nothing of it is another's, and nothing piles up."""
    said: List[Any] = []
    config = Config(store="/x", cluster="abcd", host_id=1, shared=True, deadline=2.0)
    waiting = [["/dev/mapper/a"], ["/dev/mapper/b"], ["/dev/mapper/c"], []]
    told = {"device": "/dev/mapper/a", "holder": "node2", "identity": "lvm:a/b", "domain": "web", "path": "/dev/vg/a"}
    monkeypatch.setattr(standing.elsewhere, "tell_holders", lambda devices: [deadline.tell(told) for _ in devices])
    monkeypatch.setattr(standing.events, "path", lambda: "/nowhere")

    async def look() -> None:
        tasks: List[Any] = []
        one = standing.Standing(
            lambda event, text, **data: said.append((event, text, data)),
            lambda what: tasks.append(asyncio.ensure_future(what)),
            lambda: config,
            lambda: waiting.pop(0),
            "",
        )
        one.look()
        one.look()
        assert len(tasks) == 1 and len(waiting) == 3, "they wait while a child asks"
        await asyncio.gather(*tasks)

    asyncio.run(look())
    ((event, text, data),) = said
    assert event == "activated" and "node2 has it" in text and data["domain"] == "web" and "device" not in data
    config = config._replace(shared=False)
    standing.Standing(lambda *_: None, lambda _: pytest.fail("asked"), lambda: config, lambda: waiting.pop(0), "").look()
    assert len(waiting) == 2


def test_what_came_up_while_the_store_was_away_is_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was answered before it went away is not told twice."""
    said: List[str] = []
    asked: List[Any] = []
    config = Config(store="/x", cluster="abcd", host_id=1, shared=True, deadline=2.0)
    waiting: List[List[str]] = [["/dev/mapper/a", "/dev/mapper/b"], [], []]

    def tell_holders(devices: List[str]) -> None:
        deadline.tell({"device": devices[0], "holder": "node2", "path": devices[0]})
        if "/dev/mapper/a" in devices:
            raise SanlockDown(111)

    real = work.child

    async def child(work_: Any, seconds: float, heard: Any) -> work.Ended:
        asked.append(work_)
        return await real(work_, seconds, heard)

    monkeypatch.setattr(standing, "_ASKED_AGAIN", 0.01)
    monkeypatch.setattr(standing.elsewhere, "tell_holders", tell_holders)
    monkeypatch.setattr(standing.work, "child", child)
    monkeypatch.setattr(standing.events, "path", lambda: "/nowhere")

    async def look() -> None:
        tasks: List[Any] = []
        one = standing.Standing(
            lambda event, text, **data: said.append(data["path"]),
            lambda what: tasks.append(asyncio.ensure_future(what)),
            lambda: config,
            lambda: waiting.pop(0),
            "",
        )
        for _ in range(3):
            one.look()
            await asyncio.gather(*tasks)

    asyncio.run(look())
    assert said == ["/dev/mapper/a", "/dev/mapper/b"] and len(asked) == 2


# -- conflicts ---------------------------------------------------------------------------------------------------------


def claim(identity: str = "lvm:a/b", mode: Mode = Mode.EXCLUSIVE, written: bool = True, why: str = "") -> Claim:
    return Claim(identity, mode, "disk vdb", "/dev/vg/b", why or "the guest may write it", written=written)


def held_by(**changes: Any) -> Holder:
    return Holder(2, host="node2", domain="db", uuid="other", path="/dev/vg/b", alive=True)._replace(**changes)


def one(*wants: Want) -> Instance:
    return Instance("i", UUID, "web", "", Process(1, 1), "running", wants, 0)


def judged(error: Exception, contested_for: float = 0.0, opened: bool = True, mine: Any = None) -> Any:
    told: List[Any] = []
    state = looking._State(Findings(), {"lvm:a/b": mine or claim()} if opened else {}, {})
    found = looking._conflict(error, one(), state, contested_for, told)  # type: ignore[arg-type]
    return found, [event for event, _, _ in told]


def test_a_proven_conflict() -> None:
    found, told = judged(InUse(claim(), [held_by()]))
    assert found["path"] == "/dev/vg/b" and '"db" on node2' in found["text"] and found["plugged"] and not told


@pytest.mark.parametrize(
    "error, more",
    [
        (InUse(claim(), [held_by(alive=False)]), {}),  # that host may be dead
        (InUse(claim(), [held_by(alive=None)]), {}),  # nobody knows yet
        (InUse(claim(), [held_by()]), {"opened": False}),  # the definition names it, QEMU has another thing open
        (InUse(claim(), [held_by()]), {"mine": claim(mode=Mode.SHARED, written=False)}),  # it only reads
        (InUse(claim(), [held_by(uuid=None, domain=None)]), {}),  # its note is just being written
        (SanlockDown(111), {}),
    ],
)
def test_an_alarm(error: Exception, more: Dict[str, Any]) -> None:
    assert judged(error, **more) == (None, ["alarm"])


def test_the_other_side_of_a_migration() -> None:
    error = InUse(claim("vm:" + UUID), [held_by(uuid=UUID, domain="web")])
    assert judged(error, mine=claim()) == (None, [])
    assert judged(InUse(claim(), [held_by(uuid=UUID)])) == (None, [])
    found, _ = judged(InUse(claim(), [held_by(uuid=UUID, domain="web")]), contested_for=60)
    assert found, "nobody moves for so long: it runs twice"


def test_two_that_have_no_uuid_are_not_one_on_its_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """QEMUs that were started by hand: one of them writes what another has, now."""
    error = InUse(claim(), [held_by(uuid="", domain="plain")])
    nameless = one()._replace(uuid="")
    monkeypatch.setitem(globals(), "one", lambda: nameless)
    found, _ = judged(error, contested_for=2)
    assert found and '"plain" on node2' in found["text"]


def test_a_holder_whose_note_does_not_come() -> None:
    found, _ = judged(InUse(claim(), [held_by(uuid=None, domain=None)]), contested_for=5)
    assert "somebody on node2" in found["text"]


def test_what_an_administrator_let_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By an override, while sanlock was away: there is no record of that start, and the word counts all the same."""
    monkeypatch.setattr(paths, "RUN", str(tmp_path))
    overrides.give(overrides.Override(UUID, "web", "I know", "root", time.time()))
    assert overrides.take(UUID) is not None and overrides.started_by(UUID) and not overrides.pending()
    told: List[Any] = []
    state = looking._State(Findings(), {"lvm:a/b": claim()}, {})
    adopted = one()._replace(note=looking.RAN_BEFORE)
    assert looking._conflict(InUse(claim(), [held_by()]), adopted, state, 0.0, told) is None and told
    assert looking._conflict(InUse(claim(), [held_by()]), one(), state, 0.0, told), "what was plugged in later"
    assert overrides.take(UUID) is None and not overrides.started_by(UUID), "the next start is another one"
    overrides.give(overrides.Override(UUID, "web", "I know", "root", time.time()))
    assert overrides.withdraw(UUID) and not overrides.started_by(UUID)
    overrides.give(overrides.Override(UUID, "web", "long ago", "root", 0.0))
    assert overrides.take(UUID) is None and not overrides.started_by(UUID)


def test_what_lies_under_it_counts() -> None:
    """Somebody has the whole disk, of which it writes a partition."""
    under = claim(mode=Mode.SHARED, why=LIES_UNDER + "disk vdb")
    found, _ = judged(InUse(under, [held_by()]), mine=under)
    assert found


def test_over_the_network_the_definition_is_believed() -> None:
    over = claim("rbd:pool/image")
    assert judged(InUse(over, [held_by()]), opened=False)[0]


def test_what_the_definition_alone_shows() -> None:
    assert looking._unseen(claim("rbd:p/i")) and looking._unseen(claim("lun:1")._replace(path="address 0000:01:00.0"))
    assert not looking._unseen(claim("lun:1")) and not looking._unseen(claim("vm:u")._replace(path="web"))
    assert not looking._unseen(claim("file:1")._replace(path="volume a of pool b"))


# -- what is spare, what is missing ------------------------------------------------------------------------------------


def opened(identity: str, writable: bool = True) -> Opened:
    storage = Storage(identity, "/x", "file", under=(Storage("lun:1", "/dev/sda", "lun"),))
    return Opened("/x", "file", (0, 1), 5, (0, 0), writable=writable, active=True, storage=(storage,))


def state(*objects: Opened, defined: Any = (), verdict: Verdict = Verdict.CLAIMED) -> looking._State:
    known = None if defined is None else {one.identity: one for one in defined}
    found = Findings(tuple(Finding(one, verdict) for one in objects))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(looking, "_defined", lambda _: known)
        return looking._compared(found, Qemu(Process(1, 1), UUID, "web", False))


def test_spare_is_what_nothing_needs() -> None:
    names = ("vm:" + UUID, "file:open", "file:defined", "file:gone", "lun:1", "lun:2")
    wants = [Want(claim(name)._replace(path="/" + name)) for name in names]
    now = state(opened("file:open"), defined=[claim("file:defined")])
    assert now.spare(one(*wants)) == ("file:gone", "lun:2")
    assert now.spare(one(Want(claim("file:gone"), missing=True))) == ()
    unknown = state(opened("file:open"), verdict=Verdict.UNKNOWN)
    assert unknown.spare(one(*wants)) == (), "what cannot be identified might be any of them"
    assert state(opened("file:open"), defined=None).spare(one(*wants)) == (), "nobody knows what is defined"


def test_what_is_mounted_over_does_not_free_what_is_below() -> None:
    """A folder that another process serves to the guest is not open in QEMU, and its path leads elsewhere now."""
    wants = [Want(claim("file:folder")), Want(claim("file:other")._replace(what="disk vdc"))]
    assert state(defined=[claim("file:mounted-over-it")]).spare(one(*wants)) == ("file:other",)


def status_file(folder: Path, name: str, pid: int, uuid: str = UUID) -> None:
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.xml").write_text(
        f"<domstatus state='running' reason='booted' pid='{pid}'><domain type='kvm'><name>web</name><uuid>{uuid}</uuid>"
        "<devices><disk type='file' device='disk'><source file='/etc/hostname'/><target dev='vda'/></disk></devices>"
        "</domain></domstatus>"
    )


def test_only_libvirts_own_process_is_what_the_status_file_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Any user can start a process with a domain's uuid, and any name."""
    monkeypatch.setattr(libvirtstate, "STATUS", str(tmp_path / "libvirt"))
    status_file(tmp_path / "libvirt", "web", 7)
    status_file(tmp_path / "user", "s", 8)
    known = looking._defined(Qemu(Process(7, 1), UUID, "web", False))
    assert known is not None and any(one.path == "/etc/hostname" for one in known.values())
    for pid, name in ((8, "web"), (8, "../user/s"), (8, ""), (8, str(tmp_path / "user" / "s"))):
        assert looking._defined(Qemu(Process(pid, 1), UUID, name, False)) is None, name
        assert libvirtstate.of(name, 8) is None
    assert libvirtstate.pid_of("web", UUID) == 7 and libvirtstate.pid_of("web", UUID[:-1] + "6") is None


def test_leases_are_for_the_qemu_that_libvirt_has_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libvirtstate, "STATUS", str(tmp_path / "libvirt"))
    there = [Qemu(Process(pid, start), UUID, "web", False) for pid, start in ((5, 500), (7, 700), (9, 900))]
    monkeypatch.setattr(host, "qemu_processes", lambda: tuple(there))
    assert owning.chosen("web", UUID) == Process(9, 900), "libvirt has not written it down: the last one"
    status_file(tmp_path / "libvirt", "web", 7)
    assert owning.chosen("web", UUID) == Process(7, 700)
    assert owning.chosen("web", "another") is None
    del there[1:]
    assert owning.chosen("web", UUID) == Process(5, 500), "it counts as running: what it has is not given back"


def test_missing_is_named_by_the_definition() -> None:
    shared = claim("file:x", Mode.SHARED, why=GUESTS_SHARE_IT)
    now = state(opened("file:x"), defined=[shared], verdict=Verdict.WRITTEN)
    found = {one.identity: one for one in now.missing(one())}
    assert found["file:x"] == shared and found["lun:1"].mode is Mode.SHARED
    reads = claim("file:x", Mode.SHARED, written=False, why="the guest reads it")
    now = state(opened("file:x"), defined=[reads], verdict=Verdict.WRITTEN)
    assert {one.identity: one for one in now.missing(one())}["file:x"].mode is Mode.EXCLUSIVE, "it writes it all the same"


def test_a_path_of_the_definition_is_not_believed() -> None:
    """A file that was replaced under a running guest: the definition leads to the new one, which is somebody else's."""
    now = state(opened("file:old"), defined=[claim("file:new"), claim("nbd:host/x")], verdict=Verdict.CLAIMED)
    assert [one.identity for one in now.missing(one(Want(claim("file:old")), Want(claim("lun:1"))))] == ["nbd:host/x"]


def test_nothing_is_done_where_nothing_is_guarded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CONFIG", "CONFIG_DIR", "STATE", "RUN"):
        monkeypatch.setattr(paths, name, str(tmp_path / name))
    assert looking.look_at(Qemu(Process(1, 1), UUID, "web", False), (), 0.0, 0.0).word == "calm"


def test_a_look_that_cannot_be_made_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise CannotTell()

    monkeypatch.setattr(looking, "load", broken)
    seen = looking.look_at(Qemu(Process(1, 1), UUID, "web", False), (), 0.0, 0.0)
    assert seen.word == "trouble" and seen.again and seen.told[0][0] == "not-inspected"


def test_messages_come_back() -> None:
    qemu = Qemu(Process(7, 8), UUID, "web", False)
    seen = looking.Seen("conflict", 2.0, (("alarm", "x", {"a": 1}),), (("surprise", "y", {}),), ({"path": "/x"},), ("i",))
    process, back = looking.from_message(looking.as_message(qemu, seen))
    assert process == qemu.process and back == seen


# -- definitions, records ----------------------------------------------------------------------------------------------


def test_what_is_wrong_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paths, "RUN", str(tmp_path))
    wrong = Wrong("we b", "VMG101", "error", "disk vda", "it is another's", "take another")
    defining._keep("we b", [wrong])
    (tmp_path / "lint" / "half.json").write_text('[["a"')
    assert defining.known() == {"we b": [wrong]}
    defining._keep("we b", [])
    defining._keep("never.there", [])
    assert defining.known() == {}


def test_a_definition_s_fault_names_its_place_once() -> None:
    wrong = Wrong("web", "VMG102", "error", "disk vda", 'disk vda is disk vda of "db" as well', "do this")
    assert defining.words_of(wrong) == 'disk vda is disk vda of "db" as well (VMG102, error). do this'
    assert defining.words_of(wrong._replace(text="it is cached")).startswith("disk vda: it is cached")


def test_a_change_is_judged_though_another_definition_went(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that goes while it is judged spoils that turn for all; the next one has them."""
    monkeypatch.setattr(paths, "RUN", str(tmp_path))
    monkeypatch.setattr(defining, "DEFINITIONS", str(tmp_path))
    monkeypatch.setattr(defining, "_SETTLES", 0.0)
    turns: List[List[str]] = []

    async def lint(words: List[str], _stdin: str, _seconds: float) -> work.Ended:
        turns.append([os.path.basename(word) for word in words if word.endswith(".xml")])
        return work.Ended(2, "gone.xml: there is no such file" if len(turns) == 2 else '{"findings": []}')

    monkeypatch.setattr(work, "program", lint)

    async def turn() -> None:
        definitions = defining.Definitions(lambda *_words, **_data: None)
        keeping = asyncio.ensure_future(definitions.keep())
        for number, names in enumerate((["web", "gone"], ["db"]), 2):
            for name in names:
                (tmp_path / f"{name}.xml").touch()
                definitions.changed(name)
            while len(turns) < number:
                await asyncio.sleep(0.01)
            (tmp_path / "gone.xml").unlink(missing_ok=True)
        keeping.cancel()

    asyncio.run(asyncio.wait_for(turn(), 10))
    assert turns == [[], ["gone.xml", "web.xml"], ["db.xml", "web.xml"]]


def test_definitions_that_could_not_be_judged_at_first_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the host has just started: nobody may ever change them."""
    monkeypatch.setattr(paths, "RUN", str(tmp_path))
    monkeypatch.setattr(defining, "_AGAIN", 0.0)
    turns: List[bool] = []
    wrong = {"domain": "web", "rule": "VMG101", "severity": "error", "what": "", "text": "", "remedy": "", "suppressed": False}

    async def lint(words: List[str], _stdin: str, _seconds: float) -> work.Ended:
        turns.append("--all" in words)
        return work.Ended(True, "nothing answers" if len(turns) < 3 else json.dumps({"findings": [wrong]}))

    monkeypatch.setattr(work, "program", lint)

    async def turn() -> None:
        keeping = asyncio.ensure_future(defining.Definitions(lambda *_words, **_data: None).keep())
        while not defining.known():
            await asyncio.sleep(0.01)
        keeping.cancel()

    asyncio.run(asyncio.wait_for(turn(), 10))
    assert turns == [True] * 3


def test_many_events_at_once_are_not_as_many_programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Five hundred guests lose their leases at one moment; each is told, in its turn."""
    running, most, told = [0], [0], []

    async def program(_words: List[str], line: str, _seconds: float) -> work.Ended:
        running[0] += 1
        most[0] = max(most[0], running[0])
        await asyncio.sleep(0.001)
        running[0] -= 1
        told.append(json.loads(line)["number"])
        return work.Ended(True, status=0)

    monkeypatch.setattr(work, "program", program)

    async def storm() -> None:
        agent = daemon.Agent()
        agent._config = Config(store="/x", cluster="abcd", host_id=1, command="/bin/mail")
        for number in range(500):
            agent._run_command("alarm", "", number=number)
        await asyncio.gather(*agent._acting)

    asyncio.run(storm())
    assert len(told) == 500 and most[0] <= daemon._COMMANDS


def test_a_record_of_before_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the members that came later."""
    monkeypatch.setattr(paths, "RUN", str(tmp_path))
    instance.write(one(Want(claim())))
    path = tmp_path / "instances" / "i.json"
    path.write_text(path.read_text().replace(', "contested": false', "").replace(', "device": ""', ""))
    assert instance.load("i.json") == one(Want(claim()))


def test_which_disk_is_taken_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """By its path: what is copied to is aborted, a medium ejected, anything else unplugged; by libvirt's own names."""
    xml = """<domain><devices>
      <disk type='file' device='cdrom'><source file='/iso'/><target dev='hda' bus='ide'/></disk>
      <disk type='block' device='disk'><source dev='/dev/x'/><target dev='vdb' bus='virtio'/><alias name='virtio-disk1'/></disk>
      <disk type='file' device='disk'><source file='/a'/><mirror job='copy'><source file='/copy'/></mirror>
        <target dev='vda' bus='virtio'/></disk></devices></domain>"""
    done: List[Any] = []

    class Domain:
        def XMLDesc(self, _flags: int) -> str:
            return xml

        def __getattr__(self, name: str) -> Any:
            return lambda *words: done.append((name, *words))

    libvirt = pytest.importorskip("libvirt")
    assert acting._take_away(Domain(), "/copy", libvirt) == "aborted the copy of vda"
    assert acting._take_away(Domain(), "/iso", libvirt) == "ejected hda"
    assert acting._take_away(Domain(), "/dev/x", libvirt) == "detached vdb"
    assert acting._take_away(Domain(), "/elsewhere", libvirt) is None
    assert [one[0] for one in done] == ["blockJobAbort", "updateDeviceFlags", "detachDeviceAlias"]
    assert done[2][1] == "virtio-disk1"


@pytest.mark.parametrize(
    "path, jobs, backup, done",
    [
        ("/copy", {"vda": 2}, False, ["suspend", "abort vda"]),
        ("/base", {"vda": 2, "vdb": 3}, False, ["suspend", "abort vda", "abort vdb"]),  # the definition names it nowhere
        ("/base", {}, True, ["suspend", "abortJob"]),
        ("/base", {}, False, ["suspend"]),
        ("/a", {"vda": 2, "vdb": 1}, True, ["suspend"]),  # it is copied from there
        ("/dev/x", {"vdb": 1}, False, ["suspend", "abort vdb"]),  # and pulled into that
    ],
)
def test_what_writes_without_processors_ends(
    path: str, jobs: Dict[str, int], backup: bool, done: List[str]
) -> None:
    """A guest that is paused goes on to copy, commit and back up."""
    libvirt = pytest.importorskip("libvirt")
    xml = """<domain><devices>
      <disk type='block' device='disk'><source dev='/dev/x'/><target dev='vdb' bus='virtio'/></disk>
      <disk type='file' device='disk'><source file='/a'/><mirror job='copy'><source file='/copy'/></mirror>
        <target dev='vda' bus='virtio'/></disk></devices></domain>"""
    found: List[str] = []

    class Domain:
        def XMLDesc(self, _flags: int) -> str:
            return xml

        def suspend(self) -> None:
            found.append("suspend")

        def blockJobInfo(self, dev: str, _flags: int) -> Dict[str, int]:
            return {"type": jobs[dev]} if dev in jobs else {}

        def blockJobAbort(self, dev: str, _flags: int) -> None:
            found.append(f"abort {dev}")

        def backupGetXMLDesc(self, _flags: int) -> str:
            if not backup:
                raise libvirt.libvirtError("there is none")
            return "<domainbackup/>"

        def abortJob(self) -> None:
            found.append("abortJob")

    said = acting._suspend(Domain(), [path, path])
    assert sorted(set(found)) == sorted(done) and said.startswith("paused") and ("aborted" in said) is (len(done) > 1)


def test_a_guest_that_was_paused_by_others_still_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """libvirt hangs: its status file says that the guest is paused, and that it has a block job."""
    monkeypatch.setattr(libvirtstate, "STATUS", str(tmp_path))
    monkeypatch.setattr(acting, "_in_child", lambda _work, _seconds: None)
    killed: List[int] = []
    monkeypatch.setattr(acting.host, "alive", lambda _: True)
    monkeypatch.setattr(acting.os, "kill", lambda pid, _number: killed.append(pid))
    for active, stops in (("no", []), ("yes", [7])):
        (tmp_path / "web.xml").write_text(
            f"<domstatus state='paused' reason='user' pid='7'><blockjobs active='{active}'/><domain type='kvm'/></domstatus>"
        )
        acting._pause(UUID, "web", Process(7, 1), [{"path": "/copy"}])
        assert killed == stops


@pytest.mark.parametrize("policy", ["pause", "detach"])
def test_a_process_that_is_not_libvirts_is_stopped_itself(policy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its uuid libvirt would pause, or take the disk from, a guest of its own that has the same."""
    process = subprocess.Popen(["sleep", "60"])
    monkeypatch.setattr(acting, "_in_child", lambda _work, _seconds: pytest.fail("libvirt was asked"))
    monkeypatch.setattr(libvirtstate, "of", lambda _name, _pid: None)
    try:
        found = host.process(process.pid)
        assert found is not None
        conflicts = [{"plugged": True, "path": "/dev/vg/b"}]
        what = (acting._pause if policy == "pause" else acting._detach)(UUID, "web", found, conflicts)
        assert "stopped its process" in what
        _, status = os.waitpid(process.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status)
    finally:
        process.kill()
        process.wait()


def test_a_guest_that_libvirt_does_not_pause_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    process = subprocess.Popen(["sleep", "60"])
    monkeypatch.setattr(acting, "_in_child", lambda _work, _seconds: None)
    monkeypatch.setattr(libvirtstate, "of", lambda _name, _pid: libvirtstate.State("running", "booted"))
    try:
        found = host.process(process.pid)
        assert found is not None
        assert "stopped its process" in acting._pause(UUID, "web", found, [{"path": "/dev/vg/b"}])
        _, status = os.waitpid(process.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status)
    finally:
        process.kill()
        process.wait()


def test_what_is_contained_is_so_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where its process was stopped, because libvirt did not answer, or does not know it: nobody calls it paused."""
    monkeypatch.setattr(libvirtstate, "of", lambda _name, _pid: None)
    monkeypatch.setattr(daemon.Agent, "_say", lambda *_, **__: None)
    config = Config(store="/x", cluster="abcd", host_id=1, conflict=OnConflict.PAUSE)
    seen = looking.Seen("conflict", conflicts=({"path": "/x", "identity": "i", "text": "it is written here"},))
    process = subprocess.Popen(["sleep", "60"])
    acted: List[Any] = []

    async def twice() -> None:
        agent = daemon.Agent()
        monkeypatch.setattr(agent, "_begin", lambda what: (what.close(), acted.append(what)))
        found = host.process(process.pid)
        assert found is not None
        guest = guests.Guest(Qemu(found, UUID, "web", False))
        agent._conflict(guest, seen, config)
        guest.acting, guest.acted = False, {"i"}
        os.kill(process.pid, signal.SIGSTOP)
        os.waitpid(process.pid, os.WUNTRACED)
        agent._conflict(guest, seen, config)
        assert len(acted) == 1
        another = seen._replace(conflicts=(*seen.conflicts, {"path": "/y", "identity": "j", "text": "it is copied to"}))
        agent._conflict(guest, another, config)
        assert len(acted) == 2, "a guest that is paused can be told to copy its disks"
        guest.acting = False
        os.kill(process.pid, signal.SIGCONT)
        os.waitpid(process.pid, os.WCONTINUED)
        agent._conflict(guest, seen, config)
        assert len(acted) == 3, "somebody has let it go on"

    try:
        asyncio.run(twice())
    finally:
        process.kill()
        process.wait()
