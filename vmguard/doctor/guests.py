# SPDX-License-Identifier: LGPL-2.1-or-later
"""Guests that run without what protects them."""

from vmguard import host, instance, overrides, relied
from vmguard.doctor.check import Findings, check, doubtful, ok, wrong
from vmguard.doctor.look import Look
from vmguard.errors import NotJoined
from vmguard.setup import adoption, daemons
from vmguard.setup.steps import AGENT_UNIT


def _adopt(_: Look) -> None:
    adoption.take([])


@check("guests", mend=_adopt)
def guests(look: Look) -> Findings:
    """Every guest of libvirt's has a record, and leases for all that it needs."""
    if look.config() is None:
        return
    unguarded = adoption.unguarded()
    for qemu in unguarded:
        says = f"{qemu.name} (process {qemu.process.pid}) runs without any lease: started without the guard, or before it"
        yield wrong(says, "vmguard setup (takes its leases; it runs on)", mendable=True)
    boot = host.boot_id()
    records = [one for one in instance.load_all() if one.boot_id == boot]
    bad = 0
    for one in records:
        missing = [want.claim.path for want in one.wants if want.missing]
        if missing:
            says = f"{one.name} runs without leases for {', '.join(missing)} ({one.note or 'taken by somebody else'})"
            yield wrong(says, f"stop {one.name}, or what has them: `vmguard explain {one.name}` says who")
        if one.frozen:
            yield wrong(f"{one.name} is stopped until its leases are certain", "vmguard join")
        bad += bool(missing or one.frozen)
    if not unguarded and not bad:
        yield ok(f"{len(records)} guests run, all with their leases" if records else "no guest runs")


@check("leases-of-guests")
def leases(look: Look) -> Findings:
    """What the guests of this host have leases for, they have on the disk too."""
    found = look.config()
    if found is None or look.store() is None or look.sanlock() is None:
        return
    try:
        lost = relied.vanished(found)
    except NotJoined:
        return  # membership is a check of its own
    for one in lost:
        yield wrong(one.text, relied.REMEDY)
    if not lost:
        yield ok("the leases of all guests are on the disk")


def _start_agent(_: Look) -> None:
    if daemons.systemd_runs():
        daemons.enable_unit(AGENT_UNIT)
        daemons.start_unit(AGENT_UNIT)


@check("agent", mend=_start_agent)
def agent(look: Look) -> Findings:
    """vmguardd sees what no hook is called for: hot-plugged disks, snapshots, changes of media."""
    if look.config() is None:
        return
    if daemons.agent_watches():
        yield ok("vmguardd is at work")
    else:
        says = "vmguardd does not run: what is plugged into running guests is not claimed"
        yield doubtful(says, f"systemctl enable --now {AGENT_UNIT}", mendable=daemons.systemd_runs())


@check("overrides")
def pending(look: Look) -> Findings:
    """A word that lets the next start through, whatever is found."""
    if look.config() is None:
        return
    found = overrides.pending()
    for one in found:
        says = f"the next start of {one.name} goes through, whatever is found: {one.reason} ({one.by})"
        yield doubtful(says, f"vmguard override --withdraw {one.name}")
    if not found:
        yield ok("no override is pending")
