# SPDX-License-Identifier: LGPL-2.1-or-later
"""Pacemaker's VirtualDomain resource and a guarded guest: the example of docs/pacemaker.md, word for word."""

import os
import re
import time
from typing import Iterator, List

import pytest
from conftest import Volumes
from guarded import IO_TIMEOUT, MOUNT, Guarded
from guests import Disk, Guest, guest, witness
from hosts import PROJECT, eventually
from nodes import Node, each

FOLDER = f"{MOUNT}/guests"
NAME = "web1"


def example() -> str:
    with open(os.path.join(PROJECT, "docs", "pacemaker.md"), encoding="utf-8") as file:
        return next(found for found in re.findall(r"```crm\n(.*?)```", file.read(), re.DOTALL) if "VirtualDomain" in found)


@pytest.fixture
def pacemaker(rested: Guarded) -> Iterator[Guarded]:
    """Pacemaker on all nodes, without a fence device of its own: nothing but the guard is in the way of a second start."""
    each(rested.hosts, lambda node: node.run("systemctl", "start", "pacemaker", within=180))
    first = rested.hosts[0]
    online = f"Online: [ {' '.join(node.name for node in rested.hosts)} ]"
    eventually(lambda: online in first.run("crm_mon", "-1", check=False).out, "Pacemaker is up", within=300, every=2)
    first.shell("crm configure property stonith-enabled=false", within=120)
    yield rested
    node = next(node for node in rested.hosts if node.pid)
    leave = f"crm --force resource stop {NAME}; crm --force --wait configure delete {NAME}; cibadmin --erase --force"
    node.shell(leave, check=False, within=240)
    for node in rested.hosts:
        if node.pid:
            node.remove_all_guests()
            node.run("systemctl", "stop", "pacemaker", check=False, within=240)


def running(nodes: List[Node], web: Guest) -> List[Node]:
    return [node for node in nodes if node.pid and node.state(web) == "running"]


def test_started_migrated_failed_over(pacemaker: Guarded, node1: Node, node2: Node, volumes: Volumes) -> None:
    disk = volumes.make(NAME, content=witness(mark=1))
    web = guest(NAME, [Disk(disk.path, "block", driver="cache='none'")])
    node1.define(web)
    file = f"{FOLDER}/{NAME}.xml"
    node1.shell(f"mkdir -p {FOLDER}; virsh dumpxml --inactive {NAME} >{file}; virsh undefine {NAME}")
    both = [node1, node2]

    node1.write("/root/example.crm", example())
    node1.run("crm", "configure", "load", "update", "/root/example.crm", within=180)
    eventually(lambda: running(both, web), "Pacemaker has started it", within=240, every=2)
    (here,) = running(both, web)
    there = node2 if here is node1 else node1
    eventually(lambda: pacemaker.count(disk).value > 3, "it counts", within=60)
    words = there.refused(guest("thief", [Disk(disk.path, "block")]))
    assert NAME in words and here.name in words, words

    before = pacemaker.count(disk).value
    here.run("crm", "--force", "resource", "move", NAME, there.name, within=180)
    eventually(lambda: running(both, web) == [there], "Pacemaker has migrated it", within=300, every=2)
    there.run("crm", "resource", "clear", NAME, check=False, within=120)
    eventually(lambda: pacemaker.count(disk).value > before + 3, "it counts on: the same guest", within=90)
    assert "migrate" in [call.operation for call in there.hook_calls(web)], "it was moved cold"
    words = here.refused(guest("thief", [Disk(disk.path, "block")]))
    assert NAME in words and there.name in words, words

    died = time.monotonic()
    there.power_cut()
    at = pacemaker.count(disk)
    # Sooner than sanlock says is too soon: 8 * io_timeout + 60 s after the last renewal, which was up to 2 * io_timeout ago.
    eventually(lambda: running([here], web), "Pacemaker has failed it over", within=600, every=1)
    took = time.monotonic() - died
    assert took > 6 * IO_TIMEOUT + 60, took
    refusals = [call for call in here.hook_calls(web) if call.operation == "prepare"]
    print(f"failed over after {took:.0f} s, {len(refusals)} starts tried")
    eventually(lambda: pacemaker.count(disk) != at, "it counts", within=90)
    pacemaker.boot([there])
    eventually(lambda: pacemaker.healthy(there), f"{there} is a member again", within=300, every=1)
    assert running(both, web) == [here]
