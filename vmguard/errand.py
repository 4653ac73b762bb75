# SPDX-License-Identifier: LGPL-2.1-or-later
"""
What is left to do for an instance when no hook is running: a process of its own, which ends when it is done.

    a guest that has migrated in   gets its leases as its source lets go of them (the handover)
    a guest that has ended         its host's page cache is written out, and the drain marks are given back
    either, after a hook failed    what `started` or `release` would have done

Nothing depends on it at once: a guest without its handover is as well protected by its tickets, and can be migrated on; a
device that is not drained yet is kept from the others. An errand that died is sent again by the next sweep.
"""

import fcntl
import os
import time

from vmguard import events, host, hostlock, instance, libvirtstate, paths
from vmguard._typing import List, Optional, Sequence, Tuple
from vmguard.config import load
from vmguard.errors import CannotTell, Error, Refused, about
from vmguard.instance import Instance
from vmguard.leases import Lease, client
from vmguard.report import message, of_running, sentence

# How often the owners of the leases are looked at: at first in steps of this, then less and less.
_FIRST_PAUSE, _LAST_PAUSE = 0.03, 0.5  # seconds

# From the guest's first instruction at its destination to the end of QEMU at its source pass 0.3 to 0.8 s. A source that
# still has the leases after this will not end by itself: its libvirt has died, and somebody might let it go on.
GRACE = 5.0  # seconds

_CODE = "import sys; sys.path.insert(0, sys.argv[1]); from vmguard.errand import main; sys.exit(main(sys.argv[2:]))"


def _lock_path(instance_id: str) -> str:
    return os.path.join(paths.RUN, "errands", instance_id)


