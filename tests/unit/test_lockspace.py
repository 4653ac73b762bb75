# SPDX-License-Identifier: LGPL-2.1-or-later
"""Joining and leaving, with real sanlock daemons. A join takes three seconds."""

import os
import threading
import time
from typing import Any, Callable, Iterator

import pytest
from conftest import Pair, key
from sanlock_hosts import Cluster, Host, wait_until

from vmguard import host as this_host
from vmguard.errors import BadRequest, HostIdTaken, LeaseDamaged, Misconfigured, NotJoined, NotYet, SanlockDown
from vmguard.leases import _library as lib
from vmguard.leases import client, lockspace
from vmguard.leases.store import Store


def created(cluster: Cluster, host: Host) -> Store:
    host.run(lambda: Store.create(cluster.store_path, 1).path)
    return Store.open(cluster.store_path)


def join(host: Host, store: Store, host_id: int, boot: str = "boot1", machine: str = "") -> float:
    """Join; the seconds it took. `boot` stands for the host's boot id."""

    def work() -> float:
        this_host.boot_id = lambda: boot.ljust(8, "0")
        began = time.monotonic()
        lockspace.join(store, host_id, key(machine or host.name))
        return time.monotonic() - began

    found = host.run(work)
    assert isinstance(found, float)
    return found


def state(host: Host, store: Store, host_id: int) -> Any:
    return host.run(lambda: lockspace.state(store, host_id))


def test_join_and_leave(cluster: Cluster) -> None:
    host = cluster.host("a")
    store = created(cluster, host)
    with pytest.raises(BadRequest):  # the id has not been claimed
        join(host, store, 1)
    store.claim_host_id(1, key("a"))
    assert state(host, store, 1) == "out"
    with pytest.raises(NotJoined):
        host.run(lambda: lockspace.generation(store))
    assert join(host, store, 1) < 8
    assert state(host, store, 1) == "joined"
    # The other hosts are known at once: what comes after a join need not wait.
    (member,) = host.run(lambda: lockspace.members(store))
    assert (member.host_id, member.generation, member.host, member.state) == (1, 1, "a", "live")
    assert host.run(lambda: lockspace.generation(store)) == 1
    assert join(host, store, 1) < 0.5, "joined already"

    lease = host.run(lambda: store.ensure("x"))

    def take() -> int:
        with client.Connection() as connection:
            return connection.acquire(lease, False)

    def give_back() -> bool:
        with client.Connection() as connection:
            return connection.give_back(lease)

    host.run(take)
    with pytest.raises(BadRequest):  # an orphan counts
        host.run(lambda: lockspace.leave(store, 1))
    assert state(host, store, 1) == "joined"
    assert host.run(give_back)
    host.run(lambda: lockspace.leave(store, 1))
    assert state(host, store, 1) == "out"
    host.run(lambda: lockspace.leave(store, 1))
    # Left in order: nobody to be watched for, in another boot too.
    assert join(host, store, 1, boot="boot2") < 5
    assert host.run(lambda: lockspace.generation(store)) == 2


def test_a_join_by_an_id_of_another_machine(pair: Pair) -> None:
    stranger = pair.cluster.host("other")
    with pytest.raises(HostIdTaken) as caught:
        join(stranger, pair.store, 1)
    assert (caught.value.host_id, caught.value.by, caught.value.live) == (1, "one", False)
    assert state(stranger, pair.store, 1) == "out"
    stranger.stop()


def test_a_clone_does_not_take_the_id_of_its_living_original(cluster: Cluster) -> None:
    """Same machine key, same host name, same id: sanlock alone would let it in at once."""
    original = cluster.host("a")
    store = created(cluster, original)
    store.claim_host_id(1, key("a"))
    join(original, store, 1, boot="boot1")
    clone = Host(cluster.base, "clone")
    clone.name = "a"
    cluster.hosts.append(clone)
    clone.start()
    with pytest.raises(HostIdTaken) as caught:
        join(clone, store, 1, boot="boot2", machine="a")
    assert (caught.value.live, caught.value.by) == (True, "a")
    assert state(clone, store, 1) == "out"
    with pytest.raises(HostIdTaken):  # and not on a second try either
        join(clone, store, 1, boot="boot2", machine="a")
    assert state(original, store, 1) == "joined"


def test_a_power_cut_costs_a_watch_and_a_mere_restart_does_not(cluster: Cluster) -> None:
    host = cluster.host("a")
    store = created(cluster, host)
    store.claim_host_id(1, key("a"))
    join(host, store, 1, boot="boot1")
    host.kill_daemon()
    host.start()
    restarted = join(host, store, 1, boot="boot1")
    host.kill_daemon()
    host.start()
    rebooted = join(host, store, 1, boot="boot2")
    assert restarted + 3 < rebooted < 15
    assert host.run(lambda: lockspace.generation(store)) == 3


