# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The process: one event loop, which waits for events and for nothing else.

It is woken by the files that libvirt writes (status, definitions), by libvirt's events, and every few seconds. Guests of
which something may have changed are looked at in a child, some at a time, one child at a time. What the child finds comes back
in lines, so that one that hangs loses no more than the guest that it hangs at.
"""

import asyncio
import itertools
import json
import os
import signal
import sys
import time
import traceback
from typing import Any, Dict, List, Optional, Sequence, Set, Tuple

from vmguard import __version__, deadline, events, host, libvirtstate, paths
from vmguard.agent import looking, notify, work
from vmguard.agent.defining import Definitions
from vmguard.agent.guests import Guest, Guests
from vmguard.agent.hearing import Hearing
from vmguard.agent.looking import Seen
from vmguard.agent.standing import Standing
from vmguard.arrivals import DEFINITIONS
from vmguard.audit.monitor import Monitor
from vmguard.config import Config, Guarding, OnConflict, load, written
from vmguard.errors import Misconfigured
from vmguard.leases import store
from vmguard.lint.inotify import Folders

# How often it looks for what no event tells of. Seconds.
_LOOK = 2.0
# With more guests than these it looks in turns who runs and what they have open: else it would show where nothing happens.
_MANY = 100
# Guests that one child looks at: those that are urgent wait no longer than for so many.
_TOGETHER = 8
# Such children at a time; the last is for guests that libvirt has told of.
_LOOKS = 3
# A guest that a look hung at is left alone for so long. Seconds.
_HUNG = 60.0
# After a guest's end its `release` comes within one. Seconds.
_RELEASED = 3.0
# What could not be given back then is tried again so often. Seconds.
_SWEPT_AGAIN = 30.0
# A start is over within moments. After so long, and then so often, it is seen whether its hook and libvirtd still live: a sweep
# waits for a hook that does. Seconds.
_UNDECIDED, _UNDECIDED_AGAIN = 5.0, 10.0

# Programs of the administrator's that run at a time: five hundred guests may come to have something to tell at once.
_COMMANDS = 4

_LASTING = ("alarm", "not-inspected", "unidentified", "conflict")

_CODE = "import sys; sys.path.insert(0, sys.argv[1]); from vmguard.agent.acting import main; sys.exit(main(sys.argv[2:]))"
_LIBRARY = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


class Agent:
    """The agent of one host."""

    def __init__(self) -> None:
        self.guests = Guests()
        self.definitions = Definitions(self._say)
        self.hearing = Hearing(self._heard, self.definitions.changed)
        self.monitor = Monitor(self._say, self._is_quiet)
        self.standing = Standing(self._say, self._begin, lambda: self._config, self.monitor.came_up, _LIBRARY)
        self._folders: Optional[Folders] = None
        self._watched: Dict[str, int] = {}  # folder: its inode
        self._woken = asyncio.Event()
        self._gone: List[Guest] = []
        self._looks = 0  # children that look at guests just now
        self._sweep: Optional[float] = 0.0  # when to sweep, by the monotonic clock
        self._sweeps = False  # a child does it
        self._leftovers_next = 0.0  # when to look for such, by the monotonic clock
        self._acting: Set[asyncio.Task[None]] = set()
        self._config: Optional[Config] = None
        self._read: Tuple[Tuple[Any, ...], ...] = ()  # which files that was in, and when they were written
        self._told_of_config = ""
        self._commands = asyncio.Semaphore(_COMMANDS)

    # -- what wakes it ---------------------------------------------------------------------------------------------------

    def _heard(self, uuid: str, _event: str) -> None:
        """libvirt tells of a domain; or we have not heard it for a while."""
        self._gone += self.guests.scan()
        for guest in self.guests:
            if not uuid or guest.qemu.uuid == uuid:
                guest.urgent = guest.urgent or bool(uuid)
                guest.wake()
        self._woken.set()

    def _watch(self) -> None:
        """Listen to the folders of libvirt, as soon as they are there; again when they are others."""
        now = {}
        for folder in (libvirtstate.STATUS, DEFINITIONS):
            try:
                now[folder] = os.stat(folder).st_ino
            except OSError:
                continue
        if now == self._watched:
            return
        self._unwatch()
        try:
            self._folders = Folders(now)
        except OSError:
            return  # the next look tries again
        self._watched = now
        asyncio.get_running_loop().add_reader(self._folders.fileno(), self._files)
        self._heard("", "folders")

    def _unwatch(self) -> None:
        if self._folders is not None:
            asyncio.get_running_loop().remove_reader(self._folders.fileno())
            self._folders.close()
        self._folders, self._watched = None, {}

    def _files(self) -> None:
        assert self._folders is not None
        for path, _there in self._folders.changes(0):
            folder, name = os.path.split(path)
            if not path:
                self._heard("", "overflow")
            elif folder == DEFINITIONS:
                if name.endswith(".xml"):
                    self.definitions.changed(name[:-4])
            elif name.endswith(".xml"):
                self._status_written(name[:-4])

    def _status_written(self, name: str) -> None:
        found = self.guests.of_name(name)
        if not found:
            self._gone += self.guests.scan()
            found = self.guests.of_name(name)
        for guest in found:
            guest.urgent = True
            guest.wake()
        self._woken.set()

    def _is_quiet(self, uuid: str) -> bool:
        """Whether the QEMU of a guest has the same files open as before: one that has just ended has closed them itself."""
        mine = [guest for guest in self.guests if guest.qemu.uuid == uuid and host.alive(guest.process)]
        return bool(mine) and not any(guest.due is not None or guest.changed(True) for guest in mine)

    # -- what it does ----------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Until it is cancelled."""
        standing = (self.standing.keep(), self.standing.rely())
        kept = (self._every_few_seconds(), self.hearing.keep(), self.definitions.keep(), *standing)
        tasks = [asyncio.ensure_future(one) for one in kept]
        for task in tasks:
            task.add_done_callback(lambda _: self._woken.set())
        seconds = notify.watchdog()
        if seconds is not None:
            tasks.append(asyncio.ensure_future(_keep_alive(seconds / 3)))
        try:
            while True:
                await self._look_at_those_due()
                await self._wait()
                for task in tasks:
                    if task.done():
                        task.result()  # an error that nobody meant ends us, and systemd starts us anew
        finally:
            for task in [*tasks, *self._acting]:
                task.cancel()
            self.monitor.stop()
            self._unwatch()

    async def _every_few_seconds(self) -> None:
        for turn in itertools.count():
            self._watch()
            many = len(self.guests) > _MANY
            if not many or turn % 2 == 0:
                self._gone += self.guests.scan()
            if turn and (not many or turn % 2 == 1):
                self.guests.look()
            if turn == 0:
                self.monitor.start()
                notify.say(f"READY=1\nSTATUS=watching {len(self.guests)} guests")
            else:
                self.monitor.look()
                self._see_leftovers()
            self._woken.set()
            work.reap()
            self.standing.look()
            await asyncio.sleep(_LOOK)

    def _see_leftovers(self) -> None:
        """A hook or libvirtd that was killed leaves what it had taken, and other hosts would be refused for it."""
        now, soon = time.time(), time.monotonic()
        if self._config is None or self._sweep is not None or self._sweeps or soon < self._leftovers_next:
            return
        if any(not 0 <= now - since <= _UNDECIDED for since in self.monitor.undecided()):  # a clock may jump
            self._sweep, self._leftovers_next = soon, soon + _UNDECIDED_AGAIN

    async def _wait(self) -> None:
        # Those that wait for a child are begun when one ends, which wakes us.
        due = [guest.due for guest in self.guests if guest.due is not None and not guest.busy]
        if self._looks >= _LOOKS - 1:
            due = [at for at in due if at > time.monotonic()]
        due += [self._sweep] if self._sweep is not None and self._config is not None else []
        pause = min(due) - time.monotonic() if due else None
        if pause is not None and pause <= 0:
            return
        try:
            await asyncio.wait_for(self._woken.wait(), pause)
        except asyncio.TimeoutError:
            pass
        self._woken.clear()

    def _settings(self) -> Optional[Config]:
        """The configuration, as it is now; None where nothing is to be guarded."""
        try:
            now = written()
            if now == self._read:
                return self._config
            self._read = ()
            config = load()
            store.load(config.store or "")
        except Misconfigured as error:
            if str(error) != self._told_of_config:
                events.record("alarm", f"vmguardd cannot work: {error.where}: {error.why}")
            self._told_of_config = str(error)
            return None
        self._read, self._told_of_config = now, ""
        return config if config.store is not None and config.mode is not Guarding.OFF else None

    async def _look_at_those_due(self) -> None:
        """Begin what is due, as far as children are free: one that hangs must not keep the others from being looked at."""
        now = time.monotonic()
        due = sorted((one for one in self.guests if one.due is not None and one.due <= now and not one.busy), key=_urgency)
        self._gone += [guest for guest in due if not host.alive(guest.process)]
        for guest in self._gone:
            if self.guests.of(guest.process) is not None:
                del self.guests.by_pid[guest.process.pid]
        if self._gone:
            self._sweep = now + _RELEASED
        self._gone.clear()
        self._config = self._settings()
        if self._config is None:
            for guest in due:
                guest.due = None
                guest.wake(looking.LATER)
            return
        if self._sweep is not None and self._sweep <= now:
            self._sweep, self._sweeps = None, True
            self._begin(self._swept(self._config.deadline))
        while due and self._looks < (_LOOKS if due[0].urgent else _LOOKS - 1):
            alike = [guest for guest in due if guest.urgent is due[0].urgent]
            chosen = alike[:_TOGETHER]
            due = [guest for guest in due if guest not in chosen]
            for guest in chosen:
                guest.due, guest.urgent, guest.busy = None, False, True
            self._looks += 1
            self._begin(self._look(chosen, self._config))

    async def _swept(self, seconds: float) -> None:
        found: List[work.Message] = []
        try:
            await work.child(looking.sweep, seconds, found.append)
        finally:
            self._sweeps = False
            # sanlock or the store do not answer: what killed the guest, perhaps. No hook may be called here for days.
            if all(message.get("left", True) for message in found) and self._sweep is None:
                self._sweep = time.monotonic() + _SWEPT_AGAIN
                self._woken.set()

    async def _look(self, chosen: Sequence[Guest], config: Config) -> None:
        try:
            await self._look_at(chosen, config)
        finally:
            for guest in chosen:
                guest.busy = False
            self._looks -= 1
            self._woken.set()

    async def _look_at(self, chosen: Sequence[Guest], config: Config) -> None:
        waiting = list(chosen)
        for guest in waiting:
            guest.remember()

        def look() -> None:
            for guest in chosen:
                now = time.monotonic()
                spare = [identity for identity, since in guest.spare.items() if now - since >= looking.SPARE]
                since = guest.contested_since
                contested_for = time.monotonic() - since if since is not None else 0.0
                seen = looking.look_at(guest.qemu, spare, contested_for, guest.noticed)
                deadline.tell(looking.as_message(guest.qemu, seen))

        doing = "starting"

        def heard(message: work.Message) -> None:
            nonlocal doing
            doing = message.get("doing", doing)
            if "seen" not in message:
                return
            process, seen = looking.from_message(message)
            guest = next((one for one in waiting if one.process == process), None)
            if guest is not None:
                waiting.remove(guest)
                guest.busy = False
                self._seen(guest, seen, config)

        try:
            ended = await work.child(look, config.deadline, heard)
        finally:
            for number, guest in enumerate(waiting):
                # The first is the one that it hung at; the others have not had their turn.
                guest.wake(_HUNG if number == 0 else 0.0)
        if ended.text:
            events.record("bug", ended.text, operation="agent")
        if waiting and not ended.whole:
            name = waiting[0].qemu.name
            text = f"what {name} has open could not be looked at: its storage, the store or sanlock hangs (it was {doing})"
            self._tell(waiting[0], "not-inspected", text, {})

    def _seen(self, guest: Guest, seen: Seen, config: Config) -> None:
        now = time.monotonic()
        guest.spare = {identity: guest.spare.get(identity, now) for identity in seen.spare}
        for event, text, data in seen.told:
            self._tell(guest, event, text, data)
        for event, text, data in seen.done:
            self._run_command(event, text, domain=guest.qemu.name, uuid=guest.qemu.uuid, **data)
        contested = bool(seen.conflicts) or seen.word == "trouble"
        if not contested:
            guest.contested_since = None
            guest.acted = frozenset()
            guest.told = frozenset(one for one in guest.told if one.startswith("unidentified"))
        elif guest.contested_since is None:
            guest.contested_since = time.monotonic()
        if seen.conflicts:
            self._conflict(guest, seen, config)
        if seen.again is not None:
            guest.wake(seen.again)

    def _tell(self, guest: Guest, event: str, text: str, data: Dict[str, Any]) -> None:
        """Write it down; what lasts, once."""
        known = f"{event} {text.partition(', since ')[0]}"
        if event in _LASTING and known in guest.told:
            return
        guest.told |= {known}
        seconds = round(time.monotonic() - guest.noticed, 3)
        self._say(event, text, domain=guest.qemu.name, uuid=guest.qemu.uuid, by="vmguardd", after=seconds, **data)

    def _say(self, event: str, text: str, **data: Any) -> None:
        events.record(event, text, **data)
        self._run_command(event, text, **data)

    def _run_command(self, event: str, text: str, **data: Any) -> None:
        command = self._config.command if self._config is not None else None
        if command:
            line = json.dumps({"event": event, "text": text, "host": host.name(), **data}, default=str)
            self._begin(_run_command(command, line, self._commands))

    def _begin(self, what: Any) -> None:
        task = asyncio.ensure_future(what)
        self._acting.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: "asyncio.Task[None]") -> None:
        self._acting.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None:
            trace = traceback.format_exception(type(error), error, error.__traceback__)
            events.record("bug", "".join(trace), operation="agent")

    # -- conflicts -------------------------------------------------------------------------------------------------------

    def _conflict(self, guest: Guest, seen: Seen, config: Config) -> None:
        for one in seen.conflicts:
            data = {key: one[key] for key in ("path", "identity", "holder", "holder_uuid") if one.get(key)}
            self._tell(guest, "conflict", f"{guest.qemu.name}: {one['text']}", data)
        if config.mode is Guarding.AUDIT or config.conflict is OnConflict.ALARM:
            return
        state = libvirtstate.of(guest.qemu.name, guest.process.pid)
        known = {one["identity"] for one in seen.conflicts} <= guest.acted  # a guest that is paused can still copy its disks
        # A process that is stopped itself is one that libvirt does not answer for: it goes on to call it running.
        if known and (host.stopped(guest.process) or (state is not None and state.state == "paused")):
            return  # contained
        if not guest.acting:
            guest.acting = True
            self._begin(self._act(guest, seen, config.conflict, guest.noticed))

    async def _act(self, guest: Guest, seen: Seen, policy: OnConflict, noticed: float) -> None:
        process = guest.process
        words = ["/usr/bin/python3", "-I", "-c", _CODE, _LIBRARY, policy.value, guest.qemu.uuid, guest.qemu.name]
        try:
            done = await work.program(
                [*words, str(process.pid), str(process.start)], json.dumps(seen.conflicts, default=str), 60
            )
        finally:
            guest.acting = False
            guest.acted |= {one["identity"] for one in seen.conflicts}
        what = done.text.strip().split("\n")[-1] if done.whole and done.status == 0 else f"in vain: {done.text.strip()}"
        seconds = round(time.monotonic() - noticed, 3)
        self._say(
            "contained" if done.status == 0 else "alarm",
            f"{guest.qemu.name}: {what}",
            domain=guest.qemu.name,
            uuid=guest.qemu.uuid,
            by="vmguardd",
            after=seconds,
            policy=policy.value,
            disks=[{"path": one["path"], "identity": one["identity"]} for one in seen.conflicts],
        )
        guest.wake()
        self._woken.set()


