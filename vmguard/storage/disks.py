# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Disks at the bottom: SCSI units by their VPD page 0x83, NVMe namespaces by their wwid, and what only this host has.

A name that the device itself has worldwide (NAA, EUI-64) is the same on every host. A serial number that a
hypervisor or a cheap
bridge made up is not: it counts together with the machine it was seen on, and only on a bus that no other host shares.
"""

from vmguard._light import re
from vmguard._typing import List, NamedTuple, Optional, Tuple
from vmguard.errors import Unresolvable
from vmguard.storage import Storage, block
from vmguard.storage.facts import Devno
from vmguard.storage.host import Host, plain

# SPC-4 7.8.6, designator types, from the best down: NAA, EUI-64, SCSI name string, T10 vendor
_TYPES = {3: "naa", 2: "eui", 8: "name", 1: "t10"}
_WORLDWIDE = ("naa", "eui", "name")
# SCSI hosts (proc_name) whose disks are on a network, where the path in sysfs does not show it.
_NETWORK_HOSTS = (
    *("ib_srp", "qla2xxx", "lpfc", "zfcp", "fnic", "bnx2fc", "ibmvfc", "bfa", "csiostor", "qedf", "qedi", "fcoe"),
    *("iscsi_tcp", "ib_iser", "be2iscsi", "cxgb3i", "cxgb4i", "bnx2i", "qla4xxx"),
)
# Buses within one machine, as they show in a path in sysfs: SATA, USB, virtio, Hyper-V, scsi_debug.
_LOCAL_BUS = re.compile(r"/(?:ata\d+|usb\d+|virtio\d+|VMBUS:\d+|pseudo_\d+)/")
# Of these, one on which a disk has a worldwide name only if somebody gave it one: who shares a disk between machines does.
_NAMED_BUS = re.compile(r"/virtio\d+/")
_LOCAL_HOSTS = (
    "vmw_pvscsi",
    "storvsc",
    "xen-scsifront",
    "ahci",
    "megaraid_sas",
    "mpt3sas",
    "mpt2sas",
    "smartpqi",
    "hpsa",
    "aacraid",
)


class Name(NamedTuple):
    """What names a disk."""

    text: str  # "naa.600..."
    worldwide: bool
    source: str


def resolve(host: Host, sys: str, device: Devno) -> Optional[Storage]:
    """A disk, or None for a kind that is not known. Raises Unresolvable."""
    if re.search(r"/nvme\d+(?:c\d+)?n\d+$", sys):
        return _as_leg(host, sys, nvme(host, sys))
    parent = host.target(sys + "/device")
    subsystem = (host.target(f"{parent}/subsystem") or "").rpartition("/")[2] if parent else ""
    if parent and subsystem == "scsi":
        return _as_leg(host, sys, scsi(host, parent, block.node(host, sys), device))
    if parent and subsystem == "mmc":
        return _mmc(host, sys, parent)
    if parent and host.text(parent + "/uid") and subsystem == "ccw":
        uid = host.text(parent + "/uid") or ""
        return Storage(f"dasd:{plain(uid)}", block.node(host, sys), "dasd", others_see_it=True, reasons=("a DASD",))
    if subsystem in ("virtio", "xen"):
        serial = host.text(sys + "/serial")
        name = f"{subsystem}-{serial}" if serial else sys.partition("/devices/")[2]
        reason = f"a {subsystem} disk, which this machine's hypervisor gives it, " + (
            f"by its serial number {serial}" if serial else "without a serial number"
        )
        return Storage(f"local:{host.machine_key()}/{plain(name)}", block.node(host, sys), subsystem, reasons=(reason,))
    return None


def scsi(host: Host, parent: str, node: str, device: Optional[Devno] = None) -> Storage:
    """A SCSI unit, from its directory in sysfs. Raises Unresolvable."""
    transport = _transport(host, parent)
    name = _designator(host.bytes(parent + "/vpd_pg83") or b"") or _by_wwid(host, parent) or _by_udev(host, device)
    also = _iscsi(host, parent)
    if name and (name.worldwide or transport != "local"):
        if name.worldwide and _NAMED_BUS.search(parent):
            transport = "shared"
        reasons = (f"the disk {name.text} ({name.source}), {transport}",)
        return Storage(f"lun:{name.text}", node, "lun", also, others_see_it=transport == "shared", reasons=reasons)
    if transport == "local":
        text = name.text if name else parent.partition("/devices/")[2]
        reasons = (f"a disk on a bus of this machine, without a worldwide name: {text}",)
        return Storage(f"local:{host.machine_key()}/{plain(text)}", node, "disk", also, reasons=reasons)
    raise Unresolvable(node, "this disk tells nothing by which another host would know it")


def nvme(host: Host, sys: str) -> Storage:
    """An NVMe namespace, from its directory in sysfs. Raises Unresolvable."""
    node = block.node(host, sys)
    wwid = host.text(sys + "/wwid") or ""
    # a namespace without any id of its own shows zeros
    if not re.sub(r"^(?:eui|uuid|nvme)\.|[0-]", "", wwid):
        raise Unresolvable(node, "this NVMe namespace tells nothing by which another host would know it")
    shared = any(transport in ("tcp", "rdma", "fc", "loop", "apple-nvme") for transport in _nvme_transports(host, sys))
    identity = f"nvme:{plain(wwid.lower())}"
    reasons = (f"the NVMe namespace {wwid}" + (", over a network" if shared else ""),)
    return Storage(identity, node, "nvme", others_see_it=shared, reasons=reasons)


def identity_of_serial(serial: str) -> Optional[str]:
    """
    The identity in a serial as scsi_id and multipath write it: a digit for the designator's type, then the
    designator.
    """
    if re.match(r"(?:eui|uuid|nvme)\.", serial):
        return f"nvme:{plain(serial.lower())}"
    if re.fullmatch(r"[23][0-9A-Fa-f]{16,}", serial):
        return f"lun:{'naa' if serial[0] == '3' else 'eui'}.{serial[1:].lower()}"
    if serial[:1] == "8":
        return f"lun:name.{plain(serial[1:])}"
    if serial[:1] == "1":
        return f"lun:t10.{plain(_squeezed(serial[1:]))}"
    return f"lun:serial.{plain(serial)}" if serial else None


def _as_leg(host: Host, sys: str, storage: Storage) -> Storage:
    for name in host.names(sys + "/holders"):
        if (host.text(f"/sys/class/block/{name}/dm/uuid") or "").startswith("mpath-"):
            map_ = host.text(f"/sys/class/block/{name}/dm/name") or name
            return storage._replace(
                not_writable=f"it is one path of the multipath map {map_}",
                instead=f"/dev/mapper/{map_}",
                others_see_it=True,
            )
    return storage


def _transport(host: Host, parent: str) -> str:
    """ "shared" if other hosts can be on it, "local" if it is this machine's own, "unknown"."""
    adapter = re.search(r"/host(\d+)/", parent + "/")
    driver = host.text(f"/sys/class/scsi_host/host{adapter.group(1)}/proc_name") or "" if adapter else ""
    if re.search(r"/(?:rport-\d|session\d+/)", parent) or driver in _NETWORK_HOSTS:
        return "shared"
    # SPC-4 6.4.2, TPGS: a unit that says which of several controllers to ask (ALUA) is an array's, on SAS as well.
    inquiry = host.bytes(parent + "/inquiry", 6) or b""
    if len(inquiry) == 6 and inquiry[5] & 0x30:
        return "shared"
    return "local" if _LOCAL_BUS.search(parent) or driver in _LOCAL_HOSTS else "unknown"