def test_a_second_join_waits_for_the_first(cluster: Cluster) -> None:
    host = cluster.host("a")
    store = created(cluster, host)
    store.claim_host_id(1, key("a"))
    first = threading.Thread(target=lambda: join(host, store, 1))
    first.start()
    wait_until(lambda: state(host, store, 1) == "joining")
    path = os.path.join(store.path, "lockspace")
    assert host.run(lambda: client.joined(store.lockspace, 1, path)) is None
    with pytest.raises(NotJoined) as caught:
        host.run(lambda: client.hosts(store.lockspace))
    assert caught.value.joining is True
    join(host, store, 1)
    assert state(host, store, 1) == "joined"
    first.join()


def test_leaving_is_seen(cluster: Cluster) -> None:
    host = cluster.host("a")
    store = created(cluster, host)
    store.claim_host_id(1, key("a"))
    join(host, store, 1)
    leaver = threading.Thread(target=lambda: host.run(lambda: lockspace.leave(store, 1)))
    leaver.start()
    wait_until(lambda: state(host, store, 1) == "leaving")
    with pytest.raises(NotYet) as caught:
        join(host, store, 1)
    assert "vmguard join" not in caught.value.remedy, "which this is"
    leaver.join()
    assert state(host, store, 1) == "out"


def test_a_lockspace_of_another_cluster_in_its_place(cluster: Cluster) -> None:
    host = cluster.host("a")
    store = created(cluster, host)
    store.claim_host_id(1, key("a"))
    path = os.path.join(store.path, "lockspace")
    host.run(lambda: client.format_lockspace("vmguard-other", path, 1))
    with pytest.raises(LeaseDamaged) as caught:
        join(host, store, 1)
    assert caught.value.path == path
    with open(path, "r+b") as file:
        file.write(bytes(1 << 20))
    with pytest.raises(LeaseDamaged):
        join(host, store, 1)
    assert state(host, store, 1) == "out"


def test_joined_as_somebody_else(pair: Pair) -> None:
    for call in (lockspace.state, lockspace.leave):
        with pytest.raises(Misconfigured):
            pair.one.run(lambda: call(pair.store, 2))  # noqa: B023
    assert state(pair.one, pair.store, 1) == "joined"


def test_the_record_on_disk_is_that_of_the_host(pair: Pair) -> None:
    for host_id, name in ((1, "one"), (2, "two")):
        found = lockspace._renewal(pair.store, host_id)
        assert (found.owner, found.timestamp > 0) == (name, True)
    assert lockspace._renewal(pair.store, 9).timestamp == 0
    assert lockspace._renewal(pair.store, lib.host_ids(pair.store.sector)[-1]).timestamp == 0
    # A host that another test let join and took away again leaves its record, and it counts for nothing.
    assert {one.host_id for one in lockspace.entries(pair.store)} - {3} == {1, 2}
    first = lockspace._renewal(pair.store, 1)
    wait_until(lambda: lockspace._renewal(pair.store, 1).raw != first.raw, 6, "a renewal")


def test_no_daemon(pair: Pair) -> None:
    nobody = Host(pair.cluster.base, "nobody2")
    calls: Iterator[Callable[[], Any]] = iter(
        [
            lambda: lockspace.join(pair.store, 1, key("one")),
            lambda: lockspace.leave(pair.store, 1),
            lambda: lockspace.state(pair.store, 1),
            lambda: lockspace.members(pair.store),
        ]
    )
    for call in calls:
        with pytest.raises(SanlockDown):
            nobody.run(call)


def test_a_failed_lockspace_counts_as_leaving() -> None:
    """A record made by hand: sanlock still lists a failed lockspace among the joined ones."""
    from vmguard.leases import status

    record = status._Record(3, 0, 0, "x", {"list": "spaces", "io_timeout": "1", "space_dead": "1"}, bytes(1104))
    assert status._space(record).state == "leaving"
    assert status._space(record._replace(settings={"list": "spaces", "io_timeout": "1"})).state == "joined"


@pytest.mark.slow
def test_an_id_whose_last_host_had_another_name_for_sanlock(cluster: Cluster) -> None:
    """Reinstalled, say: sanlock itself waits until the last holder of the id is certainly dead."""
    host = cluster.host("a")
    store = created(cluster, host)
    store.claim_host_id(1, key("a"))
    join(host, store, 1)
    host.kill_daemon()
    host.name = "renamed"
    host.start()

    def work() -> None:
        lockspace.join(store, 1, key("a"))

    began = time.monotonic()
    host.run(work, seconds=120)
    assert time.monotonic() - began > 60
