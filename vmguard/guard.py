# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The protocol: why two writers are impossible.

What a guest needs is a set of claims (claims.py), each with a lease in a store that all hosts share. Two instances whose
claims exclude each other cannot both have their permits: on one host the records say no, between hosts sanlock does.

    prepare     under the host lock: sweep; write the intent down; take every lease, or none; say who has it otherwise.
                The leases are *orphans*: they belong to this host and to no process, so this one may end.
    start       the same for files that libvirt made in the meantime.
    started     QEMU exists: it becomes the owner of the exclusive leases. From then on sanlock frees them when QEMU
                dies, and kills QEMU when they are lost, with no process of ours alive.
    release     give back, by record, what is not free already, once QEMU is gone.
    migrate, restore
                a guest is coming: a mark, and a nonce in its XML, by which prepare knows it (arrivals.py).

Why this holds:

* The guest is covered from before QEMU exists (prepare) until it is gone: at each moment the lease is an orphan of the
  host or QEMU's own, and both exclude everybody else. Adopting is one step inside sanlock.
* The *lver* of a lease grows with each exclusive acquire. It is recorded in prepare and must be the same in started.
  If it is not, the lease was lost in between and somebody may have written: the guest, milliseconds old, ends.
* A process that dies leaves a record that names what it may have taken, because the record came first. Whoever holds
  the host lock next finds it and gives back (giving.py): no lease is kept by nobody, and none is given back twice,
  because a lease that any other record wants is left alone.
* Nothing is ever given back for a QEMU that is still there.
* What cannot be found out in time is a refusal (prepare, start), and never kills a running guest (the others).

A guest that migrates has two QEMUs for a while, of which libvirt lets one run at a time. Each has its own permit (taking.py):
the source keeps its lease, the destination has the *ticket* beside it. Anybody else must find both free. When the
source's QEMU is gone, the destination's gets the lease and drops the ticket, in that order (owning.settle, done by a
process of its own, errand.py): so there is no moment between the two at which a third one could get in, and whichever
process or host dies, the permit of the one that lives stays.
"""

import time

from vmguard import arrivals, errand, events, host, hostlock, instance, overrides
from vmguard._typing import List, Optional, Sequence
from vmguard.claims import Needs, claim_on_itself, late_needs, needs_of
from vmguard.config import load
from vmguard.deadline import orphaned, step, tolerate
from vmguard.domain import Domain, parse, who
from vmguard.errors import Error, InUse, Late, LocalStore, NotComing, NoWatchdog, about
from vmguard.giving import end, over, sweep
from vmguard.holders import local
from vmguard.host import Process
from vmguard.instance import Instance, Want
from vmguard.member import Here, Tolerance, check_ownership, check_store_reaches, here
from vmguard.owning import chosen, hand_over, qemu_of, watch_orphans
from vmguard.report import TOLERATED, sentence
from vmguard.storage.facts import LiveFacts
from vmguard.surprise import look
from vmguard.taking import take, wants_of
from vmguard.text import typed


def migrate(xml: bytes, libvirtd: Process) -> bytes:
    """A guest is about to migrate to this host: the XML that libvirt is to go on with. b"": as it was."""
    return _announce("migrate", xml, libvirtd)


def restore(xml: bytes, libvirtd: Process) -> bytes:
    """A guest is about to be restored from a saved state: the XML that libvirt is to go on with. b"": as it was."""
    return _announce("restore", xml, libvirtd)


def _announce(kind: str, xml: bytes, libvirtd: Process) -> bytes:
    config = load()
    if config.store is None or config.mode == "off":
        return b""
    return arrivals.announce(kind, xml, libvirtd)


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
    arrival = None
    try:
        arrival = arrivals.take(domain, libvirtd)
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
        others: List[Instance] = []
        try:
            step("asking sanlock for the state of this host")
            this = here(config)
            others = sweep(this, starting=(domain.uuid, libvirtd))
            for claim in needs.claims:
                check_store_reaches(claim, this)
            check_ownership(this, libvirtd)
        except Error as error:
            tolerance.object(error)
            if not isinstance(error, (LocalStore, NoWatchdog)):
                report_tolerated(domain, tolerance)
                return
        admit(domain, needs, arrival, others, this, libvirtd, tolerance, host.began())
    report_tolerated(domain, tolerance)


def admit(
    domain: Domain,
    needs: Needs,
    arrival: Optional[arrivals.Arrival],
    others: Sequence[Instance],
    this: Here,
    libvirtd: Process,
    tolerance: Tolerance,
    began: float = 0.0,
) -> Instance:
    """
    Write the intent down, take all, say so. Under the host lock.

    others: the instances that a sweep has left. began: when the hook began (host.began), if this is one.
    """
    start = Instance(
        id=instance.new_id(domain.uuid),
        uuid=domain.uuid,
        name=domain.name,
        boot_id=this.boot_id,
        libvirtd=libvirtd,
        state="intent",
        wants=wants_of(needs.claims, this),
        since=time.time(),
        host_id=this.host_id,
        generation=this.generation,
        note=tolerance.reason,
        coming=arrival.kind if arrival is not None else "",
        image=arrival.image if arrival is not None else None,
    )
    instance.write(start)
    start = take(start, others, this, tolerance)
    if orphaned():
        raise Late(0, "answering")  # libvirt has gone on without the answer: the record stays an intent, and is swept
    if needs.late:
        instance.mark_late(start)
    start = start._replace(state="held")
    instance.write(start)
    mark(start, start.wants)
    account = instance.account(start)
    if began:
        account["took"] = round(time.clock_gettime(time.CLOCK_BOOTTIME) - began, 3)
    events.record("held", **account)
    return start


def mark(one: Instance, wants: Sequence[Want]) -> None:
    """Tell udev which devices are the guest's."""
    if any(want.claim.device for want in wants):
        from vmguard import marks  # guests on files do without

        marks.put(one, wants)


