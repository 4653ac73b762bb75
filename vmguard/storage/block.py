# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Block devices: by device number, so that every name and link of one device falls together; one resolver per kind.

All of them return a Storage without `used_by_host`, which is added here.
"""

from vmguard._light import re
from vmguard._typing import Iterable, List, Optional, Tuple
from vmguard.errors import Unresolvable
from vmguard.storage import Storage, disks, dm, hostuse, loops, network, zfs
from vmguard.storage.facts import Devno
from vmguard.storage.host import DEPTH_LIMIT, Host, Mount, plain

# Made by the kernel of what this host alone has: flash, floppy disks, null_blk.
_OF_THIS_HOST = re.compile(r"(?:mtdblock|ubiblock|fd|nullb)\d")
# Buses within one machine, on which a driver of its own may have disks that have no names (flash on PCIe).
_OWN_BUSES = ("pci", "platform", "vio", "scm", "memstick")


def resolve(host: Host, device: Devno, path: Optional[str] = None) -> Storage:
    """The block device of that number. Raises Unresolvable."""
    found = host.devices.get(device)
    if found is None:
        host.depth += 1
        try:
            if host.depth > DEPTH_LIMIT:
                raise Unresolvable(path or str(device), f"more than {DEPTH_LIMIT} layers of storage lie beneath it")
            sys = host.sysfs(device, path or f"{device[0]}:{device[1]}")
            found = _kind(host, sys, device)
        finally:
            host.depth -= 1
        used = found.used_by_host or hostuse.of_device(host, sys, device)
        found = found._replace(device=device, size=size(host, sys), used_by_host=used)
        host.devices[device] = found
    return found._replace(path=path) if path else found


def node(host: Host, sys: str) -> str:
    """The name of a device below /dev, for people."""
    name = host.text(sys + "/dm/name")
    return f"/dev/mapper/{name}" if name else "/dev/" + kname(sys)


def kname(sys: str) -> str:
    """The kernel's name of a device; a "/" in it is a "!" in sysfs."""
    return sys.rpartition("/")[2].replace("!", "/")


def size(host: Host, sys: str) -> Optional[int]:
    """Bytes; the kernel counts sectors of 512 whatever the device's own are."""
    text = host.text(sys + "/size") or ""
    return int(text) * 512 if text.isdigit() else None


def slaves(host: Host, sys: str) -> List[Devno]:
    """The devices directly beneath a device."""
    numbers = (host.devno(f"{sys}/slaves/{name}") for name in host.names(sys + "/slaves"))
    return [number for number in numbers if number]


def layers(host: Host, devices: Iterable[Devno]) -> Tuple[Tuple[Storage, ...], Tuple[str, ...]]:
    """Devices that lie beneath something, and a sentence for each that has no identity."""
    found: List[Storage] = []
    notes: List[str] = []
    for device in dict.fromkeys(devices):
        try:
            found.append(resolve(host, device))
        except Unresolvable as error:
            notes.append(f"beneath it, left out: {error.path}: {error.why}")
    return tuple(found), tuple(notes)


def btrfs_members(host: Host, mount: Mount) -> List[Devno]:
    """The devices of a mounted btrfs: of that one of /sys/fs/btrfs which has the mount's source among them."""
    source = host.lookup(mount.source) if mount.source.startswith("/") else None
    for uuid in host.names("/sys/fs/btrfs"):
        base = f"/sys/fs/btrfs/{uuid}/devices"
        numbers = [number for number in (host.devno(f"{base}/{name}") for name in host.names(base)) if number]
        if source and source.rdev in numbers:
            return numbers
    return [source.rdev] if source and source.rdev[0] else []


def local(host: Host, sys: str, why: str, this_boot: bool = False) -> Storage:
    """A device that this host alone has, known by its name here."""
    name = kname(sys)
    under, notes = layers(host, slaves(host, sys))
    key = host.machine_key() + (f"-{host.boot_id()}" if this_boot else "")
    seen = any(one.others_see_it for one in under)
    return Storage(
        identity=f"dev:{key}/{plain(name)}",
        path=node(host, sys),
        kind=re.split(r"\d", name.rpartition("/")[2])[0],
        under=under,
        others_see_it=seen,
        reasons=(why, *notes),
        not_writable="it has a name on this host only, and other hosts can reach what lies beneath" if seen else None,
    )


def _kind(host: Host, sys: str, device: Devno) -> Storage:
    name = kname(sys)
    if host.text(sys + "/partition"):
        return _partition(host, sys)
    if host.text(sys + "/dm/name") is not None:
        return dm.resolve(host, sys)
    if host.text(sys + "/md/metadata_version") is not None or re.match(r"md\d|md_", name):
        return _md(host, sys, device)
    if name.startswith("loop"):
        return loops.resolve(host, sys)
    if device[0] == 147 or name.startswith("drbd"):  # admin-guide/devices.txt
        return _drbd(host, sys, device)
    if name.startswith("rbd"):
        return network.kernel_rbd(host, sys)
    if name.startswith("nbd"):
        return _nbd(host, sys)
    if re.match(r"zram|ram\d|pmem|brd", name):
        return local(host, sys, "memory of this host, until it reboots", this_boot=not name.startswith("pmem"))
    if re.match(r"zd\d", name):
        return _zvol(host, sys, device)
    return disks.resolve(host, sys, device) or _unknown(host, sys)


