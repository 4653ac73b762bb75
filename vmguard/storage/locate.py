# SPDX-License-Identifier: LGPL-2.1-or-later
"""From a location, as a domain names it, to storage: which resolver is asked."""

import stat

from vmguard._typing import Tuple
from vmguard.domain import HostPath, Location, NetworkVolume, NvmeNamespace, PciDevice, PoolVolume, ScsiUnit, UsbDevice
from vmguard.errors import Unresolvable
from vmguard.storage import Storage, block, devices, files, network, pools
from vmguard.storage.facts import Facts
from vmguard.storage.host import Host, check_path

# Locations of one definition are asked for more than once, and bases by many definitions.
_KEPT = 2000


def resolve(location: Location, facts: Facts) -> Tuple[Storage, ...]:
    """See `vmguard.storage.resolve`."""
    host = Host.of(facts)
    if host.kept is None:
        return _resolve(host, location)
    key = (type(location), location)  # locations of two kinds may have equal fields
    found = host.kept.get(key)
    if found is None:
        found = _resolve(host, location)
        if len(host.kept) >= _KEPT:
            host.kept.clear()
        host.kept[key] = found
    return found


def _resolve(host: Host, location: Location) -> Tuple[Storage, ...]:
    if isinstance(location, PoolVolume):
        location = pools.locate(host, location)
    if isinstance(location, HostPath):
        return path(host, location.path)
    if isinstance(location, NetworkVolume):
        return (network.resolve(host, location),)
    if isinstance(location, NvmeNamespace):
        return (devices.nvme(host, location),)
    if isinstance(location, PciDevice):
        return devices.pci(host, location)
    if isinstance(location, ScsiUnit):
        return devices.scsi(host, location)
    if isinstance(location, UsbDevice):
        return devices.usb(host, location)
    raise Unresolvable(str(location)[:200], "it is not a kind of location that is known")


def path(host: Host, name: str) -> Tuple[Storage, ...]:
    """What a path is; nothing for what keeps no data (sockets, fifos, terminals, /dev/null). Raises Unresolvable."""
    check_path(name)
    found = host.stat(name)
    if stat.S_ISREG(found.mode) or stat.S_ISDIR(found.mode):
        return (files.resolve(host, name, found),)
    if stat.S_ISBLK(found.mode):
        return (block.resolve(host, found.rdev, name),)
    if stat.S_ISCHR(found.mode):
        return devices.character(host, found.rdev, name)
    return ()
