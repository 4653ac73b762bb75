# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Storage of every kind that a node's kernel and Debian's tools can make, laid out as an administrator does, on two nodes.

Each function is a context: inside it the thing exists and is reachable on both nodes. Made of the shared disks `bare` and `path`,
the volume group, GFS2, and files on the nodes' own disks.
"""

import json
import os
import shlex
from contextlib import contextmanager
from typing import Iterator, List, NamedTuple, Sequence, Tuple

from guarded import MOUNT, Guarded
from hosts import eventually
from nodes import Node, SharedDisk, each


class Part(NamedTuple):
    """A name of something that must not be written while the whole is there, and what the refusal says."""

    node: int
    path: str
    words: str


class Laid(NamedTuple):
    """One thing as two nodes see it."""

    here: str  # on the first node
    there: str  # on the second
    identity: str  # a regular expression
    aliases: Sequence[Tuple[int, str]] = ()  # other names: which node (1, 2), path
    parts: Sequence[Part] = ()


def disk(cluster: Guarded, name: str) -> SharedDisk:
    return next(one for one in cluster.disks if one.name == name)


def both(cluster: Guarded, script: str, check: bool = True, within: float = 180) -> None:
    each(cluster.hosts, lambda node: node.shell(script, check=check, within=within))


def wipe(cluster: Guarded, path: str) -> None:
    """Nothing lies on a shared disk any more, and each node knows."""
    cluster.hosts[0].shell(f"wipefs -qaf {path}-part* {path}; sgdisk -Z {path}", check=False)
    reread(cluster, path)


def reread(cluster: Guarded, path: str) -> None:
    both(cluster, f"blockdev --rereadpt {path}; udevadm settle", check=False)


# -- LVM ------------------------------------------------------------------------------------------------------------------

LV = r"lvm:[\w-]{38}/[\w-]{38}"
GROUP = "kinds"
# What `lvcreate` is told, one volume a line; two physical volumes of 120 MB are there.
_VOLUMES = (
    "lvcreate -n striped -i 2 -L 8M kinds",
    "lvcreate -n mirrored --type raid1 -m 1 -L 8M kinds",
    "lvcreate -n checked --type raid1 -m 1 --raidintegrity y -L 8M kinds",
    "lvcreate -n cached -L 8M kinds && lvcreate -n fast -L 8M kinds && lvconvert --type cache --cachevol fast kinds/cached",
    "lvcreate -n pooled -L 8M kinds && lvcreate --type cache-pool -n cpool -L 8M kinds"
    " && lvconvert --type cache --cachepool cpool kinds/pooled",
    "lvcreate -n buffered -L 8M kinds && lvcreate -n log -an -Wn -Zn -L 8M kinds"
    " && lvconvert --type writecache --cachevol log kinds/buffered",
    "lvcreate --type thin-pool -n pool -L 16M kinds && lvcreate -n thin1 -V 8M --thinpool pool kinds"
    " && lvcreate -n thin2 -V 8M --thinpool pool kinds && lvcreate -s -n thin1-before kinds/thin1 -kn -ay",
)
# Volumes and the hidden ones beneath, by the names of their maps; what the refusal of such a one says.
LAYERED = {
    "striped": (),
    "mirrored": ("mirrored_rimage_0", "mirrored_rmeta_1"),
    "checked": ("checked_rimage_0", "checked_rimage_0_iorig", "checked_rimage_1_imeta"),
    "cached": ("cached_corig", "fast_cvol", "fast_cvol-cdata", "fast_cvol-cmeta"),
    "pooled": ("pooled_corig", "cpool_cpool_cdata", "cpool_cpool_cmeta"),
    "buffered": ("buffered_wcorig", "log_cvol"),
    "thin1": ("pool-tpool", "pool_tdata", "pool_tmeta"),
}

# LVM checks a cache before it activates it: one that another node uses never passes.
ALONE = ("cached", "pooled")


@contextmanager
def layered_volumes(cluster: Guarded) -> Iterator[None]:
    """
    The group `kinds`, which no lock manager keeps: both nodes have all of it active, also what LVM would give to one host alone.
    """
    path = disk(cluster, "bare").by_id
    first = cluster.hosts[0]
    wipe(cluster, path)
    first.shell(f"sgdisk -n1:0:+120M -n2:0:+120M {path}")
    reread(cluster, path)
    try:
        first.shell(f"vgcreate -qq -y --lock-type none --setautoactivation n {GROUP} {path}-part1 {path}-part2", within=90)
        for line in _VOLUMES:
            first.shell(line.replace("lvcreate ", "lvcreate -qq -y ").replace("lvconvert ", "lvconvert -qq -y "), within=120)
        each(cluster.hosts, lambda node: node.shell(f"vgchange -qq -ay {GROUP}; udevadm settle", check=False, within=120))
        yield
    finally:
        both(cluster, f"vgchange -qq -an {GROUP}", check=False)
        first.shell(f"vgremove -qq -ff -y {GROUP}", check=False)
        wipe(cluster, path)


def layered(name: str) -> Laid:
    path = f"/dev/{GROUP}/{name}"
    mapper = f"/dev/mapper/{GROUP}-{name}"
    parts = [Part(node, f"/dev/mapper/{GROUP}-{part}", "") for node in (1, 2) for part in LAYERED[name]]
    return Laid(path, path, LV, ((1, mapper), (2, mapper)), parts)


# -- one device over another ----------------------------------------------------------------------------------------------


@contextmanager
def multipath(cluster: Guarded) -> Iterator[Laid]:
    """Two paths to one disk, joined by multipathd on both nodes."""
    wwn = disk(cluster, "path").wwn[2:]
    both(cluster, 'printf "defaults {\\n user_friendly_names yes\\n find_multipaths no\\n}\\nblacklist {\\n wwid .*\\n}\\n'
         f'blacklist_exceptions {{\\n wwid 3{wwn}\\n}}\\n" >/etc/multipath.conf; modprobe dm-multipath;'
         " systemctl start multipathd; multipath -r; udevadm settle")  # fmt: skip
    try:
        for node in cluster.hosts:
            eventually(lambda node=node: node.exists("/dev/mapper/mpatha"), f"{node} has the map", within=90, every=0.5)  # type: ignore[misc]
        legs = {node.number: node.shell("ls /sys/class/block/$(basename $(readlink -f /dev/mapper/mpatha))/slaves").out.split()
                for node in cluster.hosts}  # fmt: skip
        assert all(len(found) == 2 for found in legs.values()), legs
        parts = [Part(n, f"/dev/{leg}", "one path of the multipath map mpatha") for n, found in legs.items() for leg in found]
        aliases = [(n, f"/dev/disk/by-id/dm-uuid-mpath-3{wwn}") for n in legs]
        yield Laid("/dev/mapper/mpatha", "/dev/mapper/mpatha", f"lun:naa.{wwn}", aliases, parts)
    finally:
        both(cluster, "systemctl stop multipathd; multipath -F; rm -f /etc/multipath.conf; udevadm settle", check=False)


@contextmanager
def one_path_there(cluster: Guarded) -> Iterator[Laid]:
    """The first node has a multipath map, the second the disk by one path."""
    with multipath(cluster) as laid:
        two = cluster.hosts[1]
        leg = next(part.path for part in laid.parts if part.node == 2)
        two.shell("systemctl stop multipathd; multipath -F; udevadm settle", within=90)
        yield laid._replace(there=leg, aliases=(), parts=[part for part in laid.parts if part.node == 1])


@contextmanager
def loop(cluster: Guarded) -> Iterator[Laid]:
    """A loop device over an image on GFS2 here; there the image itself."""
    image = f"{MOUNT}/images/looped.img"
    one = cluster.hosts[0]
    one.shell(f"truncate -s 8M {image}; chmod 666 {image}")
    device = one.shell(f"losetup -f --show {image}").out.strip()
    try:
        yield Laid(device, image, r"file:[0-9a-f-]{36}/\d+", ((1, image),))
    finally:
        one.shell(f"losetup -d {device}; rm -f {image}", check=False)


@contextmanager
def partition_in_a_volume(cluster: Guarded) -> Iterator[Laid]:
    """A partition that kpartx has found in a logical volume, on both nodes."""
    volume = cluster.volume("parted", 16, b"")
    try:
        cluster.hosts[0].shell(f"sgdisk -n1:0:+4M -n2:0:+4M {volume.path}")
        both(cluster, f"kpartx -s -a {volume.path}; udevadm settle")
        first = f"{volume.mapper}1"
        yield Laid(first, first, rf"part:{LV}/1", ((2, f"/dev/disk/by-id/dm-name-{os.path.basename(first)}"),))
    finally:
        both(cluster, f"kpartx -s -d {volume.path}", check=False)
        cluster.remove("parted")


@contextmanager
def md(cluster: Guarded) -> Iterator[Laid]:
    """A software RAID 1 on two partitions of a shared disk, assembled on both nodes; nobody should."""
    path = disk(cluster, "bare").by_id
    one, two = cluster.hosts[:2]
    wipe(cluster, path)
    one.shell(f"sgdisk -n1:0:+32M -n2:0:+32M {path}")
    reread(cluster, path)
    # What udev would put together by itself, it would on both nodes, and while it is being made.
    both(cluster, "grep -q '^AUTO' /etc/mdadm/mdadm.conf || echo 'AUTO -all' >>/etc/mdadm/mdadm.conf")
    try:
        legs = f"{path}-part1 {path}-part2"
        one.shell(f"mdadm --create /dev/md/kinds -q --run --level=1 --raid-devices=2 --metadata=1.2 {legs}", check=False)
        eventually(lambda: one.exists("/dev/md/kinds"), "the array is there", within=120, every=1)
        one.run("mdadm", "--wait", "/dev/md/kinds", check=False)
        two.shell(f"[ -e /dev/md/kinds ] || mdadm --assemble /dev/md/kinds {legs}; udevadm settle")
        at = {node.number: node.shell("readlink -f /dev/md/kinds").out.strip() for node in (one, two)}
        parts = [Part(n, f"{path}-part{leg}", f"held by the active device {at[n]}") for n in at for leg in (1, 2)]
        yield Laid("/dev/md/kinds", "/dev/md/kinds", "md:[0-9a-f]{32}", list(at.items()), parts)
    finally:
        both(cluster, "mdadm --stop --scan; udevadm settle", check=False)
        one.shell(f"mdadm --zero-superblock {path}-part1 {path}-part2", check=False)
        wipe(cluster, path)


# -- over the network -----------------------------------------------------------------------------------------------------


@contextmanager
def drbd(cluster: Guarded, megabytes: int = 64) -> Iterator[Laid]:
    """DRBD with two primaries, each on a file of its own node."""
    words = (
        "resource guests { net { protocol C; allow-two-primaries yes; } device /dev/drbd0 minor 0;"
        " disk /dev/loop8; meta-disk internal; "
        + " ".join(f"on {node.name} {{ address 10.99.0.{node.number}:7789; }}" for node in cluster.hosts)
        + " }"
    )
    try:
        both(cluster, f"modprobe drbd; mkdir -p /etc/drbd.d; echo {shlex.quote(words)} >/etc/drbd.d/guests.res;"
             f" truncate -s {megabytes}M /var/lib/drbd.img; losetup /dev/loop8 /var/lib/drbd.img;"
             " drbdadm create-md --force guests && drbdadm up guests", within=240)  # fmt: skip
        one = cluster.hosts[0]
        eventually(lambda: "Connected" in one.shell("drbdadm cstate guests", check=False).out, "it connects", within=90, every=1)
        one.shell("drbdadm new-current-uuid --clear-bitmap guests/0", within=90)
        both(cluster, "drbdadm primary guests; udevadm settle")
        parts = [Part(n, path, "/dev/drbd0") for n in (1, 2) for path in ("/dev/loop8", "/var/lib/drbd.img")]
        names = [(n, name) for n in (1, 2) for name in ("/dev/drbd/by-res/guests/0",)]
        yield Laid("/dev/drbd0", "/dev/drbd0", "drbd:guests/0", names, parts)
    finally:
        both(cluster, "drbdadm down guests; losetup -d /dev/loop8; rm -f /var/lib/drbd.img /etc/drbd.d/guests.res", check=False)


IQN = "iqn.2026-01.org.example:store1"
_TARGET = f"""
set -e
modprobe -a target_core_mod target_core_file iscsi_target_mod
cd /sys/kernel/config/target
mkdir -p core/fileio_0/web iscsi/{IQN}/tpgt_1
truncate -s 32M /var/lib/lun.img
echo fd_dev_name=/var/lib/lun.img,fd_dev_size=33554432 >core/fileio_0/web/control
echo 1 >core/fileio_0/web/enable
echo 5f4dcc3b-5aa7-65d6-1d83-27deb882cf99 >core/fileio_0/web/wwn/vpd_unit_serial
cd iscsi/{IQN}/tpgt_1
mkdir -p lun/lun_3 np/10.99.0.1:3260
ln -s /sys/kernel/config/target/core/fileio_0/web lun/lun_3/web
echo 0 >attrib/authentication; echo 1 >attrib/generate_node_acls; echo 0 >attrib/demo_mode_write_protect
echo 1 >enable
"""
_NO_TARGET = f"""
cd /sys/kernel/config/target/iscsi/{IQN}/tpgt_1 2>/dev/null && {{ echo 0 >enable; rm lun/lun_3/web; rmdir lun/lun_3 np/*; }}
cd /sys/kernel/config/target; rmdir iscsi/{IQN}/tpgt_1 iscsi/{IQN} core/fileio_0/web core/fileio_0; rm -f /var/lib/lun.img
"""


@contextmanager
def iscsi(cluster: Guarded) -> Iterator[Laid]:
    """A LUN that the kernel of the first node serves; both nodes log in."""
    one = cluster.hosts[0]
    one.shell(_TARGET, within=90)
    try:
        # A cloned system has its initiator's name from the image: a target takes two such for one.
        for node in cluster.hosts:
            node.write("/etc/iscsi/initiatorname.iscsi", f"InitiatorName=iqn.2026-01.org.example:{node.name}\n")
        both(cluster, "systemctl restart iscsid; iscsiadm -m discovery -t sendtargets -p 10.99.0.1;"
             f" iscsiadm -m node -T {IQN} --login; udevadm settle")  # fmt: skip
        link = f"/dev/disk/by-path/ip-10.99.0.1:3260-iscsi-{IQN}-lun-3"
        for node in cluster.hosts:
            eventually(lambda node=node: node.exists(link), f"{node} has the LUN", within=60, every=0.5)  # type: ignore[misc]
        at = {node.number: node.shell(f"readlink -f {link}").out.strip() for node in cluster.hosts}
        parts = [Part(1, "/var/lib/lun.img", "served to other hosts")]
        yield Laid(at[1], at[2], "lun:naa.6001405[0-9a-f]{25}", [(1, link), (2, link)], parts)
    finally:
        both(cluster, f"iscsiadm -m node -T {IQN} --logout; iscsiadm -m node -T {IQN} -o delete", check=False)
        one.shell(_NO_TARGET, check=False)


@contextmanager
def nfs(cluster: Guarded, version: str = "4.2") -> Iterator[Laid]:
    """A folder of the first node's own disk, mounted by both nodes."""
    one = cluster.hosts[0]
    one.shell("mkdir -p /srv/nfs; chmod 777 /srv/nfs; truncate -s 8M /srv/nfs/web.img; chmod 666 /srv/nfs/web.img;"
              " echo '/srv/nfs 10.99.0.0/24(rw,sync,no_root_squash,no_subtree_check)' >/etc/exports;"
              " systemctl start rpcbind nfs-server; exportfs -ra", within=180)  # fmt: skip
    try:
        options = f"vers={version},soft,timeo=100"
        both(cluster, f"systemctl start rpcbind; mkdir -p /mnt/nfs; mount -t nfs -o {options} 10.99.0.1:/srv/nfs /mnt/nfs")
        parts = [Part(1, "/srv/nfs/web.img", "this host serves /srv/nfs by NFS")]
        yield Laid("/mnt/nfs/web.img", "/mnt/nfs/web.img", r"file:nfs-[0-9a-f]+:[0-9a-f]+/\d+", (), parts)
    finally:
        both(cluster, "umount -f -l /mnt/nfs", check=False)
        one.shell("exportfs -ua; systemctl stop nfs-server; rm -rf /srv/nfs /etc/exports", check=False)


@contextmanager
def ocfs2(cluster: Guarded) -> Iterator[Laid]:
    """OCFS2 with its own cluster stack, on a shared disk."""
    path = disk(cluster, "bare").by_id
    words = "cluster:\n\tnode_count = 2\n\tname = nodes\n" + "".join(
        f"\nnode:\n\tip_port = 7777\n\tip_address = 10.99.0.{node.number}\n\tnumber = {node.number}\n"
        f"\tname = {node.name}\n\tcluster = nodes\n"
        for node in cluster.hosts
    )
    one = cluster.hosts[0]
    wipe(cluster, path)
    for node in cluster.hosts:
        node.write("/etc/ocfs2/cluster.conf", words)
    try:
        both(cluster, "modprobe -a ocfs2 ocfs2_stack_o2cb; echo o2cb >/sys/fs/ocfs2/cluster_stack; mkdir -p /mnt/ocfs2;"
             " mountpoint -q /sys/kernel/config || mount -t configfs configfs /sys/kernel/config")  # fmt: skip
        both(cluster, "o2cb register-cluster nodes")
        stack = "--cluster-stack=o2cb --cluster-name=nodes"
        one.shell(f"yes | mkfs.ocfs2 -q -N 2 -L kinds {stack} --fs-features=norefcount {path}", within=180)
        both(cluster, f"mount -t ocfs2 {path} /mnt/ocfs2", within=240)
        one.shell("cd /mnt/ocfs2; truncate -s 8M web.img; chmod 666 web.img; ln web.img other.img; sync")
        parts = [Part(number, path, "mounted on /mnt/ocfs2") for number in (1, 2)]
        yield Laid("/mnt/ocfs2/web.img", "/mnt/ocfs2/web.img", r"file:[0-9a-f-]{36}/\d+", [(2, "/mnt/ocfs2/other.img")], parts)
    finally:
        both(cluster, "umount /mnt/ocfs2; o2cb unregister-cluster nodes", check=False)
        wipe(cluster, path)


def identities(node: Node, paths: Sequence[str]) -> List[dict]:  # type: ignore[type-arg]
    """What `vmguard identify` says of each path, which must be one thing each."""
    if not paths:
        return []
    found = json.loads(node.vmguard("identify", "--json", *paths).out)["paths"]
    assert all(len(found[path]) == 1 for path in paths), found
    return [found[path][0] for path in paths]
