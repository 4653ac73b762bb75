# SPDX-License-Identifier: LGPL-2.1-or-later
"""
What is done to held volumes by others than their guests: resized, renamed, removed, snapshotted, mapped, mounted, written; and
which volumes come up here, of which another host may hold some.

    udev's events     pyudev, over netlink. They can get lost when too many come at once: then that is said, and everything
                      is looked at anew
    the mount table   the kernel tells when it changes
    inotify           on the files and device nodes: somebody has opened one, or closed it after writing (openers.py)

What it last knew lies in /run/vmguard, with the time when it last looked. An agent that comes back says from when until when
nobody watched, and what is different from before.
"""

import asyncio
import json
import os
import re
import select
import time
from contextlib import suppress
from typing import Any, Callable, Dict, List, Optional, Set, Tuple

from vmguard import host, paths
from vmguard.audit.held import AllHeld, Held
from vmguard.audit.openers import Openers
from vmguard.storage.host import mounts_in

SYS = "/sys"

# Between a look and the next one that time has passed without anybody watching is not worth a word below this. Seconds.
_UNNOTICED = 5.0

# What is remembered of a device: what sysfs says of it, and which storage object it is.
_FACTS = ("there", "size", "name", "uuid", "identity")

Tell = Callable[..., None]


def facts_of(device: str) -> Dict[str, Any]:
    """What sysfs says of a device: whether it is there, its size in bytes, name and uuid that device-mapper has for it."""
    base = f"{SYS}/dev/block/{device}"
    size = (host.read(base + "/size") or b"").strip()
    name = (host.read(base + "/dm/name") or b"").strip().decode("utf-8", "replace")
    uuid = (host.read(base + "/dm/uuid") or b"").strip().decode("utf-8", "replace")
    return {"there": bool(size), "size": int(size) * 512 if size.isdigit() else 0, "name": name, "uuid": uuid}


