# SPDX-License-Identifier: LGPL-2.1-or-later
"""What guests of this host hold, for whoever watches over it: read from the records, again only where one has changed."""

import os
import time
from functools import partial
from typing import Dict, Iterator, List, NamedTuple, Optional, Tuple

from vmguard import instance
from vmguard.claims import Claim, lies_beneath
from vmguard.errors import RecordBroken
from vmguard.instance import Instance


class Held(NamedTuple):
    """One thing that a guest of this host has, alone or with others: a disk, or what lies behind one."""

    path: str  # by which it can be looked at
    identity: str
    device: str  # major:minor; "" for a file
    domain: str
    uuid: str
    since: float  # seconds since the epoch


class _Record(NamedTuple):
    which: Tuple[int, int]  # of the file: when it was written, and its inode
    held: List[Held]
    undecided: Optional[float]  # since when a start has been under way


# The clock of files goes on in steps of up to so much: what is written within one does not show. Nanoseconds.
_STEP = 20_000_000


# Character devices write files that are no volumes: virtlogd has them open for the guest, and puts large ones aside.
_CHARACTERS = ("channel", "console", "parallel", "redirdev", "rng", "serial", "smartcard")


class AllHeld:
    """All of it."""

    def __init__(self) -> None:
        self._records: Dict[str, _Record] = {}  # by file name
        self._folder = 0

    def __iter__(self) -> Iterator[Held]:
        for record in self._records.values():
            yield from record.held

    def undecided(self) -> List[float]:
        """Since when starts have been under way, each."""
        return [record.undecided for record in self._records.values() if record.undecided is not None]

    def refresh(self) -> bool:
        """Whether something may have changed."""
        try:
            folder = os.stat(instance.directory()).st_mtime_ns
        except OSError:
            return False
        if folder == self._folder:
            return False
        self._folder = folder if abs(time.time_ns() - folder) > _STEP else 0
        now: Dict[str, _Record] = {}
        for name in instance.names():
            try:
                found = os.stat(os.path.join(instance.directory(), name))
                which, known = (found.st_mtime_ns, found.st_ino), self._records.get(name)
                now[name] = known if known is not None and known.which == which else _read(name, which)
            except (OSError, RecordBroken):
                continue
        self._records = now
        return True

    def paths(self) -> Dict[str, List[Held]]:
        """By path: who has it, by this name first, and by others."""
        alike: Dict[str, List[Held]] = {}
        for one in self:
            alike.setdefault(one.identity, []).append(one)
        found: Dict[str, List[Held]] = {}
        for one in self:
            if one.path not in found:  # hundreds of guests may have one base
                found[one.path] = sorted(alike[one.identity], key=partial(_has_another_path, one.path))
        return found

    def devices(self) -> Dict[str, Held]:
        """By device number."""
        return {one.device: one for one in self if one.device}


def _read(name: str, which: Tuple[int, int]) -> _Record:
    one = instance.load(name)
    if one is None:
        return _Record(which, [], None)
    undecided = one.since if one.state in ("intent", "held") else None
    return _Record(which, _held_by(one) if one.state in ("held", "running") else [], undecided)


def _held_by(one: Instance) -> List[Held]:
    return [
        Held(_path(want.claim), want.claim.identity, want.claim.device, one.name, one.uuid, one.since)
        for want in one.wants
        if _path(want.claim) and not want.missing and not lies_beneath(want.claim)
        if want.claim.what.partition(" ")[0] not in _CHARACTERS
    ]


def _has_another_path(path: str, one: Held) -> bool:
    return one.path != path


def _path(claim: Claim) -> str:
    """A volume of a pool has none in the definition; as a device it has one for udev."""
    return claim.path if claim.path.startswith("/") else f"/dev/block/{claim.device}" if claim.device else ""