def start(xml: bytes, libvirtd: Process) -> None:
    """libvirt made what was missing in prepare (nvram, tpm state): take that too, or raise what stands against it."""
    _take_late(xml, libvirtd)


def report_tolerated(domain: Domain, tolerance: Tolerance) -> None:
    """Write down what was let pass, and why."""
    for objection in tolerance.objections:
        events.record(
            "would-refuse" if tolerance.reason == "audit" else "overridden",
            sentence(objection, domain.name, outcome=TOLERATED),
            domain=domain.name,
            uuid=domain.uuid,
            reason=tolerance.reason,
            **about(objection),
        )


def _take_late(xml: bytes, libvirtd: Process) -> None:
    config = load()
    if config.store is None or config.mode == "off":
        return
    _, uuid = who(xml)
    with hostlock.held():
        for one in instance.load_all():
            if one.uuid == uuid and one.libvirtd == libvirtd and instance.is_late(one):
                domain = parse(xml)
                tolerance = Tolerance(one.note)
                _add(one, late_needs(domain, LiveFacts()), here(config), tolerance)
                report_tolerated(domain, tolerance)


def _add(one: Instance, needs: Needs, this: Here, tolerance: Tolerance) -> Instance:
    """Take leases for an instance that has some already."""
    known = {want.claim.identity for want in one.wants}
    more = tuple(want for want in wants_of(needs.claims, this) if want.claim.identity not in known)
    if more:
        others = [other for other in sweep(this) if other.id != one.id]
        # An intent of its own, as in prepare. Dying here leaves both records: what the first has too is not given back.
        extra = one._replace(id=one.id + ".late", wants=more, state="intent")
        instance.write(extra)
        taken = take(extra, others, this, tolerance)
        one = one._replace(wants=one.wants + taken.wants)
        instance.write(one)
        instance.forget(extra)
        instance.tell_held(one, taken.wants)
    if not needs.late:
        instance.unmark_late(one)
    return one