def _designator(page: bytes) -> Optional[Name]:
    """
    The best designator of the unit itself in a VPD page 0x83; of equals the first in order, so that all hosts agree.
    """
    found: List[Tuple[int, int, str, str]] = []
    end = min(len(page), 4 + int.from_bytes(page[2:4], "big")) if len(page) >= 4 and page[1] == 0x83 else 0
    at = 4
    while at + 4 <= end:
        coding, kind, length = page[at] & 0x0F, page[at + 1], page[at + 3]
        raw = page[at + 4 : at + 4 + length]
        at += 4 + length
        word = _TYPES.get(kind & 0x0F)
        # association 0 is the logical unit; 1 and 2 are the port and the target
        if kind & 0x30 or not word or at > end or not raw.strip(b"\0 "):
            continue
        text = raw.hex() if coding == 1 else _squeezed(raw.rstrip(b"\0").decode("latin-1"))
        text = text.lower() if word in ("naa", "eui") else plain(text)
        # NAA 6, IEEE registered extended, tells units of one array apart for certain
        best = 0 if word != "naa" else (0 if text[:1] == "6" else 2 if text[:1] == "3" else 1)
        found.append((list(_TYPES.values()).index(word), best, word, text))
    if not found:
        return None
    _, _, word, text = min(found)
    return Name(f"{word}.{text}", word in _WORLDWIDE, "by its VPD page 0x83")


