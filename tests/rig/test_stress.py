# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Three hosts that fight for few disks, while hooks, QEMUs and libvirt's daemons are killed at random: never two guests on one
disk, and nothing is left in the end that a collection does not take away.

VMGUARD_RIG_STARTS says how many starts, VMGUARD_RIG_SEED repeats the choices of a run (what the daemons make of them is
another matter: they are not made to run in step).
"""

import os
import random
import threading
import time
from collections import Counter
from typing import Dict, List

import pytest
from conftest import Images
from guests import Disk, Guest, guest
from hosts import Host, eventually

STARTS = int(os.environ.get("VMGUARD_RIG_STARTS", "120"))
SEED = int(os.environ.get("VMGUARD_RIG_SEED", "0")) or random.SystemRandom().randrange(1, 1 << 31)
DISKS = 4


class Watch:
    """Looks all the time which guests run on which disk."""

    def __init__(self, hosts: List[Host], disks: List[str]) -> None:
        self.hosts, self.disks = hosts, disks
        self.doubles: List[str] = []
        self.looks = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look)

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        assert self.looks > 10, "it has hardly looked"
        assert not self.doubles, self.doubles

    def _look(self) -> None:
        while not self._stop.wait(0.05):
            self.looks += 1
            first = self._running()
            # One that ends while another one begins is no double: both must be there a second time.
            doubles = {disk: who for disk, who in first.items() if len(who) > 1}
            if doubles:
                again = self._running()
                for disk, who in doubles.items():
                    both = [one for one in who if one in again.get(disk, [])]
                    if len(both) > 1:
                        self.doubles.append(f"{disk}: {both}")

    def _running(self) -> Dict[str, List[str]]:
        found: Dict[str, List[str]] = {}
        for host in self.hosts:
            for pid, arguments in host.processes():
                if "qemu-system" not in arguments[0] or self._dying(host, pid):
                    continue
                for disk in self.disks:
                    if any(f'"{disk}"' in argument for argument in arguments):
                        found.setdefault(disk, []).append(f"{host}:{pid}")
        return found

    @staticmethod
    def _dying(host: Host, pid: int) -> bool:
        state = host.read(f"/proc/{pid}/status")
        return "State:\tZ" in state or "State:\tX" in state or not state


def one_start(dice: random.Random, host: Host, it: Guest, outcome: "Counter[str]") -> None:
    """A start, with something killed on the way, perhaps; then the guest ends, in one way or another."""
    process = host.spawn("virsh", "-q", "create", "/dev/stdin", stdin=it.xml)
    fate = dice.random()
    pause = dice.uniform(0, 0.5)
    if fate < 0.25:
        time.sleep(pause)  # the moment is what is drawn by lot here
        host.run("pkill", "-KILL", "-f", dice.choice(["vmguard.hook", "50-vmguard"]), check=False)
    elif fate < 0.3:
        time.sleep(pause)
        if host.daemon_pid("libvirtd"):
            host.run("pkill", "-KILL", "-x", "libvirtd", check=False)
            outcome["libvirtd killed"] += 1
    process.communicate(timeout=120)
    outcome["started" if process.returncode == 0 else "refused"] += 1
    time.sleep(dice.uniform(0, 0.3))
    pid = host.qemu_pid(it)
    if pid is not None:
        if dice.random() < 0.4 or not host.daemon_pid("libvirtd"):
            host.run("/bin/kill", "-KILL", str(pid), check=False)
        else:
            host.virsh("destroy", it.uuid, check=False)


def test_contended_starts(node1: Host, node2: Host, node3: Host, images: Images) -> None:
    hosts = [node1, node2, node3]
    disks = [images.block(f"disk{number}") for number in range(DISKS)]
    print(f"VMGUARD_RIG_SEED={SEED} VMGUARD_RIG_STARTS={STARTS}")
    outcome: Counter[str] = Counter()
    failures: List[BaseException] = []

    def lane(host: Host, number: int) -> None:
        dice = random.Random(f"{SEED}/{host.number}/{number}")
        try:
            for turn in range(STARTS // (2 * len(hosts)) + 1):
                chosen = dice.sample(disks, dice.choice([1, 1, 2]))
                it = guest(f"g{host.number}-{number}-{turn}", [Disk(disk, "block") for disk in chosen])
                one_start(dice, host, it, outcome)
        except BaseException as error:
            failures.append(error)

    def keep_libvirt() -> None:
        while not done.wait(0.2):
            for host in hosts:
                if not host.daemon_pid("libvirtd"):
                    host.start_libvirtd(wait=False)

    done = threading.Event()
    keeper = threading.Thread(target=keep_libvirt)
    lanes = [threading.Thread(target=lane, args=(host, number)) for host in hosts for number in range(2)]
    with Watch(hosts, disks) as watch:
        keeper.start()
        for thread in lanes:
            thread.start()
        for thread in lanes:
            thread.join()
        done.set()
        keeper.join()
    print(f"{sum(outcome[word] for word in ('started', 'refused'))} starts: {dict(outcome)}, {watch.looks} looks")
    assert not failures, failures
    assert outcome["started"] > 5 and outcome["refused"] > 5, outcome
    for host in hosts:
        eventually(lambda host=host: not host.virsh("list", check=False).status, f"libvirt of {host} answers")  # type: ignore[misc]
        host.remove_all_guests()
        for pid, arguments in list(host.processes()):
            if "qemu-system" in arguments[0]:
                host.run("/bin/kill", "-KILL", str(pid), check=False)
        host.vmguard("gc", check=False)
        eventually(lambda host=host: not host.leftovers(), f"nothing is left on {host} after a collection")  # type: ignore[misc]
    if failures:
        pytest.fail(str(failures))