def _unknown(host: Host, sys: str) -> Storage:
    """
    A device of a kind that is not known. Where nothing shows what is behind it, it may be a volume on a network, which other
    hosts have by whatever name their drivers gave it: ATA over Ethernet, ublk, rnbd, those of vendors.
    """
    storage = local(host, sys, "a kind of device that has no identity of its own")
    bus = (host.target(f"{sys}/device/subsystem") or "").rpartition("/")[2]
    if storage.under or bus in _OWN_BUSES or _OF_THIS_HOST.match(kname(sys)):
        return storage
    return storage._replace(
        not_writable="it is a kind of device that is not known, and nothing shows whether other hosts reach the same"
    )


def _partition(host: Host, sys: str) -> Storage:
    number = host.text(sys + "/partition") or ""
    parent = host.devno(sys.rpartition("/")[0])
    if not parent:
        raise Unresolvable(node(host, sys), "the disk that it is a partition of cannot be found")
    return partition_of(resolve(host, parent), number, node(host, sys))


def partition_of(disk: Storage, number: str, path: str) -> Storage:
    """A partition of a disk, whoever made the device for it (the kernel, kpartx)."""
    why = disk.not_writable
    return Storage(
        identity=f"part:{disk.identity}/{number}",
        path=path,
        kind="partition",
        also=tuple(f"part:{one}/{number}" for one in disk.also),
        under=(disk._replace(used_by_host=None),),
        others_see_it=disk.others_see_it,
        reasons=(f"partition {number} of {disk.path}",),
        not_writable=f"it is a partition of {disk.path}: {why}" if why else None,
        instead=f"the same partition of {disk.instead}" if why and disk.instead else None,
    )


def _md(host: Host, sys: str, device: Devno) -> Storage:
    text = host.text(sys + "/md/uuid") or host.udev(device).get("MD_UUID", "")
    uuid = re.sub(r"[^0-9a-f]", "", text.lower())
    if len(uuid) != 32 or not uuid.strip("0"):
        return local(host, sys, "a software RAID without a uuid")._replace(kind="md")
    under, notes = layers(host, slaves(host, sys))
    reasons = (f"the software RAID {uuid}", *notes)
    seen = any(one.others_see_it for one in under)
    return Storage(f"md:{uuid}", node(host, sys), "md", under=under, others_see_it=seen, reasons=reasons)


def _drbd(host: Host, sys: str, device: Devno) -> Storage:
    under, notes = layers(host, slaves(host, sys))
    for resource, volume in _drbd_names(host, device):
        identity = f"drbd:{plain(resource)}/{volume}"
        reasons = (f"volume {volume} of the DRBD resource {resource}", *notes)
        return Storage(identity, node(host, sys), "drbd", under=under, others_see_it=True, reasons=reasons)
    raise Unresolvable(node(host, sys), "neither udev nor the kernel says which DRBD resource it is a volume of")


def _drbd_names(host: Host, device: Devno) -> Iterable[Tuple[str, str]]:
    # debugfs links the minor to .../resources/RESOURCE/volumes/VOLUME; it is the kernel's own word, but root's only
    try:
        shown = host.target(f"/sys/kernel/debug/drbd/minors/{device[1]}") or ""
    except Unresolvable:
        shown = ""
    found = re.search(r"/resources/([^/]+)/volumes/(\d+)$", shown)
    if found:
        yield found.group(1), found.group(2)
    for link in host.links(device):
        # a resource of one volume has by-res/RESOURCE in old drbd-utils, by-res/RESOURCE/VOLUME since 8.4
        found = re.fullmatch(r"drbd/by-res/([^/]+)(?:/(\d+))?", link)
        if found:
            yield found.group(1), found.group(2) or "0"
    base = "/dev/drbd/by-res"
    for resource in host.names(base):
        for volume in host.names(f"{base}/{resource}"):
            there = host.lookup(f"{base}/{resource}/{volume}")
            if there and there.rdev == device and volume.isdecimal():
                yield resource, volume


def _zvol(host: Host, sys: str, device: Devno) -> Storage:
    """
    By its name on this host: no other host has it as long as its pool is imported here, whoever reaches the pool's devices.
    """
    under, notes = layers(host, zfs.under_zvol(host, device))
    storage = local(host, sys, "a zvol")
    return storage._replace(under=under, reasons=(*storage.reasons, *notes))


def _nbd(host: Host, sys: str) -> Storage:
    if host.text(sys + "/pid") is None:
        raise Unresolvable(node(host, sys), "this network block device is not connected")
    # the "backend" attribute is a word that the client program made up, not the server's address
    return Storage(
        f"dev:{host.machine_key()}/{kname(sys)}",
        node(host, sys),
        "nbd",
        others_see_it=True,
        reasons=("a network block device of the kernel",),
        not_writable="the kernel does not say which export of which server is behind it",
        instead="the export itself, as a disk of type network with protocol nbd",
    )
