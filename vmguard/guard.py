# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The protocol: why two writers are impossible.

What a guest needs is a set of claims (claims.py), each with a lease in a store that all hosts share. Two instances whose
claims exclude each other cannot both have their leases: on one host the records say no, between hosts sanlock does.

    prepare     under the host lock: sweep; write the intent down; take every lease, or none; say who has it otherwise.
                The leases are *orphans*: they belong to this host and to no process, so this one may end.
    start       the same for files that libvirt made in the meantime.
    started     QEMU exists: it becomes the owner of the exclusive leases. From then on sanlock frees them when QEMU
                dies, and kills QEMU when they are lost, with no process of ours alive.
    release     give back, by record, what is not free already, once QEMU is gone.

Why this holds:

* The guest is covered from before QEMU exists (prepare) until it is gone: at each moment the lease is an orphan of the
  host or QEMU's own, and both exclude everybody else. Adopting is one step inside sanlock.
* The *lver* of a lease grows with each exclusive acquire. It is recorded in prepare and must be the same in started.
  If it is not, the lease was lost in between and somebody may have written: the guest, milliseconds old, ends.
* A process that dies leaves a record that names what it may have taken, because the record came first. Whoever holds
  the host lock next finds it and gives back: no lease is kept by nobody, and none is given back twice, because a lease
  that any other record wants is left alone.