class Monitor:
    """
    Watches over what is held. tell(event, text, **data) is called for what is done to it.

    quiet(uuid): whether the files that a guest's QEMU has open are those of before: then it was not itself.
    """

    def __init__(self, tell: Tell, quiet: Callable[[str], bool]) -> None:
        self._tell = tell
        self._quiet = quiet
        self._held = AllHeld()
        self._changed = False  # other things are held than at the last look
        self._facts: Dict[str, Dict[str, Any]] = {}
        self._mounted: Set[str] = set()
        self._over: Set[Tuple[str, str]] = set()  # held device, and what lies on it
        self._openers: Optional[Openers] = None
        self._udev: Any = None
        self._mounts: Optional[Tuple[int, Any]] = None
        self._active: Set[str] = set()  # volumes of LVM on this host, by device number
        self._came_up: List[str] = []

    # -- coming and going ------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Listen, and say what happened while nobody did."""
        loop = asyncio.get_running_loop()
        before = self._remembered()
        try:
            self._openers = Openers(self._about, self._unseen, self._quiet)
            loop.add_reader(self._openers.fileno(), self._openers.happened)
        except OSError as error:
            self._openers = None
            self._unseen(f"who opens held volumes cannot be seen: inotify: {error.strerror}")
        self._listen_to_udev()
        self._listen_to_mounts()
        self._refresh()
        now = time.time()
        # In this boot nobody has watched yet: not since the first of what is held was taken.
        seen = before["seen"] if before is not None else min((one.since for one in self._held), default=now)
        if not 0 <= now - seen <= _UNNOTICED:  # of a clock that was set back nobody knows how long it was
            text = "nobody watched what was done to held volumes"
            self._tell("unseen", text, **{"from": min(seen, now), "to": now})
        if before is not None:
            self._facts, self._mounted, self._over = before["devices"], before["mounted"], before["over"]
        self._tell("watching", "vmguardd watches", boot=host.boot_id())
        self.look(everything=True)

    def stop(self) -> None:
        loop = asyncio.get_running_loop()
        if self._openers is not None:
            loop.remove_reader(self._openers.fileno())
            self._openers.close()
        if self._udev is not None:
            loop.remove_reader(self._udev.fileno())
        if self._mounts is not None:
            loop.remove_reader(self._mounts[1].fileno())
            os.close(self._mounts[0])
        self._openers = self._udev = self._mounts = None

    def _path(self) -> str:
        return os.path.join(paths.RUN, "watching.json")

    def _remembered(self) -> Optional[Dict[str, Any]]:
        try:
            with open(self._path(), encoding="ascii") as file:
                found = json.load(file)
            known = {number: {key: one[key] for key in _FACTS} for number, one in found["devices"].items()}
            over = {(below, above) for below, above in found["over"]}
            seen = os.stat(self._path()).st_mtime
            return {"seen": seen, "devices": known, "mounted": set(found["mounted"]), "over": over}
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return None  # of another version: as if nobody had watched

    def _remember(self) -> None:
        temporary = self._path() + ".tmp"
        kept = {"devices": self._facts, "mounted": sorted(self._mounted), "over": sorted(self._over)}
        try:
            with open(temporary, "w", encoding="ascii") as file:
                json.dump(kept, file)
            os.rename(temporary, self._path())
        except OSError:
            pass

    def _refresh(self) -> None:
        """See what is held now. Whoever sees that it has changed, the next look has to know."""
        self._changed = self._held.refresh() or self._changed

    # -- looking ---------------------------------------------------------------------------------------------------------

    def look(self, everything: bool = False) -> None:
        """Every few seconds: whether other things are held; that we are there."""
        self._refresh()
        changed, self._changed = self._changed, False
        if self._openers is not None:
            if changed:
                self._openers.watch(self._held.paths())
            self._openers.look()
        if changed or everything:
            devices = self._held.devices()
            self._facts = {number: known for number, known in self._facts.items() if number in devices}
            for number, one in devices.items():
                self._compare(number, one)
            self._see_mounts()
            self._remember()
            return
        try:
            os.utime(self._path())
        except OSError:
            self._remember()

    def _compare(self, number: str, one: Held) -> None:
        """Tell what is different about a device."""
        now: Dict[str, Any] = {**facts_of(number), "identity": one.identity}
        before = self._facts.get(number)
        self._facts[number] = now
        if before is not None and before.get("identity") != one.identity:
            before = None  # the number was another device's
        self._see_above(number, one)
        if before is None or now == before:
            return
        if before["there"] and not now["there"]:
            self._about(one, "removed", "its device is gone")
        elif now["size"] != before["size"]:
            self._about(one, "resized", f"from {before['size']} to {now['size']} bytes", size=now["size"])
        if now["there"] and now["name"] != before["name"]:
            self._about(one, "renamed", f"from {before['name']} to {now['name']}", name=now["name"])

    def _see_above(self, number: str, one: Held) -> None:
        """What lies on a held device: a mapping of its partitions, a volume group of the guest's."""
        try:
            now = {(number, name) for name in os.listdir(f"{SYS}/dev/block/{number}/holders")}
        except OSError:
            now = set()
        for _, name in sorted(now - self._over):
            mapped = (host.read(f"{SYS}/block/{name}/dm/name") or name.encode()).strip().decode("utf-8", "replace")
            self._about(one, "mapped", f"{mapped} lies on it now, on the host", name=mapped)
        self._over = {pair for pair in self._over if pair[0] != number} | now

    def _about(self, one: Held, event: str, text: str, **data: Any) -> None:
        self._tell(
            event, f"{one.path}: {text}", domain=one.domain, uuid=one.uuid, path=one.path, identity=one.identity, **data
        )

    def _unseen(self, text: str) -> None:
        """Something happened, and nobody knows what."""
        now = time.time()
        self._tell("unseen", text, **{"from": now, "to": now})

    def came_up(self) -> List[str]:
        """Volumes of LVM that have become active on this host since the last call, and that no guest of it holds."""
        found, self._came_up = self._came_up, []
        return found

    def undecided(self) -> List[float]:
        """Since when starts of guests have been under way on this host, each; as of the last look."""
        return self._held.undecided()

    # -- udev ------------------------------------------------------------------------------------------------------------

    def _listen_to_udev(self) -> None:
        try:
            import pyudev
        except ImportError:
            return  # what can be seen without it is looked at every few seconds
        try:
            monitor = pyudev.Monitor.from_netlink(pyudev.Context(), source="udev")
            monitor.filter_by("block")
            with suppress(OSError):
                monitor.set_receive_buffer_size(4 << 20)
            monitor.start()
        except (OSError, ValueError):
            return
        self._udev = monitor
        with suppress(OSError):
            for name in os.listdir(f"{SYS}/class/block"):
                if (host.read(f"{SYS}/class/block/{name}/dm/uuid") or b"").startswith(b"LVM-"):
                    number = host.read(f"{SYS}/class/block/{name}/dev") or b""
                    self._active.add(number.strip().decode("ascii", "replace"))
        asyncio.get_running_loop().add_reader(monitor.fileno(), self._from_udev)

    def _from_udev(self) -> None:
        while self._udev is not None:
            try:
                device = self._udev.poll(timeout=0)
            except OSError:
                self._unseen("events of udev got lost, because too many came at once")  # ENOBUFS
                self.look(everything=True)
                return
            if device is None:
                return
            self.happened(device.action or "", device.device_number, dict(device.properties))

    def happened(self, action: str, number: int, properties: Dict[str, str]) -> None:
        """One event of a block device."""
        self._refresh()
        devices = self._held.devices()
        device = f"{os.major(number)}:{os.minor(number)}"
        one = devices.get(device)
        uuid, name = properties.get("DM_UUID", ""), properties.get("DM_NAME", "")
        if action == "remove":
            self._active.discard(device)
        elif device not in self._active and re.fullmatch("LVM-[0-9A-Za-z]{64}", uuid) and name:  # no layer of a volume
            self._active.add(device)
            if one is None:
                self._came_up.append("/dev/mapper/" + name)
        if one is not None:
            if action == "remove":
                known = {"there": True, "size": 0, "name": "", "uuid": "", "identity": one.identity}
                self._facts.setdefault(one.device, known)
            self._compare(one.device, one)
            self._remember()
            return
        self._lies_on(device, devices)
        # A snapshot of a volume is a device whose uuid is the origin's with a layer behind it.
        for held in devices.values():
            known = self._facts.get(held.device, {}).get("uuid", "")
            if action == "add" and known and uuid == known + "-real":
                self._about(held, "snapshotted", "a snapshot of it was made")

    def _lies_on(self, number: str, devices: Dict[str, Held]) -> None:
        """Another device has changed: it may have come to lie on one that is held."""
        base = f"{SYS}/dev/block/{number}/slaves"
        try:
            names = os.listdir(base)
        except OSError:
            return
        for name in names:
            below = (host.read(f"{base}/{name}/dev") or b"").strip().decode("ascii", "replace")
            if below in devices:
                self._see_above(below, devices[below])

    # -- mounts ----------------------------------------------------------------------------------------------------------

    def _listen_to_mounts(self) -> None:
        """The mount table is always readable: what tells of a change is an error condition (proc(5)), so not in our loop's."""
        try:
            fd = os.open(f"{host.PROC}/self/mountinfo", os.O_RDONLY | os.O_CLOEXEC)
            poll = select.epoll()
            poll.register(fd, select.EPOLLPRI | select.EPOLLERR)
        except OSError:
            return
        self._mounts = (fd, poll)
        asyncio.get_running_loop().add_reader(poll.fileno(), self._mounts_changed)

    def _mounts_changed(self) -> None:
        if self._mounts is not None:
            self._mounts[1].poll(0)
        self._refresh()
        self._see_mounts()

    def _see_mounts(self) -> None:
        devices = self._held.devices()
        now = {}
        for mount in mounts_in(host.read(f"{host.PROC}/self/mountinfo") or b""):
            # By FUSE any user mounts, and gives the source whatever name he likes: one that leads where nothing answers.
            source = "" if mount.type.startswith("fuse") else mount.source
            for number in ("{}:{}".format(*mount.device), _number_of(source)):
                if number in devices:
                    now[f"{number} {mount.point}"] = (devices[number], mount.point)
        for key in now.keys() - self._mounted:
            one, place = now[key]
            self._about(one, "mounted", f"it is mounted on {place}, on the host", place=place)
        self._mounted = set(now)


def _number_of(source: str) -> str:
    if not source.startswith("/dev/"):
        return ""
    try:
        number = os.stat(source).st_rdev
    except OSError:
        return ""
    return f"{os.major(number)}:{os.minor(number)}"
