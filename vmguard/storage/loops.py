# SPDX-License-Identifier: LGPL-2.1-or-later
"""Loop devices: a loop device is the file behind it."""

import os
import stat
import struct

from vmguard._typing import Dict, List, NamedTuple, Optional, Tuple
from vmguard.errors import Unresolvable
from vmguard.storage import Storage, block, files
from vmguard.storage.facts import Devno
from vmguard.storage.host import Host, words

LOOP_GET_STATUS64 = 0x4C05  # linux/loop.h
_STATUS = struct.Struct("=5Q4I")  # the head of struct loop_info64: device, inode, rdevice, offset, sizelimit, ...
_STATUS_SIZE = 232


class Behind(NamedTuple):
    """What the kernel has open behind a loop device."""

    device: Devno  # st_dev of the file
    inode: int
    rdev: Devno  # of the block device, if that is what is behind it
    offset: int
    limit: int


def behind(host: Host, sys: str) -> Behind:
    """What a loop device in use has behind it. Raises Unresolvable."""
    node = block.node(host, sys)
    try:
        answer = host.facts.ioctl(node, LOOP_GET_STATUS64, bytes(_STATUS_SIZE))
    except OSError as error:
        raise Unresolvable(node, f"the file behind this loop device could not be asked for: {words(error)}") from error
    device, inode, rdev, offset, limit, *_ = _STATUS.unpack_from(answer)
    # the kernel gives huge_encode_dev(), which is what makedev() of the C library makes for the numbers that exist
    return Behind(_split(device), inode, _split(rdev), offset, limit)


def resolve(host: Host, sys: str) -> Storage:
    """A loop device. Raises Unresolvable if the file behind it cannot be reached by the name that the kernel shows."""
    node = block.node(host, sys)
    name = host.text(sys + "/loop/backing_file")
    if name is None:
        raise Unresolvable(node, "nothing is behind this loop device")
    truth = behind(host, sys)
    if truth.rdev[0]:
        storage = block.resolve(host, truth.rdev)
    else:
        found = host.lookup(name)
        if not found or (found.device, found.inode) != (truth.device, truth.inode):
            raise Unresolvable(
                node, f"the file behind this loop device is no longer, or not here, to be found as {name}"
            )
        if not stat.S_ISREG(found.mode):
            raise Unresolvable(node, f"what is behind this loop device, {name}, is not a file")
        storage = files.resolve(host, name, found)
    notes: List[str] = [f"a loop device over {storage.path}"]
    if truth.offset or truth.limit:
        notes.append(
            "it shows a part of the file only, but nothing shows that parts do not overlap: it counts as the whole"
        )
    return storage._replace(path=node, kind="loop", reasons=(*notes, *storage.reasons))


def over(host: Host, file: Optional[Tuple[Devno, int]] = None, device: Optional[Devno] = None) -> List[str]:
    """
    The loop devices (their directories in sysfs) over a file, given by filesystem and inode, or over a block device.
    """
    found: List[str] = []
    for sys, truth in _all(host).items():
        if (file and not truth.rdev[0] and (truth.device, truth.inode) == file) or (device and truth.rdev == device):
            found.append(sys)
    return found


def _all(host: Host) -> Dict[str, Behind]:
    if host.loops is None:
        host.loops = {}
        for name in host.names("/sys/block"):
            sys = f"/sys/block/{name}"
            if not name.startswith("loop") or host.text(sys + "/loop/backing_file") is None:
                continue
            try:
                host.loops[host.realpath(sys)] = behind(host, sys)
            except Unresolvable as error:
                # An unprivileged session may not ask; then the kernel's name for the file is the best there is.
                guess = host.lookup(host.text(sys + "/loop/backing_file") or "")
                if not guess:
                    continue
                if "ermission" not in error.why:
                    raise
                rdev = guess.rdev if stat.S_ISBLK(guess.mode) else (0, 0)
                host.loops[host.realpath(sys)] = Behind(guess.device, guess.inode, rdev, 0, 0)
    return host.loops


def _split(number: int) -> Devno:
    return os.major(number), os.minor(number)
