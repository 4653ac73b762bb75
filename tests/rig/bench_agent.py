# SPDX-License-Identifier: LGPL-2.1-or-later
"""
How long vmguardd takes to see what hooks do not: from the moment libvirt's command has ended, to the event in its log.

    bench_agent.py [ROUNDS]

Prints a table for docs/benchmarks.md: medians, with the worst, in milliseconds; and the load of the machine.
"""

import functools
import os
import statistics
import sys
import time
from typing import Callable, Dict, List

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import hosts  # noqa: E402
from agents import Agent, watched  # noqa: E402
from clusters import Guarded  # noqa: E402
from conftest import Images  # noqa: E402
from guests import SCSI, Disk, guest  # noqa: E402
from hosts import eventually  # noqa: E402


class Rounds:
    """All measures of one cluster."""

    def __init__(self, cluster: Guarded) -> None:
        self.node1, self.node2 = cluster.hosts[:2]
        self.images = Images(cluster, os.path.join(cluster.shared, "bench"))
        self.found: Dict[str, List[float]] = {}
        self.number = 0

    def told(self, agent: Agent, what: str, word: str, act: Callable[[], object]) -> None:
        """From the end of a command to an event."""
        agent.forget()
        act()
        ended = time.time()
        event = eventually(lambda: agent.events(word), f"{what}: {word}", within=60)[0]
        self.found.setdefault(what, []).append((event["time"] - ended) * 1000)

    def claims(self) -> None:
        """Of one guest that is let be: noticed and claimed."""
        number, node, images = self.number, self.node1, self.images
        disk = images.qcow2(f"web{number}.qcow2")
        iso, other = images.raw(f"a{number}.iso"), images.raw(f"b{number}.iso")
        web = guest(
            "web", [Disk(disk, format="qcow2"), Disk(iso, readonly=True, device="cdrom")], devices=SCSI
        )
        node.start(web)
        with watched(node) as (agent,):
            agent.tells("watching")
            plugged = Disk(images.raw(f"plugged{number}.img"), bus="scsi").xml("sda")
            attach = ["attach-device", web.uuid, "/dev/stdin"]
            self.told(agent, "hot-plug", "surprise", lambda: node.virsh(*attach, stdin=plugged))
            self.told(agent, "unplugged: given back", "given-back", lambda: node.virsh("detach-disk", web.uuid, "sda"))
            change = ["change-media", web.uuid, "hda", other, "--update"]
            self.told(agent, "change of media", "surprise", lambda: node.virsh(*change))
            snapshot = ["snapshot-create-as", web.uuid, "s1", "--disk-only", "--no-metadata", "--diskspec", "hda,snapshot=no"]
            self.told(agent, "external snapshot", "surprise", lambda: node.virsh(*snapshot))
            copy = ["blockcopy", web.uuid, "vda", images.path(f"copy{number}.qcow2"), "--transient-job"]
            self.told(agent, "block copy", "surprise", lambda: node.virsh(*copy))
        node.destroy(web)
        top = images.qcow2(f"top{number}.qcow2", images.raw(f"base{number}.img"))
        web = guest("commits", [Disk(top, format="qcow2")])
        node.start(web)
        with watched(node) as (agent,):
            agent.tells("watching")
            self.told(agent, "commit", "surprise", lambda: node.virsh("blockcommit", web.uuid, "vda", "--active"))
        node.destroy(web)

    def conflicts(self) -> None:
        """Of one that comes to write what another has: contained."""
        number, node, images = self.number, self.node1, self.images
        theirs = images.block(f"theirs{number}")
        holder = guest("holder", [Disk(theirs, "block")])
        self.node2.start(holder)
        for policy in ("pause", "detach"):
            web = guest("web", [images.raw(f"own{number}.img")], devices=SCSI)
            node.start(web)
            with watched(node, conflict=policy) as (agent,):
                agent.tells("watching")
                xml = Disk(theirs, "block", bus="scsi").xml("sda")
                attach = ["attach-device", web.uuid, "/dev/stdin"]
                plug = functools.partial(node.virsh, *attach, stdin=xml)
                self.told(agent, f"conflict, {policy}", "contained", plug)
            node.destroy(web)
        self.past(holder.name, theirs)
        self.node2.destroy(holder)
        images.cluster.forget_loops()

    def past(self, _holder: str, theirs: str) -> None:
        hook, node = "/etc/libvirt/hooks/qemu.d/50-vmguard", self.node1
        web = guest("past", [Disk(theirs, "block")])
        with watched(node) as (agent,):
            agent.tells("watching")
            node.run("chmod", "-x", hook)
            self.told(agent, "started past the hook, conflict, pause", "contained", lambda: node.start(web))
            node.run("chmod", "+x", hook)
        node.destroy(web)


def main(words: List[str]) -> int:
    hosts.sweep()
    cluster = Guarded("bench-agent", hosts=2)
    try:
        cluster.boot()
        rounds = Rounds(cluster)
        for rounds.number in range(int(words[0]) if words else 5):
            rounds.claims()
            rounds.conflicts()
    finally:
        cluster.destroy()
    print("| | median | worst | rounds |\n|---|---|---|---|")
    for what, found in rounds.found.items():
        print(f"| {what} | {statistics.median(found):.0f} | {max(found):.0f} | {len(found)} |")
    print(f"\nload: {os.getloadavg()[0]:.1f} on {len(os.sched_getaffinity(0))} processors")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))


