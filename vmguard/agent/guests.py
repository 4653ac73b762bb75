# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Which QEMUs run on this host, and whether what they have open may have changed: for hundreds of them, every few seconds, at
a cost that does not show.

libvirt writes a guest's status file after everything that it does to its disks, also after a snapshot or a change of media,
of which no event tells: that is what the daemon listens for (inotify). What is looked at here is for what goes past libvirt, or
past our ears:

* the number of open files of each QEMU, which is the size of /proc/PID/fd (Linux 6.2 and later): one call;
* which these are, where the number alone does not tell: of so many QEMUs at each look that every one's turn comes round;
* whether what was no QEMU has become one, in the same way: a script that ends with exec, another process of the same number.
"""

import os
import time
from typing import Dict, FrozenSet, Iterator, List, Optional

from vmguard import host
from vmguard.host import Process, Qemu

# Every QEMU's files are listed, and every other process is asked whether it is one, once in so many looks.
_ROUND = 30

# A process is forked by libvirt before it becomes QEMU: a new one is asked each time for so long. Seconds.
_BECOMES = 60.0


class Guest:
    """A QEMU that runs, and what is known of the last look at it."""

    __slots__ = (
        *("qemu", "due", "noticed", "spare", "contested_since", "told"),
        *("urgent", "busy", "acting", "acted", "_count", "_files"),
    )

    def __init__(self, qemu: Qemu) -> None:
        self.qemu = qemu
        self.due: Optional[float] = 0.0  # when it is to be looked at, by the monotonic clock; None: when something changes
        self.noticed = time.monotonic()  # when what the next look is for was noticed
        self.spare: Dict[str, float] = {}  # identities that nothing seems to need, each since when
        self.contested_since: Optional[float] = None
        self.told: FrozenSet[str] = frozenset()
        self.urgent = False  # whether libvirt has told of it: before those that are only looked at now and then
        self.busy = False  # it is just being looked at
        self.acting = False  # something is being done about a conflict
        self.acted: FrozenSet[str] = frozenset()  # identities of conflicts about which something has been done
        self._count = -1
        self._files = 0

    @property
    def process(self) -> Process:
        return self.qemu.process

    def wake(self, after: float = 0.0) -> None:
        """Let it be looked at, at the latest after so many seconds."""
        now = time.monotonic()
        if self.due is None or self.due > now + after:
            self.due = now + after
            self.noticed = now

    def remember(self) -> None:
        """Just before a look: changes from here on wake it again."""
        self._count, self._files = self._number(), self._list()

    def changed(self, closely: bool) -> bool:
        """Whether its open files are others than before the last look. closely: whichever they are, not only how many."""
        return self._number() != self._count or (closely and self._list() != self._files)

    def _number(self) -> int:
        try:
            return os.stat(f"{host.PROC}/{self.process.pid}/fd").st_size
        except OSError:
            return -1

    def _list(self) -> int:
        """Which files it has open, as one number: of hundreds of guests the names would be megabytes."""
        folder = f"{host.PROC}/{self.process.pid}/fd"
        found = []
        try:
            for name in os.listdir(folder):
                try:
                    target = os.readlink(f"{folder}/{name}")
                except OSError:
                    continue
                if target.startswith("/"):
                    found.append(f"{name} {target}")
        except OSError:
            return 0
        return hash(tuple(sorted(found)))


class Guests:
    """All of this host."""

    def __init__(self) -> None:
        self.by_pid: Dict[int, Guest] = {}
        self._strangers: Dict[int, float] = {}  # processes that are no QEMU: since when they are known
        self._turn = 0
        self._scans = 0
        self._counts = _counts_files()

    def __iter__(self) -> Iterator[Guest]:
        return iter(self.by_pid.values())

    def __len__(self) -> int:
        return len(self.by_pid)

    def of_name(self, name: str) -> List[Guest]:
        return [guest for guest in self if guest.qemu.name == name]

    def of(self, process: Process) -> Optional[Guest]:
        """The guest of this very process."""
        guest = self.by_pid.get(process.pid)
        return guest if guest is not None and guest.process == process else None

    def scan(self) -> List[Guest]:
        """See who has come and gone. Returns those who have gone."""
        now = time.monotonic()
        pids = {int(name) for name in os.listdir(host.PROC) if name.isdecimal()}
        self._scans += 1
        for pid in pids:
            seen = self._strangers.get(pid)
            its_turn = seen is None or now - seen <= _BECOMES or (pid + self._scans) % _ROUND == 0
            if pid in self.by_pid or not its_turn:
                continue
            qemu = host.qemu(pid)
            if qemu is not None:
                self.by_pid[pid] = Guest(qemu)
                self._strangers.pop(pid, None)
            elif seen is None:
                self._strangers[pid] = now
        for pid in self._strangers.keys() - pids:
            del self._strangers[pid]
        # Another process of the same number has other files open: that is noticed, and then it is asked who it is.
        gone = [guest for pid, guest in self.by_pid.items() if pid not in pids]
        for guest in gone:
            del self.by_pid[guest.process.pid]
        return gone

    def look(self) -> None:
        """Wake those whose open files have changed."""
        self._turn += 1
        for guest in self:
            closely = not self._counts or (guest.process.pid + self._turn) % _ROUND == 0
            if guest.due is None and guest.changed(closely):
                guest.wake()


def _counts_files() -> bool:
    """Whether the size of /proc/PID/fd is the number of open files."""
    try:
        return os.stat("/proc/self/fd").st_size > 0
    except OSError:
        return False
