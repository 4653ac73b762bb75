# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Identities on recorded hosts that were real: two nodes of the cluster of tests/cluster, Debian's kernel and tools.

Recorded by `make cluster TESTS="tests/cluster/test_kinds.py"` with VMGUARD_RECORD: what the guard read of each kind on each node,
beside what that was.
"""

import json
import os
import re
from typing import Any, Dict, List, Tuple

import pytest

from vmguard.domain import HostPath
from vmguard.storage import resolve
from vmguard.storage.recorded import RecordedFacts

NODES = os.path.join(os.path.dirname(__file__), "hosts", "nodes")
KINDS = sorted({name.rpartition("-node")[0] for name in os.listdir(NODES)})


def load(kind: str, node: int) -> Tuple[RecordedFacts, Dict[str, Any]]:
    with open(os.path.join(NODES, f"{kind}-node{node}.json"), encoding="utf-8") as file:
        record = json.load(file)
    return RecordedFacts(record), record["laid"]


def nodes_of(kind: str) -> List[int]:
    return [node for node in (1, 2) if os.path.exists(os.path.join(NODES, f"{kind}-node{node}.json"))]


@pytest.mark.parametrize("kind", KINDS)
def test_one_identity_by_all_names_on_both_nodes(kind: str) -> None:
    seen = set()
    for node in nodes_of(kind):
        facts, laid = load(kind, node)
        for path in laid["whole"]:
            (storage,) = resolve(HostPath(path), facts)
            seen.add(storage.identity)
            assert storage.others_see_it, storage
            assert not storage.not_writable and not storage.used_by_host, storage
    (identity,) = seen
    assert re.fullmatch(laid["identity"], identity), identity


@pytest.mark.parametrize("kind", KINDS)
def test_parts_are_not_written(kind: str) -> None:
    for node in nodes_of(kind):
        facts, laid = load(kind, node)
        for path, words in laid["parts"].items():
            (storage,) = resolve(HostPath(path), facts)
            why = storage.not_writable or storage.used_by_host or ""
            assert why and words in why, (path, storage)


def test_one_pool_of_thin_volumes() -> None:
    """A pool that only one node may have, the same for both."""
    pools = set()
    for node in nodes_of("lvm-thin1"):
        facts, laid = load("lvm-thin1", node)
        (thin,) = resolve(HostPath(laid["whole"][0]), facts)
        (pool,) = thin.one_host
        pools.add(pool.identity)
        assert pool.under
    assert len(pools) == 1


def test_a_layer_of_a_raid_names_its_volume() -> None:
    """Also two layers deep."""
    facts, laid = load("lvm-checked", 1)
    for path in laid["parts"]:
        (storage,) = resolve(HostPath(path), facts)
        assert storage.instead == laid["whole"][0], storage


def test_a_virtio_disk_with_a_worldwide_name_is_shared() -> None:
    """The nodes' hypervisor gives one disk to all of them: on a bus of the machine's own, and yet others see it."""
    facts, laid = load("partition_in_a_volume", 1)
    (storage,) = resolve(HostPath(laid["whole"][0]), facts)
    while storage.under:
        (storage,) = storage.under
    assert storage.identity == "lun:naa.5000c5006d61696e" and storage.others_see_it
