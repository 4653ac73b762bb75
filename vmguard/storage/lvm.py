# SPDX-License-Identifier: LGPL-2.1-or-later
"""
LVM: `lvm:<vg uuid>/<lv uuid>`, from the uuid of the map, never from its name.

A logical volume may be a stack of maps: its own, layers of it (the same uuid with a suffix), hidden volumes beneath.
Layers and
hidden volumes are looked through, down to the physical volumes, another volume that it is a snapshot of, or a pool.
"""

from vmguard._light import re
from vmguard._typing import List, NamedTuple, Optional, Tuple
from vmguard.errors import Unresolvable
from vmguard.storage import Storage, block
from vmguard.storage.facts import Devno
from vmguard.storage.host import Host

# lvm2, lib/metadata and tools/lvmcmdline reserve these: volumes that exist only as parts of others.
_HIDDEN = re.compile(
    r"_(?:rimage|rmeta|mimage|mimagetmp)_\d+(?:_.*)?$"
    r"|_(?:mlog|corig|wcorig|iorig|imeta|cdata|cmeta|cvol|cpool|tdata|tmeta|vdata|vorigin|pmspare)$"
    r"|^(?:pvmove\d+|lvol\d+_pmspare)$"
)
# Of these, the ones that are part of just one volume, which bears their name.
_OF_ONE = re.compile(r"_(?:(?:rimage|rmeta|mimage)_\d+(?:_(?:iorig|imeta))?|mlog|corig|wcorig|iorig|imeta)$")
_POOLS = ("tpool", "vpool")  # layers that only one host may have active, and many volumes lie on
_BACKUP = "/etc/lvm/backup"
# Folders of /dev that are no volume groups.
_NO_GROUPS = ("block", "bus", "char", "disk", "drbd", "mapper", "md", "net", "rbd", "shm", "vfio", "zvol")


class _Map(NamedTuple):
    """A map of LVM's."""

    vg: str  # uuid
    lv: str  # uuid
    layer: str  # "", "real", "cow", "tpool", ...
    vg_name: str
    lv_name: str

    @property
    def identity(self) -> str:
        return f"lvm:{self.vg}/{self.lv}"

    @property
    def hidden(self) -> bool:
        return bool(self.layer) or bool(_HIDDEN.search(self.lv_name)) or self.lv_name == "lvmlock"


def resolve(host: Host, sys: str) -> Storage:
    """A map whose uuid begins with "LVM-". Raises Unresolvable."""
    map_ = _map(host, sys)
    if not map_:
        raise Unresolvable(block.node(host, sys), "its uuid is not in LVM's form")
    storage = _volume(host, sys, map_)
    if not map_.hidden:
        return storage
    layer = map_.layer or "part"
    owner = _OF_ONE.sub("", map_.lv_name)
    named = layer in ("real", "cow") or owner != map_.lv_name
    instead = f"/dev/{map_.vg_name}/{owner}" if named else None
    why = f"it is a hidden layer ({map_.lv_name}, {layer}) of a logical volume of {map_.vg_name}"
    if map_.lv_name == "lvmlock":
        why = f"it holds the locks of the volume group {map_.vg_name}"
    if map_.layer in (*_POOLS, "pool"):
        why = f"it is the pool {map_.lv_name} of {map_.vg_name}, on which other volumes lie"
    return storage._replace(not_writable=why, instead=instead)


def title(host: Host, sys: str) -> Optional[str]:
    """VG/LV, if it is a map of LVM's."""
    map_ = _map(host, sys)
    return f"{map_.vg_name}/{map_.lv_name}" if map_ else None


def group(host: Host, sys: str) -> Optional[str]:
    """The volume group, if it is a map of LVM's."""
    map_ = _map(host, sys)
    return map_.vg_name if map_ else None


def named(path: str) -> Optional[str]:
    """The volume, as VG/LV, that would be behind a path of that form if it were active; None for any other form."""
    found = re.fullmatch(r"/dev/(?:mapper/|disk/by-id/dm-name-)([\w+.-]+)", path)
    if found:
        vg, lv = _names(found.group(1))
        return f"{vg}/{lv}" if lv else None
    found = re.fullmatch(r"/dev/([\w+.-]+)/([\w+.-]+)", path)
    return f"{found.group(1)}/{found.group(2)}" if found and found.group(1) not in _NO_GROUPS else None


