# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Who opens what guests hold for writing, besides their QEMUs; and whether the files that they hold keep their names.

inotify tells that somebody has opened something, or closed it after writing, and not who: so all processes are looked through,
at once for all things that somebody has opened. What has just come to be held is looked for likewise: he may have had it open
before.

Whatever looks a path up is done in a thread: on storage that went away it does not come back.
"""

import asyncio
import os
import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Callable, Dict, Iterable, List, Optional, Set, Tuple

from vmguard import host
from vmguard.audit.held import Held
from vmguard.lint.inotify import Files

# The same thing is searched for so often at most. Seconds.
_AGAIN = 5.0
# Between two searches, whatever for. Seconds.
_PAUSE = 1.0
# A look at paths that takes longer has met storage that hangs. Seconds.
_HANGS = 30.0

Users = List[Tuple[int, str]]  # processes, each with its program's name


class Openers:
    """
    Watches over what is held.

    about(held, event, text, **data): what is done to it. unseen(text): what cannot be known. quiet(uuid): whether the files that
    a guest's QEMU has open are those of before: then it was not itself.
    """

    def __init__(self, about: Callable[..., None], unseen: Callable[[str], None], quiet: Callable[[str], bool]) -> None:
        """Raises OSError."""
        self._about = about
        self._unseen = unseen
        self._quiet = quiet
        self._files = Files()
        self._held: Dict[str, List[Held]] = {}
        self._due: Dict[str, bool] = {}  # what is to be searched for: whether it was written, and not by its guests
        self._searched: Dict[str, float] = {}
        self._known: Dict[str, Set[int]] = {}  # who had it open at the last search
        self._renamed: Set[str] = set()  # files of which the name may lead elsewhere now
        self._nameless: Set[str] = set()  # those of which that was told
        self._thread = ThreadPoolExecutor(1, "storage")
        self._jobs: List[Tuple[Future[Any], float]] = []
        self._full = False  # the kernel watches no more
        self._told = (False, False)  # of a thread that hangs, and of that
        self._task: Optional[asyncio.Task[None]] = None

    def fileno(self) -> int:
        """For those who wait for several things."""
        return self._files.fileno()

    def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
        self._files.close()

    def watch(self, held: Dict[str, List[Held]]) -> None:
        """What is held now, by path."""
        new, self._held = held.keys() - self._held.keys(), held
        self._known = {path: pids for path, pids in self._known.items() if path in held}
        self._nameless &= held.keys()
        self._submit(self._watch, sorted(held))
        self._search_for({path: False for path in new})

    def look(self) -> None:
        """Every few seconds: whether the thread comes on."""
        now = time.monotonic()
        self._jobs = [job for job in self._jobs if not job[0].done()]
        hangs = any(now - began > _HANGS for _, began in self._jobs)
        told = self._told
        self._told = (hangs, self._full)
        if hangs and not told[0]:
            self._unseen("who opens held volumes cannot be seen: storage hangs")
        if self._full and not told[1]:
            self._unseen("who opens held volumes cannot all be seen: fs.inotify.max_user_watches is too low")

    def happened(self) -> None:
        """inotify has something to say."""
        due: Dict[str, bool] = {}
        for path, what in self._files.changes():
            if not path:
                self._unseen("events of inotify got lost, because too many came at once")
            elif path not in self._held:
                continue
            elif what in ("moved", "changed"):
                self._renamed |= {path} if not self._held[path][0].device else set()
            else:
                due[path] = due.get(path, False) or what == "written"
        quiet = {path: written and all(self._quiet(one.uuid) for one in self._held[path]) for path, written in due.items()}
        self._search_for(quiet)

    # -- in the thread ---------------------------------------------------------------------------------------------------

    def _submit(self, work: Callable[..., Any], *arguments: Any) -> Future[Any]:
        job = self._thread.submit(work, *arguments)
        self._jobs.append((job, time.monotonic()))
        return job

    def _watch(self, paths: List[str]) -> None:
        self._full = not self._files.watch(paths)

    def _looked(self, due: Iterable[str], renamed: Iterable[str]) -> Tuple[Dict[str, Users], Dict[str, str]]:
        return writers(due), {path: self._files.name_of(path) for path in renamed}

    # -- searching -------------------------------------------------------------------------------------------------------

    def _search_for(self, due: Dict[str, bool]) -> None:
        for path, written in due.items():
            self._due[path] = self._due.get(path, False) or written
        if (self._due or self._renamed) and (self._task is None or self._task.done()):
            self._task = asyncio.ensure_future(self._search())

    async def _search(self) -> None:
        """As long as there is something to search for."""
        while self._due or self._renamed:
            now = time.monotonic()
            turn = [path for path in self._due if now - self._searched.get(path, -_AGAIN) >= _AGAIN]
            due, renamed = {path: self._due.pop(path) for path in turn}, self._renamed
            self._renamed = set()
            self._searched.update(dict.fromkeys(turn, now))
            if due or renamed:
                users, names = await asyncio.wrap_future(self._submit(self._looked, tuple(due), renamed))
                running = host.qemu_processes() if any(users.values()) else ()
                for path, written in due.items():
                    if path in self._held:
                        self._tell_users(self._held[path], written, users[path], running)
                for path, name in names.items():
                    self._tell_name(path, name)
            await asyncio.sleep(_PAUSE)
            self._searched = {path: at for path, at in self._searched.items() if time.monotonic() - at < _AGAIN}

    def _tell_users(self, held: List[Held], written: bool, users: Users, running: Iterable[host.Qemu]) -> None:
        uuids = {one.uuid for one in held}
        theirs = {qemu.process.pid for qemu in running if qemu.uuid in uuids}
        strangers = {pid: program for pid, program in users if pid not in theirs}
        known = self._known.get(held[0].path, set())
        for pid in sorted(strangers.keys() - known):
            text = f"{strangers[pid]} (pid {pid}) has it open for writing"
            self._about(held[0], "opened", text, pid=pid, program=strangers[pid])
        if written and not strangers and not known:
            self._about(held[0], "opened", "somebody had it open for writing, who has ended already")
        self._known.pop(held[0].path, None)
        if strangers:
            self._known[held[0].path] = set(strangers)

    def _tell_name(self, path: str, name: str) -> None:
        """Once for each time that it is lost."""
        if name and path in self._held and path not in self._nameless:
            word = "renamed" if name == "moved" else "removed"
            text = {"moved": "its file has another name now", "gone": "its file was removed"}
            self._about(self._held[path][0], word, text.get(name, "another file has taken its place"))
        self._nameless = self._nameless | {path} if name else self._nameless - {path}


def writers(paths: Iterable[str]) -> Dict[str, Users]:
    """The processes that have these files or devices open for writing; not we ourselves."""
    found: Dict[str, Users] = {path: [] for path in paths}
    wanted: Dict[Tuple[int, ...], List[str]] = {}
    for path in found:
        try:
            wanted.setdefault(_which(os.stat(path)), []).append(path)
        except OSError:
            continue
    for entry in os.listdir(host.PROC) if wanted else ():
        if entry.isdecimal() and int(entry) != os.getpid():
            written = {path for which in _written_by(entry, wanted) for path in wanted[which]}
            program = (host.read(f"{host.PROC}/{entry}/comm") or b"?").strip().decode("utf-8", "replace") if written else ""
            for path in written:
                found[path].append((int(entry), program))
    return found


def _which(found: os.stat_result) -> Tuple[int, ...]:
    return (found.st_rdev,) if found.st_rdev else (found.st_dev, found.st_ino)


def _written_by(pid: str, wanted: Dict[Tuple[int, ...], List[str]]) -> Set[Tuple[int, ...]]:
    folder = f"{host.PROC}/{pid}/fd"
    try:
        names = os.listdir(folder)
    except OSError:
        return set()
    found = set()
    for name in names:
        try:
            which = _which(os.stat(f"{folder}/{name}"))
        except OSError:
            continue
        if which in wanted and which not in found:
            lines = (host.read(f"{host.PROC}/{pid}/fdinfo/{name}") or b"").split(b"\n")
            flags = next((int(line.split()[1], 8) for line in lines if line.startswith(b"flags:")), 0)
            found |= {which} if flags & 0o3 else set()
    return found