def started(xml: bytes, libvirtd: Process) -> None:
    """
    QEMU runs, or waits for the guest that migrates in. Make it the owner of its leases.

    Raises LeaseLost, NotComing, WrongDisk or InUse if the guest must end at once; CannotTell kinds say that the leases
    stay with the host.
    """
    config = load()
    if config.store is None or config.mode == "off":
        return
    name, uuid = who(xml)
    _take_late(xml, libvirtd)  # files that QEMU itself made: logs
    step("waiting for the lock of this host")
    with hostlock.held():
        this = here(config)
        for held in instance.load_all():
            if held.uuid == uuid and held.libvirtd == libvirtd and held.state in ("held", "running"):
                qemu = qemu_of(held)
                if qemu is None and held.state == "running":
                    continue  # an earlier one, which is not swept yet
                if qemu is None:
                    return  # it has died already: release will follow
                if held.coming == "migrate" and not host.is_incoming(qemu.pid):
                    raise NotComing()
                held = hand_over(held, qemu, this)
                held = look(held, qemu, this)
                if instance.pending(held):
                    errand.see_to(held)
                return
    text = "it was started without a check, and has no leases: vmguardd takes them, or a restart of libvirt's daemon"
    events.record("unguarded", text, domain=name, uuid=uuid)


def leave_to_errand(name: str, runs: bool) -> None:
    """
    `started` (runs: the guest goes on) or `release` of a domain came to nothing: let an errand do what can be done later. Never
    fails.
    """
    try:
        for one in instance.load_all():
            if one.name == name and one.state != "intent":
                if runs and one.coming and one.state == "held":
                    instance.mark_begun(one)
                errand.see_to(one)
    except Error:
        pass  # the next sweep meets the same


def release(xml: bytes, libvirtd: Process) -> None:
    """
    libvirt is done with a guest, or with the attempt to start it. Give back what its record says, if its QEMU is gone.

    After a refused prepare this is called too: there is no record then, and nothing is touched.
    """
    _, uuid = who(xml)
    step("waiting for the lock of this host")
    draining = []
    with hostlock.held():
        mine = [one for one in instance.load_all() if one.uuid == uuid and one.state != "draining"]
        if not mine:
            return
        config = load()
        if config.store is None:
            return
        mine = [one for one in mine if one.libvirtd == libvirtd or host.process(one.libvirtd.pid) != one.libvirtd]
        # Before sanlock is asked, which may be away, or not answer: a join must not wait for this start.
        mine = [over(one) if qemu_of(one) is None else one for one in mine]
        this = here(config)
        for one in mine:
            left = end(one, this, by_errand=False)
            if left is not None and left.state == "draining":
                draining.append(left)
    for one in draining:
        step("writing out the page cache")
        errand.write_out(one)


def reconnect(xml: bytes, libvirtd: Process) -> None:
    """
    libvirt has come back and found this guest running: it is now the one that will call release.

    A guest that runs without leases (it was started before there was a guard) gets them, where nobody else has them.
    """
    config = load()
    if config.store is None or config.mode == "off":
        return
    domain = parse(xml)
    step("waiting for the lock of this host")
    with hostlock.held():
        this = here(config)
        for one in instance.load_all():
            # Nor an intent: of a file that a running guest was found to have open there may be one beside its record.
            qemu = qemu_of(one) if one.uuid == domain.uuid and one.state in ("held", "running") else None
            if qemu is None:
                continue
            one = one._replace(libvirtd=libvirtd)
            instance.write(one)
            if one.state == "held":
                one = hand_over(one, qemu, this)
            one = look(one, qemu, this)  # what was attached while it ran
            if instance.pending(one):
                errand.see_to(one)
            return
        adopt(domain, libvirtd, this)


def adopt(domain: Domain, libvirtd: Process, this: Here) -> None:
    """
    Take the leases for a guest that runs and has no record. Under the host lock.

    Raises InUse where somebody else has one: a second writer is proven, and running already.
    """
    qemu = chosen(domain.name, domain.uuid)
    if qemu is None:
        return
    others = sweep(this)
    tolerance = Tolerance("it ran before it was guarded")
    try:
        needs = needs_of(domain, LiveFacts())
    except Error as error:
        needs = Needs((claim_on_itself(domain),))
        tolerance.object(error)
    watch_orphans(this, qemu)
    held = admit(domain, needs, None, others, this, libvirtd, tolerance)
    look(hand_over(held, qemu, this), qemu, this)
    report_tolerated(domain, tolerance)
    word, text = "adopted", f"{domain.name} ran without leases, and has them now"
    if tolerance.objections:
        word, text = "alarm", f"{domain.name} runs without leases that it needs: `vmguard explain {typed(domain.name)}`"
    events.record(word, text, domain=domain.name, uuid=domain.uuid)


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
