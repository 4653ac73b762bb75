# SPDX-License-Identifier: LGPL-2.1-or-later
"""NFS, from both ends: what a client sees, and what this host serves to others."""

from vmguard._light import re
from vmguard._typing import Optional, Tuple
from vmguard.errors import Unresolvable
from vmguard.storage.facts import Devno
from vmguard.storage.host import Host, Mount, inside, unescape, within

_VOLUMES = "/proc/fs/nfsfs/volumes"
_EXPORTS = "/var/lib/nfs/etab"


def fsid(host: Host, path: str, device: Devno) -> Tuple[str, Tuple[str, ...]]:
    """
    The id that the server gives a filesystem, equal on all clients and for all of the server's names, and other
    forms of it.

    Raises Unresolvable.
    """
    for line in (host.text(_VOLUMES) or "").splitlines()[1:]:
        # NV SERVER PORT DEV FSID FSC, as nfs_volume_list_show prints them
        columns = line.split()
        if len(columns) < 5 or columns[3] != f"{device[0]}:{device[1]}":
            continue
        major, _, minor = columns[4].partition(":")
        try:
            return _forms(int(major, 16), int(minor, 16))
        except ValueError:
            break
    raise Unresolvable(path, f"{_VOLUMES} does not show the filesystem id of its NFS server")


def _forms(major: int, minor: int) -> Tuple[str, Tuple[str, ...]]:
    text = f"{major:x}:{minor:x}"
    if not minor:
        return text, ()
    # Linux' NFS server makes the 64 bits of version 3 from the 128 of version 4 so (nfsd, encode_fsid,
    # FSIDSOURCE_UUID): a host that mounted version 3 and one that mounted version 4 mean one file.
    folded = int.from_bytes((major ^ minor).to_bytes(8, "big"), "little")
    return text, (f"{folded:x}:0",)


def exported(host: Host, real: str, mount: Mount) -> Optional[str]:
    """
    Why a local path may not be written: this host serves it by NFS, where it has another identity. None if it does
    not.
    """
    here = within(mount, real)
    for line in (host.text(_EXPORTS) or "").splitlines():
        name, _, clients = line.partition("\t")
        directory = unescape(name)
        found = host.lookup(directory) if directory.startswith("/") else None
        top = host.target(directory) if found else None
        if not found or not top:
            continue
        served = host.mount_of(found, top)
        places = [(served.device, within(served, top))]
        if "crossmnt" in re.split(r"[(),]", clients):
            # What is mounted below is served with it.
            places += [(below.device, below.root) for below in host.mounts() if inside(below.point, top)]
        if any(device == mount.device and inside(here, root) for device, root in places):
            return f"this host serves {directory} by NFS, and other hosts know the file by another identity"
    return None
