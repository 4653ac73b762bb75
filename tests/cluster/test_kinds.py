# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Storage of every kind: one identity on both nodes by all names, one guest at a time, nothing written through its parts.

What each kind is made of stands in kinds.py. VMGUARD_RECORD=FOLDER keeps what the guard read on the nodes: the recorded hosts of
the unit tests are such records.
"""

import json
import os
import re
from typing import Callable, ContextManager, Iterator, Sequence

import kinds
import pytest
from guarded import Guarded
from guests import Disk, guest
from kinds import ALONE, LAYERED, Laid
from nodes import Node

RECORDS = os.environ.get("VMGUARD_RECORD")
ABSENT = ("ENOENT", "ENOTDIR", "ENOTTY")  # what a record says of all that it does not have
_RECORD = """
import json, sys
from vmguard.domain import HostPath
from vmguard.errors import Unresolvable
from vmguard.storage import resolve
from vmguard.storage.facts import LiveFacts
from vmguard.storage.recorded import Recording

facts = Recording(LiveFacts())
for path in sys.argv[1:]:
    try:
        resolve(HostPath(path), facts)
    except Unresolvable:
        pass
print(json.dumps(facts.record))
"""


def disk_of(path: str) -> Disk:
    return Disk(path, "block" if path.startswith("/dev/") else "file", driver="cache='none'")


def record(name: str, cluster: Guarded, laid: Laid) -> None:
    """
    What the guard reads of it on each node, in a file a node, without what does not exist there; and what it is, for the unit
    test that reads it.
    """
    if not RECORDS:
        return
    for node in cluster.hosts[:2]:
        whole = [laid.here if node.number == 1 else laid.there, *(path for n, path in laid.aliases if n == node.number)]
        parts = {part.path: part.words for part in laid.parts if part.node == node.number}
        found = json.loads(node.run("python3", "-", *whole, *parts, stdin=_RECORD, within=120).out)
        for table in found.values():
            for path in [path for path, answer in table.items() if isinstance(answer, dict) and answer.get("error") in ABSENT]:
                del table[path]
        found["laid"] = {"identity": laid.identity, "whole": whole, "parts": parts}
        with open(os.path.join(RECORDS, f"{name}-{node.name}.json"), "w", encoding="utf-8") as file:
            json.dump(found, file, indent=1, sort_keys=True)
            file.write("\n")


def looks_right(laid: Laid, cluster: Guarded) -> None:
    """What `vmguard identify` says on both nodes, of the thing and of its parts."""
    one, two = cluster.hosts[:2]
    here = kinds.identities(one, [laid.here, *(path for n, path in laid.aliases if n == 1)])
    there = kinds.identities(two, [laid.there, *(path for n, path in laid.aliases if n == 2)])
    seen = {found["identity"] for found in here + there}
    assert len(seen) == 1, seen
    assert re.fullmatch(laid.identity, seen.pop()), here[0]
    for found in here + there:
        assert not found["not_writable"] and not found["used_by_host"], found
    # what it consists of
    for node in (one, two):
        parts = [part for part in laid.parts if part.node == node.number]
        for part, found in zip(parts, kinds.identities(node, [part.path for part in parts])):
            why = " ".join(filter(None, (found["not_writable"], found["used_by_host"])))
            assert why and part.words in why, (part, found)


def holds(laid: Laid, name: str, cluster: Guarded) -> None:
    """The whole promise for one kind."""
    record(name, cluster, laid)
    looks_right(laid, cluster)
    one, two = cluster.hosts[:2]
    # a guest here, none there
    first = guest("kind1", [disk_of(laid.here)])
    one.start(first)
    words = two.refused(guest("kind2", [disk_of(laid.there)]))
    assert "kind1" in words and "node1" in words and laid.here in words and laid.there in words and "do:" in words, words


KINDS: Sequence[Callable[[Guarded], ContextManager[Laid]]] = (
    *(kinds.multipath, kinds.one_path_there, kinds.loop, kinds.partition_in_a_volume, kinds.md),
    *(kinds.drbd, kinds.iscsi, kinds.nfs, kinds.ocfs2),
)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_kind(rested: Guarded, kind: Callable[[Guarded], ContextManager[Laid]]) -> None:
    with kind(rested) as laid:
        try:
            holds(laid, kind.__name__, rested)
        finally:
            for node in rested.hosts:
                node.remove_all_guests()


@pytest.fixture(scope="module")
def layers(cluster: Guarded) -> Iterator[None]:
    with kinds.layered_volumes(cluster):
        yield


def test_volumes_of_layers(rested: Guarded, layers: None, node1: Node, node2: Node) -> None:
    """Active on both nodes, which LVM alone cannot prevent in a group without locks. One guest has them all."""
    every = [kinds.layered(name) for name in LAYERED if name not in ALONE]
    for name, laid in zip([name for name in LAYERED if name not in ALONE], every):
        record(f"lvm-{name}", rested, laid)
        looks_right(laid, rested)
    one = guest("kind1", [disk_of(laid.here) for laid in every])
    try:
        node1.start(one)
        node2.write("/root/kind2.xml", guest("kind2", [disk_of(laid.there) for laid in every]).xml)
        done = node2.vmguard("check", "/root/kind2.xml", check=False, within=120)
        assert done.status == 1, done
        for laid in every:
            assert re.search(rf"disk:  {laid.there}\n +by: +domain .kind1. on host node1, as {laid.here}", done.out), done.out
        # the other volume of the pool: the pool is node1's
        words = node2.refused(guest("kind2", [disk_of("/dev/kinds/thin2")]))
        assert "kind1" in words and "node1" in words and "pool" in words, words
        node1.start(guest("kind3", [disk_of("/dev/kinds/thin2")]))
    finally:
        for node in rested.hosts:
            node.remove_all_guests()