def _lock(instance_id: str) -> Optional[int]:
    """The descriptor of the lock that the one errand of an instance holds; None if another one has it."""
    os.makedirs(os.path.dirname(_lock_path(instance_id)), mode=0o755, exist_ok=True)
    fd = os.open(_lock_path(instance_id), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return fd
    except BlockingIOError:
        os.close(fd)
        return None


def see_to(one: Instance) -> None:
    """Send an errand for this instance, unless one is on its way. Never fails: the next sweep tries again."""
    try:
        fd = _lock(one.id)
        if fd is None:
            return
        os.close(fd)
        library = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
        null = [(os.POSIX_SPAWN_OPEN, fd, os.devnull, os.O_RDWR, 0) for fd in (0, 1, 2)]
        # Isolated, and without the site's packages: as little as possible is read.
        words = ["/usr/bin/python3", "-I", "-S", "-c", _CODE, library, one.id]
        os.posix_spawn(
            words[0],
            words,
            {"LC_ALL": "C.UTF-8", "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
            file_actions=null,
            setsid=True,
        )
    except OSError as error:
        events.record("errand-failed", str(error), domain=one.name, instance=one.id)


def main(arguments: List[str]) -> int:
    """The process. Everything that goes wrong is written down."""
    (instance_id,) = arguments
    os.chdir("/")
    fd = _lock(instance_id)
    if fd is None:
        return 0
    try:
        _run(instance_id)
        os.unlink(_lock_path(instance_id))
    except Error as error:
        events.record("errand-failed", message(error), instance=instance_id)
        return 1
    except Exception:
        import traceback

        events.record("bug", traceback.format_exc(), instance=instance_id, operation="errand")
        return 1
    return 0


def _run(instance_id: str) -> None:
    one = instance.load(instance_id + ".json")
    if one is not None and one.state == "draining":
        write_out(one)
    elif one is not None and one.state in ("held", "running", "over"):
        if one.state == "held":
            _make_good(instance_id)
        else:
            _hand_over(instance_id)
        _end(instance_id)


def write_out(one: Instance) -> None:
    """Write out what a guest that has ended left in the page cache, and give its marks back. Not under the host lock."""
    from vmguard import giving
    from vmguard.member import here

    giving.drain(one)
    with hostlock.held():
        now = instance.load(one.id + ".json")
        if now is not None:
            giving.drained(now, here(load()))


def _make_good(instance_id: str) -> None:
    """What a `started` that died or was late has not done: QEMU becomes the owner of its leases."""
    from vmguard.member import here
    from vmguard.owning import hand_over, qemu_of
    from vmguard.surprise import look

    while True:
        held = instance.load(instance_id + ".json")
        qemu = qemu_of(held) if held is not None and held.state == "held" else None
        if held is None or qemu is None:
            return
        try:
            with hostlock.held():
                one = instance.load(instance_id + ".json")
                if one is None or one.state != "held":
                    return
                this = here(load())
                one = look(hand_over(one, qemu, this), qemu, this)
            break
        except Refused as error:
            # As in `started`: its lease is lost, or a second writer is proven.
            whose = {"domain": held.name, "uuid": held.uuid, "pid": qemu.pid}
            events.record("ended", sentence(error, held.name), **whose, **about(error))
            if host.alive(qemu):
                import signal  # every hook loads this module, and hardly one comes here

                os.kill(qemu.pid, signal.SIGKILL)
            return
        except CannotTell:
            time.sleep(_LAST_PAUSE)
    if instance.pending(one):
        _hand_over(instance_id)


def _end(instance_id: str) -> None:
    """What a `release` that died or was late has not done."""
    from vmguard import giving
    from vmguard.member import here
    from vmguard.owning import qemu_of

    with hostlock.held():
        one = instance.load(instance_id + ".json")
        if one is None or one.state not in ("held", "running", "over") or qemu_of(one) is not None:
            return
        # One that is held, too: libvirt had come to `started` or `release` when an errand was sent for it.
        one = giving.over(one)
        left = giving.end(one, here(load()), by_errand=False)
    if left is not None and left.state == "draining":
        write_out(left)


def _hand_over(instance_id: str) -> None:
    """Watch the owners until all is the guest's own, or the guest is gone: its release gives back what it had."""
    from vmguard.member import here
    from vmguard.owning import kept_by_source, qemu_of, ready, settle
    from vmguard.surprise import look

    pause, arrived, asked, waits = _FIRST_PAUSE, 0.0, False, False
    while True:
        one = instance.load(instance_id + ".json")
        if one is None or one.state != "running" or not instance.pending(one):
            return
        qemu = qemu_of(one)
        if qemu is None:
            return
        state = libvirtstate.of(one.name, qemu.pid)
        if state is not None and state.has_come and not arrived:
            arrived = time.monotonic()
        try:
            # Before it has come, its source may need its leases yet: after a failure it runs on.
            if arrived:
                this = here(load())
                if ready(one, this):
                    with hostlock.held():
                        now = instance.load(instance_id + ".json")
                        if now is not None and now.state == "running" and host.alive(qemu):
                            this = here(load())  # it may have joined anew while the lock was waited for
                            one = settle(now, qemu, this)
                            if not instance.pending(one):
                                events.record("handover", **instance.account(one))
                                # It has opened its images for writing since.
                                look(one, qemu, this)
                    pause = _FIRST_PAUSE
                late = time.monotonic() - arrived > GRACE
                if late and not asked and state is not None and not state.needs_source:
                    asked = True
                    left = kept_by_source(one, this)
                    if left:  # and not its drain mark alone
                        _end_source(one, left)
        except CannotTell as error:
            # sanlock or the store are away for a while. The guest is protected as it is.
            if pause >= _LAST_PAUSE and not waits:
                events.record("errand-waits", of_running(error, one.name), domain=one.name, instance=one.id)
                waits = True
        time.sleep(pause)
        pause = min(pause * 1.4, _LAST_PAUSE)


def _end_source(one: Instance, places: Sequence[Tuple[Lease, int]]) -> None:
    events.record(
        "source-lingers",
        f"{one.name} runs here, and its QEMU at the source still has its leases: sanlock there is asked to kill it",
        domain=one.name,
        uuid=one.uuid,
        instance=one.id,
    )
    for place, lver in places:
        client.request_end(place, lver)
