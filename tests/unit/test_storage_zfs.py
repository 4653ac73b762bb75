# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Identities on ZFS, on recorded hosts that were real: one pool on two machines, one after the other, of OpenZFS 2.1.11 and 2.3.2.

It lies on a partition of a disk that both machines have. Another disk was a mirror of it once, a third is empty.
"""

import json
import os
from typing import Any, Dict, List

import pytest

from vmguard.domain import HostPath
from vmguard.storage import Storage, resolve
from vmguard.storage.facts import Facts
from vmguard.storage.recorded import RecordedFacts

HOSTS = os.path.join(os.path.dirname(__file__), "hosts")
RELEASES = ("zfs-2.1", "zfs-2.3")
POOL, DETACHED, EMPTY = (f"/dev/disk/by-id/wwn-0x5000c500{text.encode().hex()}" for text in ("pool", "more", "copy"))
LUN = "lun:naa.5000c500706f6f6c"
Record = Dict[str, Dict[str, Any]]


@pytest.fixture(params=RELEASES)
def record(request: pytest.FixtureRequest) -> Record:
    return load(request.param)


def load(release: str) -> Record:
    with open(os.path.join(HOSTS, release + ".json"), encoding="utf-8") as file:
        found: Record = json.load(file)
    return found


def one(path: str, record: Record) -> Storage:
    facts: Facts = RecordedFacts(record)
    (storage,) = resolve(HostPath(path), facts)
    return storage


def udev(record: Record, path: str) -> str:
    """The place of a device in the database of udev."""
    return "/run/udev/data/b" + str(record["stat"][path]["rdev"])


def number(record: Record, path: str) -> str:
    return str(record["stat"][path]["rdev"])


def without_pool(record: Record) -> None:
    """As after an export. udev knows of the device what it knew."""
    record["directories"]["/proc/spl/kstat/zfs"].remove("tank")
    record["files"].pop("/proc/spl/kstat/zfs/tank/guid", None)


def test_one_file_by_all_names_on_both_hosts() -> None:
    seen = set()
    for release in RELEASES:
        for path in ("/tank/vm/a.img", "/tank/vm/hard.img", "/mnt/bind/a.img"):
            storage = one(path, load(release))
            assert not storage.not_writable and not storage.used_by_host and not storage.others_see_it, storage
            seen.add(storage.identity)
    assert seen == {"file:zfs-0e6c6f1368a05c/128"}


def test_what_has_a_number_of_its_own(record: Record) -> None:
    """All but the last have the inode number of the original."""
    paths = ["/tank/vm/a.img", "/tank/clone/a.img", "/tank/copy/a.img"]
    paths += ["/tank/vm/.zfs/snapshot/before/a.img", "/tank/vm/web/c.img"]
    assert len({one(path, record).identity for path in paths}) == len(paths)


def test_a_number_that_is_not_told(record: Record) -> None:
    record["filesystems"]["/tank/vm/a.img"] = "0"
    record["files"]["/proc/sys/kernel/random/boot_id"] = "2f0c9f3c-8a5e-4b58-9f42-55f4bb1f0a77\n"
    assert "has no uuid" in (one("/tank/vm/a.img", record).not_writable or "")


@pytest.mark.parametrize("path", ["/tank/vm/a.img", "/tank/vm/.zfs/snapshot/before/a.img", "/dev/zd0"])
def test_the_device_of_the_pool_lies_beneath(path: str, record: Record) -> None:
    storage = one(path, record)
    (part,) = storage.under
    assert part.identity == f"part:{LUN}/1" and [below.identity for below in part.under] == [LUN]
    assert part.others_see_it and not storage.others_see_it and not storage.used_by_host


def test_a_zvol_is_this_hosts_alone(record: Record) -> None:
    """Its pool is on one host at a time, whoever reaches the disks beneath."""
    storage = one("/dev/zd0", record)
    assert storage.identity.startswith("dev:") and not storage.not_writable


def test_a_device_of_an_imported_pool_is_in_use(record: Record) -> None:
    assert one(POOL + "-part1", record).used_by_host == "a device of the imported ZFS pool tank"
    assert "a device of the imported ZFS pool tank" in (one(POOL, record).used_by_host or "")
    assert one(EMPTY, record).used_by_host is None
    without_pool(record)
    assert one(POOL, record).used_by_host is None


def test_a_device_that_was_taken_out_of_the_pool(record: Record) -> None:
    """udev calls it a member of the pool all the same."""
    assert "ID_FS_LABEL=tank" in record["files"][udev(record, DETACHED + "-part1")]
    assert one(DETACHED, record).used_by_host is None
    record["files"][f"/dev/block/{number(record, DETACHED + '-part1')}"] = {"error": "EACCES"}
    assert "the imported ZFS pool tank" in (one(DETACHED, record).used_by_host or "")


def test_another_pool_of_the_same_name(record: Record) -> None:
    """As it is in the disk of a guest."""
    place = udev(record, POOL + "-part1")
    record["files"][place] = record["files"][place].replace("ID_FS_UUID=8179646018243027600", "ID_FS_UUID=8179646018243027601")
    assert one(POOL, record).used_by_host is None and not one("/tank/vm/a.img", record).under


@pytest.mark.parametrize("guid", ["", "x", "99999999999999999999"])
def test_a_guid_that_is_none(guid: str, record: Record) -> None:
    place = udev(record, POOL + "-part1")
    record["files"][place] = record["files"][place].replace("ID_FS_UUID=8179646018243027600", f"ID_FS_UUID={guid}")
    assert one(POOL, record).used_by_host is None


@pytest.mark.parametrize("name", ["zd0p1", "loop0"])
def test_a_copy_of_the_pool_in_what_lies_on_it(name: str, record: Record) -> None:
    """A guest may have a copy of its host's disk. It is not beneath itself."""
    before = one("/tank/vm/a.img", record), one("/dev/zd0", record)
    names: List[str] = record["directories"]["/sys/class/block"]
    record["directories"]["/sys/class/block"] = [*names, name]
    record["files"][f"/sys/class/block/{name}/dev"] = "259:7\n"
    record["files"]["/run/udev/data/b259:7"] = record["files"][udev(record, POOL + "-part1")]
    assert (one("/tank/vm/a.img", record), one("/dev/zd0", record)) == before