def _by_wwid(host: Host, parent: str) -> Optional[Name]:
    word, dot, text = (host.text(parent + "/wwid") or "").partition(".")
    if word in ("naa", "eui") and dot:
        return Name(f"{word}.{text.lower()}", True, "by its wwid")
    return Name(f"t10.{plain(_squeezed(text))}", False, "by its wwid") if word == "t10" and text else None


def _by_udev(host: Host, device: Optional[Devno]) -> Optional[Name]:
    known = host.udev(device) if device else {}
    # ID_WWN alone is cut to 64 bits, and so the same for many units of one array
    wwn = known.get("ID_WWN_WITH_EXTENSION", "").lower()
    if re.fullmatch(r"0x[0-9a-f]{16}(?:[0-9a-f]{16})?", wwn):
        return Name(f"naa.{wwn[2:]}", True, "by udev")
    if known.get("ID_BUS") == "scsi" and known.get("ID_SERIAL"):
        text = (identity_of_serial(known["ID_SERIAL"]) or "").partition(":")[2]
        return Name(text, text.startswith(("naa.", "eui.")), "by udev") if text else None
    serial = known.get("ID_SERIAL")
    return Name(f"{known.get('ID_BUS', 'scsi')}-{serial}", False, "by udev") if serial else None


def _iscsi(host: Host, parent: str) -> Tuple[str, ...]:
    session = re.search(r"/(session\d+)/", parent)
    unit = re.search(r"/\d+:\d+:\d+:(\d+)$", parent)
    name = host.text(f"/sys/class/iscsi_session/{session.group(1)}/targetname") if session else None
    return (f"iscsi:{plain(name.lower())}/{unit.group(1)}",) if name and unit else ()


def _nvme_transports(host: Host, sys: str) -> List[str]:
    parent = host.target(sys + "/device") or sys.rpartition("/")[0]
    found = [host.text(parent + "/transport")]
    # with native multipathing the parent is the subsystem, which lists its controllers
    found += [host.text(f"{parent}/{name}/transport") for name in host.names(parent) if re.fullmatch(r"nvme\d+", name)]
    return [one for one in found if one]


def _mmc(host: Host, sys: str, parent: str) -> Optional[Storage]:
    cid = host.text(parent + "/cid")
    if not cid:
        return None
    area = re.sub(r"^mmcblk\d+", "", block.kname(sys))  # "", "boot0", "rpmb"
    identity = f"mmc:{plain(cid)}" + (f"/{area}" if area else "")
    return Storage(identity, block.node(host, sys), "mmc", reasons=(f"the card {cid}",))


def _squeezed(text: str) -> str:
    return re.sub(r"\s+", "_", text.strip())
