# SPDX-License-Identifier: LGPL-2.1-or-later
"""
What udev is to know of the devices that guests hold: a file for each under /run/vmguard/udev, by device number, and a change
event. udev/62-vmguard-hold.rules and 65-vmguard.rules read the file; no program is run by a rule.

The number cannot come to mean another device while the guest has it open. Nothing here may fail: what udev knows is for
people and for the host's own tools, and no guest waits for it.
"""

import os

from vmguard import paths
from vmguard._typing import Iterable, List, Tuple
from vmguard.claims import Mode
from vmguard.host import read
from vmguard.instance import Instance, Want
from vmguard.text import plain

SYS = "/sys"


def _folder() -> str:
    return os.path.join(paths.RUN, "udev")


def marked(wants: Iterable[Want]) -> Tuple[Want, ...]:
    """Those wants that are about a block device which the guest itself has: not what lies under it."""
    return tuple(want for want in wants if want.claim.device and not want.missing)


def put(one: Instance, wants: Iterable[Want]) -> None:
    """These are held by this instance."""
    for want in marked(wants):
        claim = want.claim
        lines = {
            "HELD": "1",
            "DOMAIN": one.name,
            "UUID": one.uuid,
            "IDENTITY": claim.identity,
            "MODE": Mode(claim.mode).value,
        }
        # Names of domains may hold anything: a line each, in ASCII, with no quote of either kind at its beginning: udev takes
        # away the two around a value, and the value with it where there is one.
        text = "".join(f"VMGUARD_{key}={_shown(value)}\n" for key, value in lines.items())
        path = os.path.join(_folder(), claim.device)
        if read(path) == text.encode():
            continue
        try:
            os.makedirs(_folder(), mode=0o755, exist_ok=True)
            temporary = f"{path}.{os.getpid()}.tmp"
            with open(temporary, "w", encoding="ascii") as file:
                file.write(text)
            os.rename(temporary, path)
        except OSError:
            continue
        _trigger(claim.device)


def _shown(value: str) -> str:
    text = plain(value).encode("ascii", "backslashreplace").decode().strip()
    return f"\\x{ord(text[0]):02x}{text[1:]}" if text.startswith(("'", '"')) else text


def drop(wants: Iterable[Want], others: Iterable[Instance]) -> None:
    """These are held no longer; others: the instances that are left."""
    gone = {want.claim.device for want in marked(wants)}
    if not gone:
        return
    for other in others:
        theirs = [want for want in marked(other.wants) if want.claim.device in gone]
        if theirs and other.state not in ("intent", "over", "draining"):
            put(other, theirs)
            gone -= {want.claim.device for want in theirs}
    for device in gone:
        remove(device)


def stray(records: Iterable[Instance]) -> List[str]:
    """What is in the folder for no record: a device that no guest has would be hidden from its host. Under the host lock."""
    known = {want.claim.device for one in records for want in marked(one.wants)}
    try:
        return sorted(set(os.listdir(_folder())) - known)
    except OSError:
        return []


def remove(device: str) -> None:
    """Let the host have this device back."""
    try:
        os.unlink(os.path.join(_folder(), device))
    except OSError:
        return
    _trigger(device)


def _trigger(device: str) -> None:
    """A change event for a device and its partitions: the kernel takes it at once, and nobody waits for udev."""
    base = f"{SYS}/dev/block/{device}"
    places: List[str] = [base]
    try:
        places += [entry.path for entry in os.scandir(base + "/") if os.path.exists(entry.path + "/partition")]
    except OSError:
        return  # it has gone
    for place in places:
        try:
            fd = os.open(place + "/uevent", os.O_WRONLY | os.O_CLOEXEC)
            try:
                os.write(fd, b"change")
            finally:
                os.close(fd)
        except OSError:
            pass
