# SPDX-License-Identifier: LGPL-2.1-or-later
"""
What vmguardd costs with hundreds of guests: memory, and processor time while nothing happens.

Some are processes with QEMU's arguments and as many open files, which do nothing; to the agent they are guests past the guard,
so their leases are real. The others are guests of libvirt, started through the guard: 500 of them take some 15 GB.
"""

import os
import time
from typing import Callable, Dict, List, Sequence, Tuple

from agents import watched
from conftest import Images
from guests import SCSI, Disk, guest
from hosts import Host, command, eventually, finish_pipe

GUESTS = int(os.environ.get("VMGUARD_RIG_AGENT_GUESTS", "100"))
REAL = int(os.environ.get("VMGUARD_RIG_AGENT_REAL", "20"))
AT_ONCE = 10  # starts
IDLE = 30.0  # seconds that are measured
TICK = os.sysconf("SC_CLK_TCK")

# Its arguments are QEMU's; what it opens comes in by the environment.
SOURCE = """
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
int main(void) {
    if (open(getenv("DISK"), O_RDWR) < 0) return 1;
    for (int i = 0; i < 30; i++) open("/dev/null", O_RDWR);
    for (;;) pause();
}
"""


def fakes(host: Host, images: Images, count: int) -> None:
    source, program = images.path("fake.c"), images.path("qemu-system-fake")
    with open(source, "w", encoding="ascii") as file:
        file.write(SOURCE)
    command("gcc", "-O", "-o", program, source)
    for number in range(count):
        images.raw(f"disk{number}.img", size=4096)
    one = f'DISK={images.folder}/disk$n.img {program} -name guest=fake$n -uuid $(printf "00000000-0000-4000-8000-%012d" $n)'
    host.shell(f"n=0; while [ $n -lt {count} ]; do {one} </dev/null >/dev/null 2>&1 & n=$((n+1)); done")


# What any program in its place does every 2 s: see which processes there are, and how many files each guest has open. A processor
# that wakes up for so little takes five times as long for it as one that is busy, so a figure alone says nothing.
REFERENCE = f"""
import os, time
def is_guest(pid):
    with open(f"/proc/{{pid}}/cmdline", "rb") as file:
        return b"qemu-system-fake" in file.read().partition(b"\\0")[0]
guests = [pid for pid in os.listdir("/proc") if pid.isdigit() and is_guest(pid)]
time.sleep(2)
before = time.process_time()
print(len(guests), flush=True)
for _ in range({int(IDLE / 2)}):
    time.sleep(2)
    os.listdir("/proc")
    for pid in guests:
        os.stat(f"/proc/{{pid}}/fd").st_size
print(time.process_time() - before, flush=True)
"""
# So many times that much the agent may take; measured: 4 to 5.
TIMES = 8


def times(host: Host, pid: int) -> float:
    """Seconds of processor time that a process and its children have had."""
    fields = host.read(f"/proc/{pid}/stat").rpartition(") ")[2].split()
    return sum(map(int, fields[11:15])) / TICK


def memory(host: Host, pid: int) -> Dict[str, int]:
    """KiB."""
    lines = host.read(f"/proc/{pid}/smaps_rollup").splitlines()
    return {line.split(":")[0]: int(line.split()[1]) for line in lines if line.endswith(" kB")}


def test_what_it_costs(node1: Host, images: Images, record_property: Callable[[str, object], None]) -> None:
    fakes(node1, images, GUESTS)
    try:
        with watched(node1) as (agent,):
            began = time.monotonic()
            adopted = eventually(lambda: len(agent.events("adopted")) >= GUESTS, "all are adopted", within=900, every=0.5)
            assert adopted
            took = time.monotonic() - began
            pid = agent.pid()
            assert pid is not None
            settle(node1, pid)
            reference = node1.spawn("/usr/bin/python3", "-I", "-S", "-c", REFERENCE)
            assert reference.stdout is not None
            assert int(reference.stdout.readline()) == GUESTS
            before = times(node1, pid)
            least = float(reference.stdout.readline())
            spent = times(node1, pid) - before
            finish_pipe(reference)
            size = memory(node1, pid)
            print(
                f"LOAD {GUESTS} guests: adopted in {took:.1f} s; idle {spent / IDLE * 100:.2f} % of a processor,"
                f" {spent / least:.1f} times what it takes to count their files;"
                f" {size['Rss'] / 1024:.1f} MiB resident, {size['Pss'] / 1024:.1f} MiB its share"
            )
            record_property("idle", spent)
            assert spent < TIMES * least
            assert size["Rss"] < 40 * 1024
    finally:
        for number, words in list(node1.processes()):
            if "qemu-system-fake" in words[0]:
                node1.run("/bin/kill", "-KILL", str(number), check=False)
        node1.vmguard("gc", check=False, within=300)