* Nothing is ever given back for a QEMU that is still there.
* What cannot be found out in time is a refusal (prepare, start), and never kills a running guest (the others).
"""

import random
import time
from typing import Dict, Iterable, List, NamedTuple, Optional, Sequence, Tuple

from vmguard import events, host, hostlock, instance, overrides
from vmguard.claims import Claim, Mode, Needs, claim_on_itself, late_needs, needs_of
from vmguard.config import Config, load
from vmguard.deadline import orphaned, step, tolerate
from vmguard.domain import Domain, parse
from vmguard.errors import (
    CannotTell,
    Error,
    Holder,
    InUse,
    Late,
    LeaseDamaged,
    LeaseLost,
    LocalStore,
    NotJoined,
    NoWatchdog,
    SanlockFailed,
    Unexplained,
)
from vmguard.holders import excludes, local, try_anywhere
from vmguard.host import Process
from vmguard.instance import Instance, Want
from vmguard.leases import HostState, Lease, Note, client, lockspace
from vmguard.leases.store import Store
from vmguard.report import sentence
from vmguard.storage.facts import LiveFacts

# How long an acquire is tried again when sanlock says "in a moment": the lease is being released here, or two hosts met
# on it. A release takes some 10 ms; ballots that collide sleep up to a second inside sanlock.
PATIENCE = 2.0

# Codes of libsanlock (sanlock_rv.h, errno.h), by what one may conclude.
OWNED = {-243, -249}  # by a host that is alive, or that never times out
OWNER_SILENT = {-247}  # by a host that does not renew, and is not certainly dead yet
MOMENT = {-11, -16, -244, -245, -246}  # being released, busy, a lost race: ask again
HELD_HERE = {-17}  # by a process of this host
ORPHAN_HERE = {-117}  # by this host; in which mode, only our own records tell
NOT_JOINED = {-28, -241, -242}
DAMAGED = {-90} | set(range(-229, -221))  # no, or not this, lease at that place


class Here(NamedTuple):
    """This host, as a member of the lockspace."""

    config: Config
    store: Store
    host_id: int
    generation: int  # of our membership: it grows with each join, and voids what was held before
    states: Dict[int, HostState]
    boot_id: str


class Tolerance:
    """
    What happens to an objection: raised, so that the start is refused; or, in audit mode and under an override,
    written down and let pass.
    """

    def __init__(self, reason: str = "") -> None:
        self.reason = reason  # "" means none: refuse
        self.objections: List[Error] = []

    def object(self, error: Error) -> None:
        if not self.reason:
            raise error
        self.objections.append(error)


def here(config: Config) -> Here:
    """
    This host as a member of the lockspace.

    Raises NotJoined, StoreBroken, SanlockDown: without membership nothing can be taken.
    """
    assert config.store is not None and config.host_id is not None
    store = Store.open(config.store, config.cluster)
    generation = lockspace.generation(store)
    states = {state.host_id: state for state in client.hosts(store.lockspace)}
    return Here(config, store, config.host_id, generation, states, host.boot_id())


# -- the hooks ---------------------------------------------------------------------------------------------------------


def prepare(xml: bytes, libvirtd: Process) -> None:
    """
    A guest is about to start. Take what it needs, or raise what stands against it.

    libvirtd: the daemon that starts it, for as long as which the start can be under way.
    """
    config = load()
    if config.store is None or config.mode == "off":
        return
    domain = parse(xml)
    tolerance = Tolerance("audit" if config.mode == "audit" else "")
    objection: Optional[Error] = None
    try:
        step("finding out what its disks are")
        needs = needs_of(domain, LiveFacts())
    except Error as error:
        objection, needs = error, Needs((claim_on_itself(domain),))
    step("waiting for the lock of this host")
    with hostlock.held():
        override = overrides.take(domain.uuid)
        if override is not None:
            tolerance.reason = f"override by {override.by}: {override.reason}"
            tolerate(tolerance.reason)
        if objection is not None:
            tolerance.object(objection)
        admit(domain, needs, config, libvirtd, tolerance)
    report_tolerated(domain, tolerance)


def admit(domain: Domain, needs: Needs, config: Config, libvirtd: Process, tolerance: Tolerance) -> None:
    """The part of prepare that runs under the host lock."""
    try:
        step("asking sanlock for the state of this host")
        this = here(config)
        others = sweep(this, starting=(domain.uuid, libvirtd))
        for claim in needs.claims:
            check_store_reaches(claim, this)
        _check_ownership(this, libvirtd)
    except Error as error:
        tolerance.object(error)
        if not isinstance(error, (LocalStore, NoWatchdog)):
            return
    start = Instance(
        id=instance.new_id(domain.uuid),
        uuid=domain.uuid,
        name=domain.name,
        boot_id=this.boot_id,
        libvirtd=libvirtd,
        state="intent",
        wants=tuple(Want(claim) for claim in sorted(needs.claims, key=_order)),
        since=time.time(),
        host_id=this.host_id,
        generation=this.generation,
        note=tolerance.reason,
    )
    instance.write(start)
    start = take(start, others, this, tolerance)
    if orphaned():
        raise Late(0, "answering")  # libvirt has gone on without the answer: the record stays an intent, and is swept
    if needs.late:
        instance.mark_late(start)
    instance.write(start._replace(state="held"))


def start(xml: bytes, libvirtd: Process) -> None:
    """libvirt made what was missing in prepare (nvram, tpm state): take that too, or raise what stands against it."""
    _take_late(xml, libvirtd)


def report_tolerated(domain: Domain, tolerance: Tolerance) -> None:
    """Write down what was let pass, and why."""
    for objection in tolerance.objections:
        events.record(
            "would-refuse" if tolerance.reason == "audit" else "overridden",
            sentence(objection, domain.name),
            domain=domain.name,
            uuid=domain.uuid,
            reason=tolerance.reason,
        )


def started(xml: bytes, libvirtd: Process) -> None:
    """
    QEMU runs. Make it the owner of its leases.

    Raises LeaseLost or InUse if the guest must end at once; CannotTell kinds say that the leases stay with the host.
    """
    config = load()
    if config.store is None or config.mode == "off":
        return
    domain = parse(xml)
    _take_late(xml, libvirtd)  # files that QEMU itself made: logs
    step("waiting for the lock of this host")
    with hostlock.held():
        this = here(config)
        for held in instance.load_all():
            if held.uuid == domain.uuid and held.libvirtd == libvirtd and held.state == "held":
                qemu = qemu_of(held)
                if qemu is None:
                    return  # it has died already: release will follow
                hand_over(held, qemu, this)
                return
    events.record("unguarded", "a guest has started that prepare did not see", domain=domain.name, uuid=domain.uuid)


def release(xml: bytes, libvirtd: Process) -> None:
    """
    libvirt is done with a guest, or with the attempt to start it. Give back what its record says, if its QEMU is gone.

    After a refused prepare this is called too: there is no record then, and nothing is touched.
    """
    domain = parse(xml)
    step("waiting for the lock of this host")
    with hostlock.held():
        mine = [one for one in instance.load_all() if one.uuid == domain.uuid]
        if not mine:
            return
        config = load()
        if config.store is None:
            return
        this = here(config)
        for one in mine:
            if one.libvirtd == libvirtd or host.process(one.libvirtd.pid) != one.libvirtd:
                end(one, this)


def reconnect(xml: bytes, libvirtd: Process) -> None:
    """libvirtd has come back and found this guest running: it is now the one that will call release."""
    config = load()
    if config.store is None or config.mode == "off":
        return
    domain = parse(xml)
    step("waiting for the lock of this host")
    with hostlock.held():
        for one in instance.load_all():
            qemu = qemu_of(one) if one.uuid == domain.uuid else None
            if qemu is None:
                continue
            one = one._replace(libvirtd=libvirtd)
            instance.write(one)
            if one.state == "held":
                hand_over(one, qemu, here(config))
            return
    events.record("unguarded", "a guest runs without leases", domain=domain.name, uuid=domain.uuid)


def only_watches() -> bool:
    """Whether this host is in audit mode: it refuses nothing."""
    try:
        return load().mode == "audit"
    except Error:
        return False


def unprivileged(operation: str, xml: bytes) -> None:
    """
    The hook of a `qemu:///session` daemon: a user's own, who may read our records and nothing else.

    A guest whose disk a guest of this host holds is refused; any other is let pass, without a lease.
    """
    config = load()
    if operation != "prepare" or config.store is None or config.mode == "off":
        return
    running = instance.load_all()
    for claim in needs_of(parse(xml), LiveFacts()).claims:
        holders = local(claim, running, config.host_id or 0)
        if holders:
            raise InUse(claim, holders)


# -- taking ------------------------------------------------------------------------------------------------------------


def _order(claim: Claim) -> Tuple[bool, str]:
    """
    One order on all hosts, so that of two starts that meet, the one that gets the first common lease gets the rest.
    What the guest writes comes first: it is what most refusals are about, and they are quick then.
    """
    return claim.mode is not Mode.EXCLUSIVE, claim.identity


def take(start: Instance, others: Sequence[Instance], this: Here, tolerance: Tolerance) -> Instance:
    """
    Acquire every lease of an instance whose intent is written down, or give back what was taken and raise.

    Returns the instance with the version of each lease. Under tolerance, wants that could not be had are marked.
    """
    wants: List[Want] = []
    with client.Connection() as connection:
        try:
            for want in start.wants:
                step(f"taking the lease of {want.claim.what}, {want.claim.path}")
                try:
                    wants.append(_take_one(want, others, this, connection))
                except Error as error:
                    tolerance.object(error)
                    wants.append(want._replace(missing=True))
        except Error:
            for name in connection.held(this.store.lockspace):
                connection.release(this.store.lease_of_name(name))
            instance.forget(start)
            raise
        taken = start._replace(wants=tuple(wants))
        for want in taken.wants:
            if want.lver is not None:
                write_note(want, taken, this)
        return taken


def _take_one(want: Want, others: Sequence[Instance], this: Here, connection: client.Connection) -> Want:
    claim = want.claim
    holders = local(claim, others, this.host_id)
    if holders:
        raise InUse(claim, holders)
    if any(_has(other, claim.identity, this) for other in others):
        return want  # this host has it already, in the same mode: one lease serves all
    return want._replace(lver=acquire(claim, this, connection))


def _has(other: Instance, identity: str, this: Here) -> bool:
    """Whether another instance keeps this lease on our host, in the present membership."""
    return other.generation == this.generation and any(
        want.claim.identity == identity and not want.missing for want in other.wants
    )


def acquire(claim: Claim, this: Here, connection: client.Connection) -> int:
    """
    Acquire one lease for this host; the version at which it is held.

    Raises InUse when somebody has it, CannotTell kinds when sanlock's answer is no answer to that.
    """
    lease = this.store.ensure(claim.identity)
    shared = claim.mode is Mode.SHARED
    end_of_patience = time.monotonic() + PATIENCE
    while True:
        try:
            return connection.acquire(lease, shared=shared)
        except SanlockFailed as error:
            code = error.code
        holders = try_anywhere(claim.identity, this.store, this.states)
        if code in ORPHAN_HERE and _free_leftover(lease, claim, connection):
            continue
        waits = code in MOMENT or (code in OWNED and shared)
        if any(holder.domain and excludes(claim.mode, _mode(holder)) for holder in holders):
            waits = False  # a note that matches the lease: no matter of a moment
        if not waits or time.monotonic() > end_of_patience:
            raise _meaning(code, claim, lease, holders, this)
        # Two that collide must not collide again.
        time.sleep(random.uniform(0.002, 0.02))


def _mode(holder: Holder) -> Mode:
    return Mode.SHARED if holder.shared else Mode.EXCLUSIVE


def _meaning(code: int, claim: Claim, lease: Lease, holders: List[Holder], this: Here) -> Error:
    """What a failed acquire says about the lease."""
    if code in OWNED or code in HELD_HERE or code in {-11, -244, -245, -246}:
        return InUse(claim, holders)
    if code in OWNER_SILENT:
        return InUse(claim, [holder._replace(alive=False) for holder in holders])
    if code in ORPHAN_HERE:
        return Unexplained(claim)
    if code in NOT_JOINED:
        return NotJoined(this.store.lockspace, joining=False)
    if code in DAMAGED:
        return LeaseDamaged(lease.path, claim.identity, code)
    return SanlockFailed("acquire", code, claim.path)


def _free_leftover(lease: Lease, claim: Claim, connection: client.Connection) -> bool:
    """
    An orphan on this host that no record wants: a call that sanlock finished after its caller had been killed and swept.
    It is given back, unless a QEMU runs that has no record: the lease might be its.
    """
    known = {one.uuid for one in instance.load_all() if one.state != "intent"}
    if any(qemu.uuid not in known for qemu in host.qemu_processes()):
        return False
    events.record("leftover", f"gave back a lease that no record wants: {claim.path}", identity=claim.identity)
    return connection.give_back(lease)


def check_store_reaches(claim: Claim, this: Here) -> None:
    config = this.config
    if claim.written and claim.others_see_it and not config.shared and not config.single_host:
        raise LocalStore(claim, this.store.path)


def _check_ownership(this: Here, libvirtd: Process) -> None:
    """
    Before the first lease: can QEMU own it? If not, it stays an orphan, and an orphan protects nothing once the
    lockspace is lost, unless a watchdog then resets the host.
    """
    if host.libvirt_has_sanlock_plugin(libvirtd.pid):
        return
    if this.config.without_watchdog != "accept" and not client.daemon_facts().use_watchdog:
        raise NoWatchdog()
    client.used_by_orphans(this.store.lockspace, True)


def write_note(want: Want, owner: Instance, this: Here) -> None:
    """Say in words who has the lease. A note that cannot be written costs a later refusal its words, nothing else."""
    note = Note(
        identity=want.claim.identity,
        mode=want.claim.mode.value,
        host_id=this.host_id,
        generation=this.generation,
        lver=want.lver or 0,
        host=host.name(),
        domain=owner.name,
        uuid=owner.uuid,
        path=want.claim.path,
        since=owner.since,
        instance=owner.id,
    )
    try:
        this.store.write_note(note)
    except CannotTell as error:
        events.record("no-note", str(error), identity=note.identity)


def _take_late(xml: bytes, libvirtd: Process) -> None:
    config = load()
    if config.store is None or config.mode == "off":
        return
    domain = parse(xml)
    with hostlock.held():
        for one in instance.load_all():
            if one.uuid == domain.uuid and one.libvirtd == libvirtd and instance.is_late(one):
                tolerance = Tolerance(one.note)
                _add(one, late_needs(domain, LiveFacts()), config, tolerance)
                report_tolerated(domain, tolerance)


def _add(one: Instance, needs: Needs, config: Config, tolerance: Tolerance) -> None:
    """Take leases for an instance that has some already."""
    known = {want.claim.identity for want in one.wants}
    more = tuple(Want(claim) for claim in needs.claims if claim.identity not in known)
    if more:
        this = here(config)
        others = [other for other in sweep(this) if other.id != one.id]
        # An intent of its own, as in prepare. Dying here leaves both records: what the first has too is not given back.
        extra = one._replace(id=one.id + ".late", wants=more, state="intent")
        instance.write(extra)
        taken = take(extra, others, this, tolerance)
        one = one._replace(wants=one.wants + taken.wants)
        instance.write(one)
        instance.forget(extra)
    if not needs.late:
        instance.unmark_late(one)


# -- handing over to QEMU ----------------------------------------------------------------------------------------------


def qemu_of(one: Instance) -> Optional[Process]:
    """The living QEMU of an instance: the one it was handed to, else one that carries its uuid."""
    if one.qemu is not None:
        return one.qemu if host.alive(one.qemu) else None
    for qemu in host.qemu_processes():
        if qemu.uuid == one.uuid:
            return qemu.process
    return None


def hand_over(held: Instance, qemu: Process, this: Here) -> Instance:
    """
    Make QEMU the owner of the exclusive leases of an instance, and prove that nobody had them since prepare.

    Raises LeaseLost if somebody may have. Without libvirt's plugin QEMU is unknown to sanlock: the leases stay with
    the host, and the proof is the same.
    """
    exclusive = [want for want in held.wants if want.claim.mode is Mode.EXCLUSIVE and not want.missing]
    leases = [this.store.lease(want.claim.identity) for want in exclusive]
    if client.registered(qemu.pid):
        before = client.held_by(qemu.pid)  # not empty where an earlier hand-over was cut short
        try:
            client.adopt(qemu.pid, [lease for lease in leases if lease.name not in before])
        except SanlockFailed as error:
            if error.code in OWNED | OWNER_SILENT | MOMENT | NOT_JOINED:
                raise LeaseLost(exclusive[0].claim, exclusive[0].lver, None) from error
            raise
        owner, now = "qemu", client.held_by(qemu.pid)
    else:
        owner, now = "host", {lock.name: lock for lock in client.orphans(this.store.lockspace)}
    for want, lease in zip(exclusive, leases):
        lock = now.get(lease.name)
        if lock is None or lock.lver != want.lver:
            raise LeaseLost(want.claim, want.lver, lock.lver if lock else None)
    running = held._replace(state="running", qemu=qemu, owner=owner)
    instance.write(running)
    instance.unmark_late(running)  # what has not come to exist by now, QEMU does not have open
    return running


# -- giving back -------------------------------------------------------------------------------------------------------


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
        except CannotTell as error:
            events.record("sweep-failed", str(error), domain=one.name, instance=one.id)
            keep = one
        if keep is not None:
            left.append(keep)
    return left


def _swept(one: Instance, this: Here, starting: Optional[Tuple[str, Process]]) -> Optional[Instance]:
    if one.boot_id != this.boot_id:
        instance.forget(one)
        return None
    if one.state == "running":
        return one if qemu_of(one) is not None else end(one, this)
    if one.state == "held":
        libvirtd_lives = host.process(one.libvirtd.pid) == one.libvirtd
        qemu = qemu_of(one)
        if qemu is not None:
            return one if libvirtd_lives else hand_over(one, qemu, this)
        if libvirtd_lives and (one.uuid, one.libvirtd) != starting:
            return one
    # An intent under the host lock has lost its maker: libvirt never got a yes for it.
    return end(one, this)


def end(one: Instance, this: Here) -> Optional[Instance]:
    """
    Give back all that the instance has and nobody else on this host needs, and forget it. Under the host lock.

    Returns the instance itself, untouched, while its QEMU is still there.
    """
    if one.state != "intent" and qemu_of(one) is not None:
        return one
    if one.generation == this.generation:  # leases of an earlier membership ended with it
        others = [other for other in instance.load_all() if other.id != one.id]
        with client.Connection() as connection:
            for want in one.wants:
                if not any(_has(other, want.claim.identity, this) for other in others):
                    _give_back_or_note(want.claim, this, connection)
                elif want.lver is not None:
                    _pass_note_on(want, others, this)
    instance.forget(one)
    if one.owner == "host" and not any(other.owner == "host" for other in instance.load_all()):
        client.used_by_orphans(this.store.lockspace, False)
    return None


def _give_back_or_note(claim: Claim, this: Here, connection: client.Connection) -> None:
    """A lease that nobody can read any more must not keep the others: the daemon has let go of it, all the same."""
    try:
        give_back(claim, this, connection)
    except LeaseDamaged as error:
        events.record("damaged", sentence(error, ""), identity=claim.identity)


def give_back(claim: Claim, this: Here, connection: client.Connection) -> None:
    """
    Let go of one lease, and see it free on disk: whoever starts elsewhere the moment we return must find it so.

    Nobody on this host may need it any more. A lease that is ours on disk and unknown to the daemon (an adoption that
    failed half way) is acquired once more and released.
    """
    if not this.store.has(claim.identity):
        return  # whoever wrote the intent died before there was a lease to take
    lease = this.store.lease(claim.identity)
    connection.give_back(lease)
    end_of_patience = time.monotonic() + PATIENCE
    while _ours_on_disk(lease, this):
        if time.monotonic() > end_of_patience:
            if any(lock.name == lease.name for lock in client.locks(this.store.lockspace)):
                raise SanlockFailed("release", -16, claim.path)
            connection.acquire(lease, shared=claim.mode is Mode.SHARED)
            connection.release(lease)
            return
        time.sleep(0.005)


def _ours_on_disk(lease: Lease, this: Here) -> bool:
    return any((owner.host_id, owner.generation) == (this.host_id, this.generation) for owner in client.owners(lease))


def _pass_note_on(want: Want, others: Iterable[Instance], this: Here) -> None:
    """The lease stays because another instance needs it: let the note name that one."""
    for other in others:
        for index, theirs in enumerate(other.wants):
            if theirs.claim.identity == want.claim.identity and not theirs.missing:
                theirs = theirs._replace(lver=want.lver)
                wants = other.wants[:index] + (theirs,) + other.wants[index + 1 :]
                instance.write(other._replace(wants=wants))
                write_note(theirs, other, this)
                return
