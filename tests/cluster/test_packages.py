# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The packages on nodes as fresh as they come: systemd, a watchdog, GFS2, a guest that runs already. Installed, set up, all that
doctor looks at well, a double start refused, over a reboot; removed and purged, and nothing left.
"""

import json
import os
import subprocess
import time
from pathlib import Path
from typing import Any, Dict, Iterator, List, Set

import pytest
from conftest import running
from guarded import MOUNT, STORE, Guarded
from guests import Disk, guest
from hosts import PROJECT, eventually
from nodes import Node, each


class Fresh(Guarded):
    """Storage and GFS2; nothing of vmguard's."""

    def prepare(self) -> None:
        self.boot(self.hosts)
        self._make_storage()


@pytest.fixture(scope="module")
def fresh(request: pytest.FixtureRequest) -> Iterator[Fresh]:
    with running(request, Fresh("fresh")) as made:
        yield made


@pytest.fixture(scope="module")
def debs(tmp_path_factory: pytest.TempPathFactory) -> List[Path]:
    folder = tmp_path_factory.mktemp("debs")
    words = [os.path.join(PROJECT, "packaging/build-deb"), str(folder)]
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode and "debhelper" in done.stderr:
        pytest.skip("debhelper is not installed")
    assert done.returncode == 0, done.stderr
    return sorted(folder.glob("*.deb"))


def installed(node: Node, debs: List[Path]) -> None:
    names = " ".join(f"/root/{path.name}" for path in debs)
    node.shell(f"DEBIAN_FRONTEND=noninteractive apt-get -q -y install {names}", within=180)


def files(node: Node) -> Set[str]:
    """What lies on the node's own disk, but for what others write as they run."""
    left_out = "/proc /sys /run /dev /tmp /root /srv /var/log /var/cache"
    # The definitions of guests are not vmguard's, nor is what LVM keeps of its own.
    left_out += " /etc/libvirt/qemu /etc/lvm"
    left_out += " /var/lib/dpkg /var/lib/apt /var/lib/libvirt /var/lib/systemd"
    pruned = " -o ".join(f"-path {path}" for path in left_out.split())
    found = node.shell(f"find / -xdev \\( {pruned} \\) -prune -o -print", within=120).out.split("\n")
    return {path for path in found if "__pycache__" not in path}


def doctor(node: Node) -> List[Dict[str, Any]]:
    """What is not well."""
    done = node.vmguard("doctor", "--json", check=False, within=180)
    assert "Traceback" not in done.err, done
    return [each for each in json.loads(done.out)["findings"] if each["severity"] != "ok"]


# The nodes' watchdog is the kernel's own, and the store lies on GFS2: which is said, and is no fault of the set-up.
FINE = {"watchdog", "clocks", "store-of-turns"}


def block(path: str) -> Disk:
    return Disk(path, "block", driver="cache='none'")


def test_from_the_package_to_the_first_refusal_and_back(fresh: Fresh, debs: List[Path]) -> None:
    node1, node2 = fresh.hosts
    disk = fresh.volume("web")
    web, copy = guest("web", [block(disk.path)]), guest("copy", [block(disk.mapper)])
    node1.define(web)
    node1.virsh("start", "web", within=120)
    pid = node1.qemu_pid(web)
    before = files(node1)
    for node in fresh.hosts:
        for path in debs:
            node.write(f"/root/{path.name}", path.read_bytes())

    # 1 and 2 on each node, and the third is refused.
    began = time.monotonic()
    for node in fresh.hosts:
        installed(node, debs)
        node.vmguard("setup", "--store", STORE, "--io-timeout", "4", "--yes", within=240)
    node2.write("/root/copy.xml", copy.xml)
    refused = node2.virsh("create", "/root/copy.xml", check=False, within=120)
    assert refused.status and 'domain "web"' in refused.err and "node1" in refused.err, refused
    print(f"2 commands on node1, 3 on node2: {time.monotonic() - began:.0f} s from the package to the first refused start")

    assert node1.qemu_pid(web) == pid, "it was restarted"
    assert not node1.vmguard("verify", check=False).status
    for node in fresh.hosts:
        eventually(lambda node=node: {each["check"] for each in doctor(node)} <= FINE, "well", 120, 5)  # type: ignore[misc]

    # Over a reboot the join stands before libvirt; the guest of node1 is not touched.
    node2.power_cut()
    fresh.boot([node2])
    eventually(lambda: fresh.healthy(node2), "node2 is a member again", within=240, every=1)
    order = "systemctl show --property=ActiveEnterTimestampMonotonic --value vmguard-join.service libvirtd.service"
    joined, libvirt = (int(word) for word in node2.shell(order).out.split())
    assert 0 < joined < libvirt
    node2.write("/root/copy.xml", copy.xml)
    assert 'domain "web"' in node2.virsh("create", "/root/copy.xml", check=False, within=120).err

    # Removed beside the guest: it runs on, others start unguarded, and what was there is there.
    node1.shell("DEBIAN_FRONTEND=noninteractive apt-get -q -y remove vmguard", within=240)
    assert node1.qemu_pid(web) == pid
    assert not node1.exists("/etc/libvirt/hooks/qemu.d/50-vmguard")
    other = fresh.volume("other")
    node1.define(guest("other", [block(other.path)]))
    node1.virsh("start", "other", within=120)
    assert '"name": "other"' not in node1.shell("cat /run/vmguard/instances/*", check=False).out
    # node2 is still guarded, also from the guest that node1 has kept.
    assert 'domain "web"' in node2.virsh("create", "/root/copy.xml", check=False, within=120).err
    node1.shell("DEBIAN_FRONTEND=noninteractive apt-get -q -y purge vmguard python3-vmguard", within=240)
    left = {path for path in files(node1) - before if not path.startswith("/etc/sanlock")}
    assert not left, left
    failed = node1.shell("systemctl --failed --no-legend --plain", check=False).out
    assert "vmguard" not in failed
    each(fresh.hosts, lambda node: node.remove_all_guests())
    assert node1.exists(MOUNT), "the filesystem of the guests"
