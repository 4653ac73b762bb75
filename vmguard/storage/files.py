# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Files and directories: `file:<filesystem>/<inode>`.

The inode makes symbolic links, hard links, bind mounts and renames fall together; what names the filesystem depends
on its kind.
"""

import posixpath
import stat

from vmguard._typing import NamedTuple, Optional, Tuple
from vmguard.errors import Unresolvable
from vmguard.storage import Storage, block, filesystems, hostuse, nfs, overlay, zfs
from vmguard.storage.facts import Stat
from vmguard.storage.host import DEPTH_LIMIT, Host, Mount, plain, within

# One filesystem seen by many hosts, and one inode number for a file on all of them.
CLUSTER = (
    *("gfs2", "ocfs2", "nfs", "nfs4", "ceph", "lustre", "gpfs", "beegfs", "cifs", "smb3", "afs", "orangefs", "pvfs2"),
    *("vxfs", "panfs", "wekafs", "acfs", "9p", "virtiofs", "fuse.glusterfs", "fuse.ceph-fuse", "fuse.moosefs"),
    *("fuse.mfs", "fuse.lizardfs", "fuse.juicefs", "fuse.quobyte", "fuse.sshfs"),
)
MEMORY = ("tmpfs", "ramfs", "devtmpfs", "hugetlbfs", "rootfs")
# Inode numbers here are made up as files are looked at, and may be others next time.
UNSTEADY = ("vfat", "msdos", "exfat", "fuseblk", "cifs", "smb3")
# Not files with content of their own.
NOT_STORAGE = (
    *("proc", "sysfs", "cgroup", "cgroup2", "debugfs", "tracefs", "securityfs", "configfs", "bpf", "pstore"),
    *("efivarfs", "selinuxfs", "devpts"),
)


class _Name(NamedTuple):
    """The name of a filesystem, as far as one can be had."""

    text: str
    reason: str
    also: Tuple[str, ...] = ()
    not_writable: Optional[str] = None


def resolve(host: Host, path: str, found: Stat) -> Storage:
    """A regular file or directory. Raises Unresolvable."""
    real = host.realpath(path)
    mount = host.mount_of(found, path)
    if mount.type == "autofs":
        raise Unresolvable(path, "it is an automount point on which nothing is mounted yet")
    host.depth += 1
    try:
        if host.depth > DEPTH_LIMIT:
            raise Unresolvable(path, f"more than {DEPTH_LIMIT} layers of storage lie beneath it")
        if mount.type == "overlay":
            layer = overlay.real_file(host, real, mount, found)
            storage = resolve(host, layer.path, layer.found)
            return storage._replace(
                path=path,
                reasons=(f"{layer.reason}: {layer.path}", *storage.reasons),
                not_writable=layer.not_writable or storage.not_writable,
                used_by_host=storage.used_by_host or hostuse.of_file(host, found),
            )
        return _plain_file(host, path, real, mount, found)
    finally:
        host.depth -= 1


def _plain_file(host: Host, path: str, real: str, mount: Mount, found: Stat) -> Storage:
    name = _filesystem(host, real, mount, found)
    under, notes = _beneath(host, mount, found)
    directory = stat.S_ISDIR(found.mode)
    cluster = mount.type in CLUSTER
    exported = None if cluster else nfs.exported(host, real, mount)
    return Storage(
        identity=f"file:{name.text}/{found.inode}",
        path=path,
        kind="directory" if directory else "file",
        also=name.also,
        under=under,
        others_see_it=cluster or exported is not None,
        size=None if directory else found.size,
        reasons=(
            *(() if real == path else (f"the path leads to {real}",)),
            f"inode {found.inode} of {name.reason}",
            *notes,
        ),
        not_writable=name.not_writable or exported,
        used_by_host=None if directory else hostuse.of_file(host, found),
    )


def _filesystem(host: Host, real: str, mount: Mount, found: Stat) -> _Name:
    if mount.type in MEMORY:
        device = f"{found.device[0]}:{found.device[1]}"
        return _Name(f"tmpfs-{host.boot_id()}-{device}", f"the {mount.type} {device} of this boot of this host")
    if mount.type in ("nfs", "nfs4"):
        fsid, also = nfs.fsid(host, real, found.device)
        return _Name(
            f"nfs-{fsid}", f"the NFS filesystem {fsid}", tuple(f"file:nfs-{one}/{found.inode}" for one in also)
        )
    if mount.type == "fuse.glusterfs":
        return _gluster(host, real, mount, found)
    if mount.type == "ceph":
        return _ceph(host, mount, found)
    if mount.type == "lustre":
        # MGS[:MGS]:/FSNAME[/SUBDIR]; the name is the filesystem's own, the servers are each client's choice
        name = mount.source.rpartition(":/")[2].partition("/")[0]
        if name:
            return _Name(f"lustre-{plain(name)}", f"the Lustre filesystem {name}")
    if mount.type == "zfs":
        number = zfs.dataset(host, real)
        if number:
            return _Name(f"zfs-{number}", f"the ZFS dataset {number} ({mount.source})")
    if mount.type in NOT_STORAGE:
        return _host_only(host, mount, found, f"it is on {mount.type}, which keeps no data")
    if mount.type in ("9p", "virtiofs"):
        # qid paths and st_ino come from whatever the hypervisor's export makes of its own devices and inodes
        return _host_only(
            host,
            mount,
            found,
            f"its inode number comes through {mount.type} from a hypervisor, and may be another in the next guest",
        )
    if mount.type in UNSTEADY or mount.type == "fuse" or mount.type.startswith("fuse."):
        return _host_only(host, mount, found, f"files on {mount.type} have no inode numbers that last")
    return _by_uuid(host, real, mount, found)


def _by_uuid(host: Host, real: str, mount: Mount, found: Stat) -> _Name:
    known = filesystems.uuid_of(host, real, mount, found.device)
    if not known:
        return _host_only(host, mount, found, f"its {mount.type} filesystem has no uuid")
    uuid, source = known
    reason = f"the {mount.type} filesystem {uuid} (as {source} says)"
    if mount.type != "btrfs":
        return _Name(uuid, reason)
    number = filesystems.subvolume(host, real)
    why = None
    if host.text(f"/sys/fs/btrfs/{uuid}/temp_fsid") == "1":
        # kernel 6.7: of two btrfs with one uuid the second mounted gets a random one
        why = "another btrfs with the same uuid is mounted, so the kernel gave this one a passing uuid"
    return _Name(f"{uuid}/{number}", f"subvolume {number} of {reason}", not_writable=why)


def _host_only(host: Host, mount: Mount, found: Stat, why: str) -> _Name:
    device = f"{found.device[0]}:{found.device[1]}"
    return _Name(
        f"host-{host.boot_id()}-{device}", f"the {mount.type} {device}, as this host sees it until it reboots", (), why
    )


def _gluster(host: Host, real: str, mount: Mount, found: Stat) -> _Name:
    # SERVER:[/]VOLUME[/SUBDIR], SERVER being an IPv6 address perhaps; the inode number is made of the file's gfid and the
    # same on all clients
    server, colon, rest = mount.source.partition(":/") if ":/" in mount.source else mount.source.rpartition(":")
    volume, _, subdir = rest.lstrip("/").partition("/")
    if not (server and colon and volume):
        return _host_only(
            host, mount, found, f"the mount's source {mount.source} does not show which gluster volume it is"
        )
    inner = posixpath.normpath(posixpath.join("/", subdir, within(mount, real).lstrip("/"))).lstrip("/")
    return _Name(
        f"gluster-{plain(volume)}", f"the gluster volume {volume}", (f"gluster:{plain(volume)}/{plain(inner)}",)
    )


def _ceph(host: Host, mount: Mount, found: Stat) -> _Name:
    fsid = ""
    # since 5.17: USER@FSID.FSNAME=/PATH; the fsid may be left out
    user, at, rest = mount.source.partition("@")
    if user and at:
        fsid = rest.partition(".")[0].lower()
    if len(fsid) != 36:
        known = {name.partition(".client")[0] for name in host.names("/sys/kernel/debug/ceph") if ".client" in name}
        fsid = known.pop() if len(known) == 1 else ""
    if len(fsid) != 36:
        return _host_only(
            host, mount, found, "the mount does not show the fsid of its Ceph cluster (mount it as USER@FSID.FSNAME=/)"
        )
    return _Name(f"cephfs-{fsid}", f"the Ceph cluster {fsid}")


def _beneath(host: Host, mount: Mount, found: Stat) -> Tuple[Tuple[Storage, ...], Tuple[str, ...]]:
    """The block devices that a filesystem lies on, and notes on those without an identity."""
    if found.device[0]:
        devices = [found.device]
    elif mount.type == "btrfs":
        devices = block.btrfs_members(host, mount)
    elif mount.type == "zfs":
        devices = zfs.devices(host, mount.source)
    else:
        return (), ()
    for option in mount.options:
        key, _, value = option.partition("=")
        if key in ("logdev", "rtdev") and value.startswith("/"):  # XFS
            there = host.lookup(value)
            if there and stat.S_ISBLK(there.mode):
                devices.append(there.rdev)
    return block.layers(host, devices)
