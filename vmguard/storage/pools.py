# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Volumes of libvirt's storage pools, resolved without libvirt: a hook must not call it.

libvirtd keeps what is active in /run/libvirt/storage, definitions in /etc/libvirt/storage.
"""

import posixpath

from vmguard import _xml
from vmguard._typing import List, Union
from vmguard.domain import HostPath, NetworkVolume, PoolVolume
from vmguard.errors import BadDomain, Unresolvable
from vmguard.storage.host import Host

# In this order: the state file is what the running pool really is, the definition may have been edited since.
_PLACES = ("/run/libvirt/storage", "/etc/libvirt/storage")
_FILES = ("dir", "fs", "netfs", "vstorage")
_DEVICES = ("disk", "scsi", "mpath", "zfs")


def locate(host: Host, volume: PoolVolume) -> Union[HostPath, NetworkVolume]:
    """Where a volume of a pool is. Raises Unresolvable."""
    path = f"{volume.pool}/{volume.volume}"
    if not _is_name(volume.pool) or "/" in volume.pool:
        raise Unresolvable(path, "it is not the name of a storage pool")
    pool = _definition(host, volume.pool, path)
    kind = pool.get("type") or ""
    if volume.mode and kind != "iscsi":
        raise Unresolvable(path, f"mode '{volume.mode}' is for iscsi pools, and this one is a {kind} pool")
    if kind in ("iscsi-direct", "rbd", "gluster", "sheepdog") or (kind == "iscsi" and volume.mode == "direct"):
        return _network(pool, kind, volume, path)
    # a volume of a directory pool is a file in that directory, never below it
    if not _is_name(volume.volume) or (kind in _FILES and "/" in volume.volume):
        raise Unresolvable(path, "it is not the name of a volume")
    target = _text(pool, "target", "path")
    if kind == "logical":
        group = _text(pool, "source", "name") or _text(pool, "name")
        target = target or f"/dev/{group}"
    elif kind == "zfs":
        target = "/dev/zvol/" + (_text(pool, "source", "name") or _text(pool, "name"))
    elif kind not in (*_FILES, *_DEVICES, "iscsi"):
        raise Unresolvable(path, f"volumes of pools of type '{kind}' are not known")
    if not target.startswith("/"):
        raise Unresolvable(path, "the pool has no target path")
    if kind in ("scsi", "iscsi", "mpath"):
        return HostPath(_unit(host, target, volume.volume, path))
    return HostPath(posixpath.join(target, volume.volume))


def _definition(host: Host, name: str, path: str) -> _xml.Element:
    for place in _PLACES:
        data = host.bytes(f"{place}/{name}.xml")
        if data is None:
            continue
        try:
            root = _xml.read(data)
        except BadDomain as error:
            raise Unresolvable(f"{place}/{name}.xml", error.why) from error
        # the state file wraps the definition in <poolstate>
        pool = root if root.tag == "pool" else root.find("pool")
        if pool is None or _text(pool, "name") != name:
            raise Unresolvable(f"{place}/{name}.xml", f"it does not define the pool {name}")
        return pool
    raise Unresolvable(path, f"libvirt has no storage pool {name}")


def _network(pool: _xml.Element, kind: str, volume: PoolVolume, path: str) -> NetworkVolume:
    source = pool.find("source")
    hosts = [
        f"{one.get('name') or ''}:{one.get('port')}" if one.get("port") else one.get("name") or ""
        for one in (source.all("host") if source else ())
    ]
    device = source.first("device") if source else None
    name = _text(pool, "source", "name")
    if kind in ("iscsi", "iscsi-direct"):
        # libvirt names the volumes unit:BUS:TARGET:UNIT
        parts = volume.volume.split(":")
        target = (device.get("path") if device else None) or ""
        if len(parts) != 4 or parts[0] != "unit" or not parts[3].isdecimal() or not target:
            raise Unresolvable(path, "it does not say which unit of which target it is")
        return NetworkVolume("iscsi", f"{target}/{int(parts[3])}", tuple(hosts))
    if not _is_name(volume.volume):
        raise Unresolvable(path, "it is not the name of a volume")
    if kind == "sheepdog":
        return NetworkVolume(kind, volume.volume, tuple(hosts))
    if not name:
        raise Unresolvable(path, "the pool does not say what its source is")
    if kind == "gluster":
        directory = _text_of(source.first("dir") if source else None)
        return NetworkVolume(kind, posixpath.join(name, directory.strip("/"), volume.volume), tuple(hosts))
    return NetworkVolume(kind, f"{name}/{volume.volume}", tuple(hosts))


def _unit(host: Host, target: str, name: str, path: str) -> str:
    """
    The device of a volume "unit:BUS:TARGET:UNIT" of a scsi or iscsi pool.

    libvirt picks a link of the pool's target directory (/dev/disk/by-path) by the device it leads to; the volume's
    name keeps only the SCSI address without the adapter, so exactly one device below the target may have it.
    """
    if not name.startswith("unit:"):
        return posixpath.join(target, name)
    found: List[str] = []
    known = set()
    for link in host.names(target):
        there = host.lookup(posixpath.join(target, link))
        if not there or not there.rdev[0]:
            continue
        sys = host.target(f"/sys/dev/block/{there.rdev[0]}:{there.rdev[1]}") or ""
        unit = (host.target(sys + "/device") or "").rpartition("/")[2]
        if unit.partition(":")[2] == name[len("unit:") :] and there.rdev not in known:
            known.add(there.rdev)
            found.append(posixpath.join(target, link))
    if len(found) != 1:
        raise Unresolvable(path, f"{len(found)} devices in {target} have this address")
    return found[0]


def _is_name(text: str) -> bool:
    return bool(text) and "\0" not in text and not text.startswith("/") and ".." not in text.split("/")


def _text(pool: _xml.Element, *way: str) -> str:
    return _text_of(pool.find(*way))


def _text_of(element: "Union[_xml.Element, None]") -> str:
    if element is None:
        return ""
    return (element.get("path") or element.text).strip()