def test_real_guests(node1: Host, node2: Host, images: Images, record_property: Callable[[str, object], None]) -> None:
    """
    Started at once, with the agent beside them: all get their leases, none is bothered; one of them gets a disk, and another one
    that is somebody else's. Switched off at once: nothing is left.
    """
    theirs = Disk(images.block("theirs"), "block", bus="scsi")
    node2.start(guest("holder", [theirs], devices=SCSI))
    web = guest("web", [images.raw("web.img")], devices=SCSI)
    many = [guest(f"many{number}", [images.raw(f"many{number}.img", size=4096)]) for number in range(REAL - 1)]
    with watched(node1) as (agent,):
        node1.start(web)
        began = time.monotonic()
        at_once(node1, [("virsh", "-q", "create", "--paused", "/dev/stdin") for _ in many], [one.xml for one in many])
        took = time.monotonic() - began
        held = {lease.name for lease in node1.leases()}
        for one in (web, *many):
            assert node1.runs(one)
        assert len(held) >= 2 * REAL, "each has its own, and that of its disk"
        pid = agent.pid()
        assert pid is not None
        settle(node1, pid)
        before = times(node1, pid)
        time.sleep(IDLE)
        spent = times(node1, pid) - before
        size = memory(node1, pid)
        assert not agent.events("surprise", "adopted", "conflict", "alarm", "contained", "given-back")
        found = {}
        for disk, word in ((Disk(images.raw("plugged.img"), bus="scsi"), "surprise"), (theirs, "contained")):
            plugged = disk.xml("sda" if word == "surprise" else "sdb")
            node1.virsh("attach-device", web.uuid, "/dev/stdin", stdin=plugged)
            ended = time.time()
            found[word] = agent.tells(word)["time"] - ended
        assert node1.state(web) == "paused"
        began = time.monotonic()
        at_once(node1, [("virsh", "-q", "destroy", one.uuid) for one in (web, *many)])
        ending = time.monotonic() - began
        eventually(lambda: not node1.leftovers(), "nothing is left", within=60)
        print(
            f"REAL {REAL} guests: started in {took:.1f} s, switched off in {ending:.1f} s; idle {spent / IDLE * 100:.2f} %"
            f" of a processor; {size['Rss'] / 1024:.1f} MiB resident, {size['Pss'] / 1024:.1f} MiB its share;"
            f" a disk claimed after {found['surprise']:.2f} s, a conflict contained after {found['contained']:.2f} s"
        )
        record_property("found", found)
        assert size["Rss"] < 40 * 1024


def at_once(host: Host, commands: Sequence[Tuple[str, ...]], inputs: Sequence[str] = ()) -> None:
    """Some at a time; each must do what it is told."""
    for start in range(0, len(commands), AT_ONCE):
        chosen = range(start, min(start + AT_ONCE, len(commands)))
        begun = [host.spawn(*commands[number], stdin=inputs[number] if inputs else "") for number in chosen]
        for process in begun:
            error = process.communicate()[1]
            assert process.returncode == 0, error


def settle(host: Host, pid: int) -> None:
    """Wait until it does nothing any more."""
    last: List[Tuple[float, float]] = [(0.0, -1.0)]

    def calm() -> bool:
        now = times(host, pid)
        changed = now - last[0][1] > 0.05
        last[0] = (time.monotonic(), now)
        return not changed

    eventually(calm, "it is calm", within=60, every=2.0)
