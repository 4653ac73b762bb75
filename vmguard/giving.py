# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Giving back: by record, when QEMU is gone, and after the dead.

A process that dies leaves a record that names what it may have taken, because the record came first. Whoever holds the
host lock next finds it and gives back.
"""

import fcntl
import os
import stat
import time

from vmguard import errand, events, host, instance
from vmguard._typing import Iterable, List, Optional, Set, Tuple
from vmguard.claims import Claim, Mode
from vmguard.errors import CannotTell, Error, LeaseDamaged, LeaseLost, LeaseNewer, SanlockFailed
from vmguard.host import Process
from vmguard.instance import Instance, Want
from vmguard.leases import Lease, client, slots
from vmguard.member import Here
from vmguard.owning import hand_over, qemu_of, unwatch_orphans
from vmguard.report import message, of_running
from vmguard.taking import PATIENCE, has
from vmguard.writers import pass_over, write_note, writer_of

BLKFLSBUF = 0x1261  # linux/fs.h: write a block device's cache out, and forget it


def sweep(this: Here, starting: Optional[Tuple[str, Process]] = None) -> List[Instance]:
    """
    Clean up after the dead; the instances that are left. Under the host lock.

    starting: uuid and libvirtd of a start that begins now: libvirt allows one at a time, so an earlier attempt of the
    same is over. What cannot be given back at this moment stays, and counts.
    """
    left = []
    for one in instance.load_all():
        try:
            keep = _swept(one, this, starting)
        except Error as error:
            # A lease that another guest has lost, too: that must not keep this one from starting.
            word = "sweep-failed" if isinstance(error, CannotTell) else "alarm"
            events.record(word, of_running(error, one.name), domain=one.name, instance=one.id)
            keep = instance.load(one.id + ".json")  # as far as it came
            if isinstance(error, LeaseLost) and one.state == "held":
                errand.see_to(one)  # as in `started`: the guest has to end
        if keep is not None:
            left.append(keep)
    return left


def _swept(one: Instance, this: Here, starting: Optional[Tuple[str, Process]]) -> Optional[Instance]:
    if one.boot_id != this.boot_id:
        instance.forget(one)
        return None
    if one.state == "draining":
        errand.see_to(one)
        return one
    if one.state == "running":
        if qemu_of(one) is None:
            return end(one, this)
        if instance.pending(one):
            errand.see_to(one)
        return one
    if one.state == "held":
        libvirtd_lives = host.process(one.libvirtd.pid) == one.libvirtd
        qemu = qemu_of(one)
        if qemu is not None:
            # Its `started` may still come. One that died or was late will not: as orphans the leases would outlive the
            # lockspace no more than they do now, and QEMU would.
            waited = time.time() - one.since > 2 * this.config.deadline
            return hand_over(one, qemu, this) if waited or not libvirtd_lives else one
        if libvirtd_lives and (one.uuid, one.libvirtd) != starting:
            return one
    # An intent under the host lock has lost its maker: libvirt never got a yes for it.
    return end(one, this)


def over(one: Instance) -> Instance:
    """
    Write down that an instance has no QEMU and will have none, before anything is given back. Under the host lock.

    sanlock may not answer then, or this process be killed: what is left to do, the next sweep does.
    """
    if one.state in ("held", "running"):
        events.record("released", **instance.account(one))
        one = one._replace(state="over")
        instance.write(one)
    return one


def end(one: Instance, this: Here, by_errand: bool = True) -> Optional[Instance]:
    """
    Give back all that the instance has and nobody else on this host needs, and forget it. Under the host lock.

    Returns the instance itself, untouched, while its QEMU is still there; one that is "draining" where the page cache
    of this host is still to be written out: its record keeps the marks. An errand does that, or the caller (`drain`).
    """
    if one.state != "intent" and qemu_of(one) is not None:
        return one
    # One to which the hook has said yes may have written, whether its `started` was done or not.
    wrote = one.state != "intent"
    drains = tuple(want for want in one.wants if want.drains and wrote and not want.missing)
    others = [other for other in instance.load_all() if other.id != one.id]
    if any(want.claim.device for want in one.wants) and one.state != "draining":
        from vmguard import marks  # guests on files do without

        marks.drop(one.wants, others)
    one = over(one)
    if wrote and one.coming and one.qemu is None and instance.has_begun(one):
        _say_it_has_run(one, this)
    with client.Connection() as connection:
        for want in one.wants:
            if want in drains and want.drain is None:
                continue  # what stands in for the mark is given back when all is written out
            if not any(has(other, want.claim.identity, this) for other in others):
                _give_back_or_note(want, one, this, connection)
            elif want.lver is not None:
                _pass_note_on(want, others, this)
    if drains and one.state != "draining":
        kept = (want._replace(lver=None, ticket=None) if want.drain is not None else want for want in drains)
        one = one._replace(state="draining", wants=tuple(kept))
        instance.write(one)
        if by_errand:
            errand.see_to(one)
        return one
    _give_marks_back(one, this)
    instance.forget(one)
    unwatch_orphans(this, one.owner == "host")
    return None


def _say_it_has_run(one: Instance, this: Here) -> None:
    """
    A guest that came here is the last writer from `started` on. That came to nothing, and libvirt let it go on: what its notes
    say is what was before it came, and the state that it was restored from would wake up a second time.
    """
    ran = one._replace(state="running")
    for want in one.wants:
        if want.missing or want.lver is None or want.claim.mode is not Mode.EXCLUSIVE:
            continue
        if slots.owner(this.store.lease(want.claim.identity)) == (this.host_id, this.generation, want.lver):
            write_note(want, ran, this, "lease", want.lver, writer_of(want, ran))


def _give_back_or_note(want: Want, one: Instance, this: Here, connection: client.Connection) -> None:
    """A lease that nobody can read any more must not keep the others: the daemon has let go of it, all the same."""
    claim = want.claim
    try:
        if not this.store.has(claim.identity):
            return  # whoever wrote the intent died before there was a lease to take
        lease = this.store.lease(claim.identity)
        # Of an intent it is not known what it took: as a guest that migrates in, the ticket perhaps.
        if want.ticket is not None or (one.state == "intent" and one.coming == "migrate"):
            give_back(slots.ticket(lease), False, claim, this, connection)
        if one.state == "intent" and one.qemu is not None and one.owner == "qemu" and host.alive(one.qemu):
            client.release_of(one.qemu.pid, lease)  # what a running guest needs no longer
        if one.state == "intent":
            if not instance.beside_another(one):
                _say_nothing_was_written(claim, lease, this)
            if want.drains and claim.identity not in _marked(one):
                give_back(slots.drain(lease), False, claim, this, connection)
        give_back(lease, claim.mode is Mode.SHARED, claim, this, connection)
    except LeaseDamaged as error:
        connection.give_back(this.store.lease(claim.identity))
        events.record("damaged", message(error), identity=claim.identity)
    except LeaseNewer:
        pass  # this sanlock cannot have taken it


def _say_nothing_was_written(claim: Claim, lease: Lease, this: Here) -> None:
    for lock in client.orphans(this.store.lockspace):
        if lock.name == lease.name and not lock.shared:
            pass_over(claim, lock.lver, this)


def give_back(place: Lease, shared: bool, claim: Claim, this: Here, connection: client.Connection) -> None:
    """
    Let go of one lease, and see it free on disk: whoever starts elsewhere the moment we return must find it so.

    Nobody on this host may need it any more. A lease that is ours on disk and unknown to the daemon (an adoption that
    failed half way) is acquired once more and released.
    """
    connection.give_back(place)
    end_of_patience = time.monotonic() + PATIENCE
    while not slots.surely_free(place) and _ours_on_disk(place, this):
        if time.monotonic() > end_of_patience:
            if any(lock.name == place.name for lock in client.locks(this.store.lockspace)):
                raise SanlockFailed("release", -16, claim.path)
            connection.acquire(place, shared=shared)
            connection.release(place, shared=shared)
            return
        time.sleep(0.005)


def _ours_on_disk(lease: Lease, this: Here) -> bool:
    return any((owner.host_id, owner.generation) == (this.host_id, this.generation) for owner in client.owners(lease))


def _pass_note_on(want: Want, others: Iterable[Instance], this: Here) -> None:
    """The lease stays because another instance needs it: let the note name that one."""
    for other in others:
        for index, theirs in enumerate(other.wants):
            if theirs.claim.identity == want.claim.identity and not theirs.missing and has(other, want.claim.identity, this):
                theirs = theirs._replace(lver=want.lver)
                wants = other.wants[:index] + (theirs,) + other.wants[index + 1 :]
                instance.write(other._replace(wants=wants))
                write_note(theirs, other, this, "lease", want.lver or 0, writer_of(theirs, other))
                return


# -- draining ----------------------------------------------------------------------------------------------------------


def drain(one: Instance) -> None:
    """
    Write out what the guest has left in the page cache of this host. Takes as long as that takes: not under the host lock.
    """
    for want in one.wants:
        try:
            flush(want.claim.path)
        except OSError as error:
            # There is no more to be done about it: what could not be written is lost, and the mark would not bring it back.
            why = f"{want.claim.path} was not written out: {error.strerror}"
            events.record("not-drained", why, domain=one.name, identity=want.claim.identity)


def flush(path: str) -> None:
    """
    Write a block device's cache out and forget it, so that what another host writes next is seen here. OSError where
    that fails; nothing happens where the device has gone: its cache went with it.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return
    try:
        os.fsync(fd)
        if stat.S_ISBLK(os.fstat(fd).st_mode):
            fcntl.ioctl(fd, BLKFLSBUF)
    finally:
        os.close(fd)


def drained(one: Instance, this: Here) -> None:
    """Give the drain marks back of an instance whose cache has been written out, and forget it. Under the host lock."""
    others = [other for other in instance.load_all() if other.id != one.id]
    with client.Connection() as connection:
        for want in one.wants:
            # A guest of this host may have come to it since: its page cache is ours.
            if want.drain is None and not any(has(other, want.claim.identity, this) for other in others):
                _give_back_or_note(want, one, this, connection)
    _give_marks_back(one, this)
    instance.forget(one)
    unwatch_orphans(this, one.owner == "host")


def _give_marks_back(one: Instance, this: Here) -> None:
    marks = [want for want in one.wants if want.drain is not None]
    needed = _marked(one) if marks else set()
    for want in marks:
        if want.claim.identity not in needed:
            with client.Connection() as connection:
                mark = slots.drain(this.store.lease(want.claim.identity))
                give_back(mark, False, want.claim, this, connection)


def _marked(one: Instance) -> Set[str]:
    """The identities whose drain mark another instance of this host keeps: a dead one that is being drained, too."""
    others = (other for other in instance.load_all() if other.id != one.id)
    return {want.claim.identity for other in others for want in other.wants if want.drain is not None}