def dashed(digits: str) -> str:
    """A uuid of LVM's in the form that its tools print: groups of 6, 4, 4, 4, 4, 4, 6."""
    cuts = (0, 6, 10, 14, 18, 22, 26, 32)
    return "-".join(digits[start:end] for start, end in zip(cuts, cuts[1:]))


def _volume(host: Host, sys: str, map_: _Map) -> Storage:
    beneath = _Beneath()
    _descend(host, sys, map_, beneath, depth=0)
    devices, notes = block.layers(host, beneath.devices)
    under = (*beneath.volumes, *devices)
    lock = _lock_type(host, map_)
    pools = tuple(beneath.pools)
    seen = bool(lock) or any(one.others_see_it for one in (*under, *pools))
    reasons = [f"the logical volume {map_.vg_name}/{map_.lv_name}, by its uuid", *notes]
    if lock:
        reasons.append(f"its volume group is shared (lock type {lock})")
    return Storage(
        map_.identity,
        block.node(host, sys),
        "lvm",
        under=tuple(dict.fromkeys(under)),
        one_host=pools,
        others_see_it=seen,
        reasons=tuple(reasons),
    )


class _Beneath:
    def __init__(self) -> None:
        self.devices: List[Devno] = []
        self.volumes: List[Storage] = []
        self.pools: List[Storage] = []


def _descend(host: Host, sys: str, top: _Map, beneath: _Beneath, depth: int) -> None:
    """Look through the layers and hidden volumes under a map."""
    if depth > 16:  # a cached RAID in a thin pool on VDO has 8
        raise Unresolvable(block.node(host, sys), "its layers are nested too deep")
    for number in block.slaves(host, sys):
        below = host.sysfs(number, block.node(host, sys))
        map_ = _map(host, below)
        if map_ and map_.vg == top.vg:
            if map_.layer in _POOLS and map_.lv != top.lv:
                pool = _volume(host, below, map_)
                beneath.pools.append(pool._replace(path=f"/dev/{map_.vg_name}/{map_.lv_name}", device=number))
            elif map_.lv == top.lv or _HIDDEN.search(map_.lv_name):
                _descend(host, below, top, beneath, depth + 1)
            else:
                # another volume: what this is a snapshot of, or a thin volume's external origin
                origin = _volume(host, below, map_)
                beneath.volumes.append(origin._replace(path=f"/dev/{map_.vg_name}/{map_.lv_name}", device=number))
        else:
            beneath.devices.append(number)


def _map(host: Host, sys: str) -> Optional[_Map]:
    # "LVM-", 32 characters of the volume group's uuid, 32 of the volume's, for a layer "-" and its name (dev_manager.c)
    found = re.fullmatch(r"LVM-([0-9A-Za-z]{32})([0-9A-Za-z]{32})(?:-(.+))?", host.text(sys + "/dm/uuid") or "")
    if not found:
        return None
    vg_name, lv_name = _names(host.text(sys + "/dm/name") or "")
    return _Map(dashed(found.group(1)), dashed(found.group(2)), found.group(3) or "", vg_name, lv_name)


def _names(name: str) -> Tuple[str, str]:
    # VG-LV[-LAYER], a "-" within a name doubled: "a---b" is "a-" and "b"
    found = re.match(r"((?:[^-]|--)*)-((?:[^-]|--)*)(?:-|$)", name)
    return (found.group(1).replace("--", "-"), found.group(2).replace("--", "-")) if found else (name, "")


def _lock_type(host: Host, map_: _Map) -> Optional[str]:
    """
    The lock type of a volume group that hosts share.

    From the lock manager at work, and from LVM's own copy of the metadata: that one lies only where a command has changed the
    group, and of lockspaces there is one wherever a volume of the group can be active.
    """
    group = map_.vg_name.replace("-", "--")
    lock = host.lookup(f"/dev/mapper/{group}-lvmlock")
    if lock:
        seen = _map(host, f"/sys/dev/block/{lock.rdev[0]}:{lock.rdev[1]}")
        if seen and seen.vg == map_.vg:
            return "sanlock"
    if host.names(f"/sys/kernel/dlm/lvm_{map_.vg_name}"):
        return "dlm"
    text = host.text(f"{_BACKUP}/{map_.vg_name}") or ""
    if f'id = "{map_.vg}"' not in text:
        return None
    found = re.search(r'^\s*lock_type = "(\w+)"', text, re.MULTILINE)
    return found.group(1) if found and found.group(1) != "none" else None
