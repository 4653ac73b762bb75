# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The agent dies at any moment: SIGKILL at random, a hundred times, while disks are plugged and unplugged and guests migrate.

Afterwards nothing is held that is not needed, everything is held that is, and nobody was harmed.
"""

import json
import os
import random
import threading
from typing import List

from agents import watched
from conftest import Images
from guests import SCSI, Disk, guest
from hosts import Host, eventually
from moves import migrate, settled
from test_agent import attach, claims

KILLS = int(os.environ.get("VMGUARD_RIG_AGENT_KILLS", "30"))
SEED = int(os.environ.get("VMGUARD_RIG_SEED", "0")) or random.SystemRandom().randrange(1, 1 << 30)


def test_killed_at_random(node1: Host, node2: Host, images: Images) -> None:
    print(f"VMGUARD_RIG_SEED={SEED}")
    chosen = random.Random(SEED)
    plugged = [images.block(f"plugged{number}") for number in range(2)]
    web = guest("web", [images.raw("web.img")], devices=SCSI)
    moving = guest("moving", [Disk(images.block("moving"), "block", driver="cache='none'")])
    node1.start(web)
    node1.start(moving)
    over = threading.Event()
    failures: List[str] = []

    def plug() -> None:
        """On and off, without waiting for anybody."""
        count = 0
        while not over.is_set():
            disk = Disk(plugged[count % 2], "block", bus="scsi")
            if attach(node1, web, disk, "sda", check=False) == 0:
                over.wait(chosen.uniform(0, 0.4))
                node1.virsh("detach-disk", web.uuid, "sda", check=False)
            count += 1

    def move() -> None:
        here, there = node1, node2
        while not over.is_set():
            try:
                migrate(moving, here, there)
            except AssertionError as error:
                failures.append(str(error))
                return
            here, there = there, here

    threads = [threading.Thread(target=plug), threading.Thread(target=move)]
    with watched(node1, node2) as agents:
        for thread in threads:
            thread.start()
        try:
            for _ in range(KILLS):
                agent = chosen.choice(agents)
                over.wait(chosen.uniform(0, 0.5))
                agent.kill()
                agent.start()
        finally:
            over.set()
            for thread in threads:
                thread.join()
        assert not failures, failures[0]
        where = node1 if node1.runs(moving) else node2
        settled(where, moving)
        node1.virsh("detach-disk", web.uuid, "sda", check=False)
        for path in plugged:
            eventually(lambda path=path: path not in claims(node1, web), f"{path} is given back", within=30)  # type: ignore[misc]
        attach(node1, web, Disk(plugged[0], "block", bus="scsi"), "sda")
        eventually(lambda: claims(node1, web).get(plugged[0]) == "exclusive", "it is claimed")
        for host, agent in zip((node1, node2), agents):
            eventually(lambda host=host: not host.vmguard("verify", check=False).status, "all is claimed")  # type: ignore[misc]
            assert not agent.events("conflict", "contained", "alarm", "ended"), agent.events()
        assert node1.state(web) == "running" and where.state(moving) == "running"
        assert '"web"' in node2.refused(guest("thief", [Disk(plugged[0], "block")]))
        node2.start(guest("next", [Disk(plugged[1], "block")]))
        # What the trail says is what is so: each has one holder, where it is.
        for path, owner, at in ((plugged[0], "web", node1), (plugged[1], "next", node2), ("/dev/rig/moving", "moving", where)):
            words = ("audit", "--held", "--json", "--disk", path)
            lines = [line for host in (node1, node2) for line in host.vmguard(*words, "--host", host.name).out.splitlines()]
            found = [json.loads(line) for line in lines]
            still = [(span["host"], span["domain"]) for span in found if span["until"] is None]
            assert still == [(at.name, owner)], (path, still)
        for agent in agents:
            assert agent.events("watching") and len(agent.events("unseen")) < KILLS
        other = node2 if where is node1 else node1
        assert '"moving"' in other.refused(guest("robber", [Disk("/dev/rig/moving", "block")]))