def _urgency(guest: Guest) -> Tuple[bool, float]:
    return not guest.urgent, guest.due or 0.0


async def _keep_alive(seconds: float) -> None:
    while True:
        notify.say("WATCHDOG=1")
        await asyncio.sleep(seconds)


async def _run_command(command: str, line: str, turns: asyncio.Semaphore) -> None:
    try:
        async with turns:
            done = await work.program([command], line + "\n", 30)
        if done.status != 0:
            events.record("command-failed", f"{command}: status {done.status}: {done.text[:500]}")
    except OSError as error:
        events.record("command-failed", f"{command}: {error.strerror}")


async def _main() -> None:
    agent = Agent()
    loop = asyncio.get_running_loop()
    running = asyncio.ensure_future(agent.run())
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, running.cancel)
    try:
        await running
    except asyncio.CancelledError:
        pass
    except Exception:
        events.record("bug", traceback.format_exc(), operation="agent")
        raise
    notify.say("STOPPING=1")


def _parse(words: Sequence[str]) -> None:
    import argparse  # what runs for months has none to parse

    parser = argparse.ArgumentParser(
        prog="vmguardd",
        description="Watch what the running guests of this host come to have open: claim it, give back what they need no"
        " longer, and stop a guest that writes what another one has. See vmguardd(8).",
    )
    parser.add_argument("--version", action="version", version=f"vmguardd {__version__}")
    parser.parse_args(words)


def main(arguments: Optional[List[str]] = None) -> int:
    """The command vmguardd."""
    words = sys.argv[1:] if arguments is None else arguments
    if words:
        _parse(words)
    if os.geteuid() != 0:
        print("vmguardd: it needs root, to see what other users' processes have open", file=sys.stderr)
        return 1
    os.makedirs(paths.RUN, mode=0o755, exist_ok=True)
    asyncio.run(_main())
    sys.stdout.flush()
    os._exit(0)  # a thread that hangs at storage does not keep us


if __name__ == "__main__":
    sys.exit(main())
