# SPDX-License-Identifier: LGPL-2.1-or-later
"""
device-mapper: the uuid that its maker gave a map says what it is. Multipath, partitions of kpartx, LUKS, anything by
hand; LVM in lvm.py.
"""

from vmguard._light import re
from vmguard._typing import List, Tuple
from vmguard.errors import Unresolvable
from vmguard.storage import Storage, block, disks, lvm
from vmguard.storage.host import Host, plain


def resolve(host: Host, sys: str) -> Storage:
    """A map. Raises Unresolvable."""
    uuid = host.text(sys + "/dm/uuid")
    if uuid is None:  # empty for a map without one, never absent
        raise Unresolvable(block.node(host, sys), "it vanished while it was looked at")
    if uuid.startswith("LVM-"):
        return lvm.resolve(host, sys)
    if uuid.startswith("mpath-"):
        return _multipath(host, sys, uuid)
    part = re.match(r"part(\d+)-", uuid)
    if part:
        return _partition(host, sys, part.group(1))
    return _other(host, sys, uuid)


def is_partition(uuid: str) -> bool:
    """Whether a map's uuid says that it is a partition of another device."""
    return re.match(r"part\d+-", uuid) is not None


def _multipath(host: Host, sys: str, uuid: str) -> Storage:
    node = block.node(host, sys)
    legs = [
        leg
        for leg in (disks.resolve(host, host.sysfs(number, node), number) for number in block.slaves(host, sys))
        if leg
    ]
    known = {leg.identity for leg in legs if leg.kind in ("lun", "nvme")}
    if len(known) > 1:
        raise Unresolvable(node, "the paths of this multipath map lead to different disks: " + ", ".join(sorted(known)))
    also = {one for leg in legs for one in leg.also}
    # a map keeps its uuid while all its paths are gone
    identity = known.pop() if known else disks.identity_of_serial(uuid[len("mpath-") :])
    if not identity:
        raise Unresolvable(node, "neither its paths nor its uuid say which disk this multipath map is")
    reasons = (f"a multipath map with {len(legs)} paths to {identity}",)
    return Storage(identity, node, "mpath", also=tuple(sorted(also)), others_see_it=True, reasons=reasons)


def _partition(host: Host, sys: str, number: str) -> Storage:
    beneath = block.slaves(host, sys)
    if len(beneath) != 1:
        raise Unresolvable(block.node(host, sys), "the disk that it is a partition of cannot be found")
    return block.partition_of(block.resolve(host, beneath[0]), number, block.node(host, sys))


def _other(host: Host, sys: str, uuid: str) -> Storage:
    node = block.node(host, sys)
    under, notes = block.layers(host, block.slaves(host, sys))
    seen = any(one.others_see_it for one in under)
    kind = "crypt" if uuid.startswith("CRYPT-") else "dm"
    stable = _stable(uuid)
    if stable:
        reasons = (f"the device-mapper map {stable}", *notes)
        return Storage(f"dm:{plain(stable)}", node, kind, under=under, others_see_it=seen, reasons=reasons)
    name = host.text(sys + "/dm/name") or block.kname(sys)
    # Nothing but a name, which is anyone's choice: who writes the map has what lies beneath it, whole.
    also, deeper = _absorbed(under)
    return Storage(
        f"dm:{host.machine_key()}/{plain(name)}",
        node,
        kind,
        also=also,
        under=deeper,
        others_see_it=seen,
        reasons=("a device-mapper map without a uuid of its own: it counts as all that lies beneath it", *notes),
        not_writable=next((one.not_writable for one in under if one.not_writable), None),
    )


def _absorbed(under: Tuple[Storage, ...]) -> Tuple[Tuple[str, ...], Tuple[Storage, ...]]:
    also: List[str] = []
    deeper: List[Storage] = []
    for one in under:
        also += [one.identity, *one.also]
        deeper += one.under
    return tuple(dict.fromkeys(also)), tuple(deeper)


def _stable(uuid: str) -> str:
    """The part of a map's uuid that does not hold its name, which may be another on each host."""
    if not uuid.startswith("CRYPT-"):
        return uuid
    # cryptsetup: CRYPT-TYPE-UUID-NAME, without UUID for plain and integrity
    found = re.match(r"CRYPT-[A-Z0-9]+-[0-9a-f]{32}(?=-|$)", uuid)
    return found.group(0) if found else ""
