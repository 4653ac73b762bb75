# SPDX-License-Identifier: LGPL-2.1-or-later
"""Migration for tests: begun and waited for, or left open; thieves who try all the time; a witness who never forgets."""

import subprocess
import threading
import time
from contextlib import contextmanager
from typing import Iterator, List, Sequence

from conftest import Images
from guests import Disk, Guest, count_in, guest, witness
from hosts import Done, Host, eventually, hook_words

Process = "subprocess.Popen[str]"


def words(it: Guest, destination: Host, *options: str) -> List[str]:
    """The command; --unsafe because libvirt takes the rig's filesystem for a local one."""
    live = () if "--offline" in options else ("--live", "--unsafe")
    return ["virsh", "-q", "migrate", *live, *options, it.uuid, f"qemu+tcp://{destination.address}/system"]


def migrate(it: Guest, source: Host, destination: Host, *options: str, check: bool = True) -> Done:
    """Migrate a guest, and see it there."""
    done = source.run(*words(it, destination, *options), check=check, within=120)
    if check and "--offline" not in options:
        assert destination.runs(it) and not source.runs(it)
    return done


@contextmanager
def migrating(it: Guest, source: Host, destination: Host, *options: str) -> Iterator["subprocess.Popen[str]"]:
    """A migration that stays open, for as long as the guest is busy: QEMU runs at both ends."""
    before = len(destination.hook_calls(it))
    process = source.spawn(*words(it, destination, "--bandwidth", "1", *options))

    def sends() -> bool:
        assert process.poll() is None, f"the migration has ended: {process.communicate()}"
        if "started" not in [call.operation for call in destination.hook_calls(it)[before:]]:
            return False  # QEMU does not wait at its destination yet
        return "Memory remaining" in source.virsh("domjobinfo", it.uuid, check=False).out

    try:
        eventually(sends, "memory is being sent", within=30)
        yield process
    finally:
        if process.poll() is None:
            source.virsh("domjobabort", it.uuid, check=False)
        finish(process)


def finish(process: "subprocess.Popen[str]", within: float = 60) -> None:
    """See a command end, or end it. What it started inside the host may outlive it, with its pipes."""
    try:
        process.communicate(timeout=within)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        for pipe in (process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()


def holds(host: Host, it: Guest) -> bool:
    """Whether a guest's QEMU itself has leases, and no ticket among them any more."""
    mine = [held for held in host.leases() if held.pid == host.qemu_pid(it)]
    return bool(mine) and not any(held.name.endswith(".t") for held in mine)


def settled(host: Host, it: Guest, within: float = 15) -> None:
    """The handover is done."""
    eventually(lambda: holds(host, it), f"{it.name} has its leases on {host}", within=within)


class Witness:
    """A guest that counts on its disk, and somebody who looks all the time whether the count ever goes back."""

    def __init__(self, images: Images, name: str = "web", busy: bool = False, block: bool = False) -> None:
        content = witness(mark=1, busy=busy)
        self.disk = images.block(name, content) if block else images.raw(name + ".img", content)
        self.file = images.path(name + ".backing") if block else self.disk
        self.guest = guest(name, [Disk(self.disk, "block") if block else self.disk])
        self.back: List[str] = []
        self._stop = threading.Event()
        self._looks = threading.Thread(target=self._look)

    def __enter__(self) -> "Witness":
        self._looks.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._looks.join()
        assert not self.back, self.back

    def _look(self) -> None:
        last = count_in(self.file)
        while not self._stop.wait(0.01):
            now = count_in(self.file)
            if now.value < last.value or now.mark not in (0, 1):
                self.back.append(f"from {last} to {now}")
            last = now

    def lives(self) -> None:
        """It counts on."""
        before = count_in(self.file).value
        eventually(lambda: count_in(self.file).value > before + 2, "the guest counts on")


class Thieves:
    """On each host somebody who tries to start another guest on the same disk, again and again."""

    def __init__(self, hosts: Sequence[Host], disks: Sequence[Disk], pause: float = 0.0) -> None:
        self.refusals: List[str] = []
        self.stolen: List[str] = []
        self._stop = threading.Event()
        self._pause = pause
        self._threads = [
            threading.Thread(target=self._try, args=(host, guest(f"thief-{host.name}", [disk])))
            for host, disk in zip(hosts, disks)
        ]

    def __enter__(self) -> "Thieves":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()
        assert not self.stolen, self.stolen
        assert self.refusals, "nobody tried"

    def _try(self, host: Host, thief: Guest) -> None:
        while not self._stop.is_set():
            done = host.try_start(thief)
            if not done.status:
                self.stolen.append(f"on {host} at {time.time()}")
                host.destroy(thief)
                continue
            try:
                self.refusals.append(hook_words(done.err))
            except AssertionError as error:
                self.stolen.append(f"on {host}: not refused by the hook: {error}")
            self._stop.wait(self._pause)
