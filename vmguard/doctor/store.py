# SPDX-License-Identifier: LGPL-2.1-or-later
"""Configuration, store, membership."""

import os
import time
from typing import Optional, Tuple

from vmguard import config, host, membership
from vmguard.doctor.check import Finding, Findings, check, doubtful, ok, unknown, wrong
from vmguard.doctor.look import Look
from vmguard.errors import BadRequest, Error, Misconfigured, Unresolvable
from vmguard.leases import lockspace
from vmguard.leases.store import Store, is_device
from vmguard.report import brief
from vmguard.setup import others, place

# Below that much, in bytes, a directory has room for some twenty storage objects, of 3 MiB each.
ROOM = 64 << 20


@check("configuration")
def configuration(_: Look) -> Findings:
    """It is whole, and this host was set up."""
    try:
        found = config.load()
    except Misconfigured as error:
        fix = error.remedy or "vmguard setup"
        yield wrong(f"{error.where}: {error.why}: every start is refused", fix)
        return
    if found.store is None:
        yield wrong("this host was not set up: nothing is guarded", "vmguard setup")
        return
    yield ok(f"this host is {found.host_id} in {found.store}")


@check("mode")
def mode(look: Look) -> Findings:
    """What is found is acted on."""
    found = look.config()
    if found is None:
        return
    if found.mode == "enforce":
        yield ok("mode = enforce: what would endanger data is refused")
    else:
        yield wrong(f"mode = {found.mode.value}: nothing is refused on this host", "vmguard setup --mode enforce")


@check("store")
def store(look: Look) -> Findings:
    """The store is there, is that of this host, and has room."""
    found = look.config()
    if found is None or found.store is None:
        return
    try:
        there = Store.open(found.store, found.cluster)
    except Error as error:
        fix = getattr(error, "remedy", "") or "mount its filesystem; docs/recovery.md has the rest"
        yield wrong(f"{brief(error)}: every start is refused", fix)
        return
    short, words = _room(there)
    if short:
        yield short
    for text in there.damage():
        yield wrong(f"{text}: what needs it cannot start", "vmguard gc --repair")
    removed = len(there.unnamed())
    if removed:
        yield doubtful(f"the files of {removed} leases were removed; they can be put back", "vmguard gc; see who removes them")
    owner = there.host_record(found.host_id or 0)
    if owner is None or owner.machine != host.key().machine:
        who = owner.host if owner is not None else "nobody"
        yield wrong(f"host id {found.host_id} belongs to {who} there, not to this host", "vmguard setup --host-id auto")
    elif short is None:
        yield ok(f"{there.path} is the store of this cluster, with {words}")


def _room(there: Store) -> Tuple[Optional[Finding], str]:
    """What is to be said where there is too little room, and how much there is."""
    places = there.room()
    if places is not None:
        taken, total = places
        words = f"room for {total - taken} more storage objects"
        fix = "make it larger (`lvextend`, then `lvchange --refresh` on the other hosts)"
        return doubtful(f"{there.path} has {words}", fix) if taken * 10 >= total * 9 else None, words
    room = os.statvfs(there.path)
    free = room.f_bavail * room.f_frsize
    words = f"{free >> 20} MiB free"
    fix = "make room on its filesystem, or `vmguard gc`"
    says = f"{there.path} has {free >> 20} MiB left; each new disk takes leases of 3 MiB"
    return doubtful(says, fix) if free < ROOM else None, words


@check("store-shared")
def shared(look: Look) -> Findings:
    """What the configuration says of who sees the store is what its filesystem says."""
    found = look.config()
    if found is None or found.store is None:
        return
    try:
        if is_device(found.store):
            device = place.device(found.store)
            seen, kind = device.others_see_it, f"a block device ({device.what})"
        else:
            mount = place.look(found.store, others.MOUNTINFO, others.FSTAB)
            seen = place.seen_by_others(mount)
            kind = f"{mount.kind} on {mount.point}" if mount else "an unknown filesystem"
    except BadRequest as error:
        yield wrong(error.why, error.remedy)
        return
    except Unresolvable as error:
        yield doubtful(f"what {error.path} is could not be found out: {error.why}", "look at `vmguard identify`")
        return
    there = look.store()
    if there is None:
        return  # the check above says why
    members = [one for one in lockspace.members(there) if one.host_id != found.host_id] if found.shared else []
    if seen and not found.shared:
        says = f"the store is on {kind}, which others see, and is said to be this host's alone"
        yield wrong(says, "vmguard setup --shared yes")
    elif found.shared and not seen and members and all(one.state == "unknown" for one in members):
        says = f"the store is on {kind}; this host has just joined, and has not seen another one renew yet"
        yield unknown(says, f"ask again in {2 * there.io_timeout} s")
    elif found.shared and not seen and not any(one.state in ("live", "fail", "dead") for one in members):
        fix = "`vmguard setup --store DIR` on storage that all hosts share"
        yield doubtful(f"the store is said to be shared, is on {kind}, and no other host was ever seen in it", fix)
    elif found.shared:
        names = ", ".join(sorted(one.host or str(one.host_id) for one in members if one.state == "live"))
        yield ok(f"the store is on {kind}; alive in it besides this host: {names or 'none now'}")
    elif found.single_host:
        yield ok(f"the store is on {kind}; no other host reaches any storage of this one, by its configuration")
    else:
        fix = "for a cluster: `vmguard setup --store DIR` on shared storage; else `vmguard setup --single-host`"
        yield doubtful(f"the store is this host's alone ({kind}): disks that other hosts can reach are refused", fix)


# On Linux 6.1 each renewal changes the time of the file that all hosts renew in, so they take turns with its lock. A host whose
# storage hangs while it has that lock gives it to nobody until it is fenced, or its watchdog has reset it: later than the
# others' leases have ended. OCFS2 was not tried: its nodes watch each other by the disk.
TAKE_TURNS = ("gfs2",)


@check("store-of-turns")
def of_turns(look: Look) -> Findings:
    """A host whose storage hangs takes nobody else's leases with it."""
    found = look.config()
    if found is None or found.store is None or not found.shared or is_device(found.store):
        return
    there = place.mount_of(found.store, place.mounts(look.read(others.MOUNTINFO) or ""))
    if there is not None and there.kind in TAKE_TURNS:
        says = f"the store is on {there.kind}: when the storage of one host hangs, all lose their leases, and all guests end"
        yield doubtful(says, "vmguard store convert /dev/VG/LV (a shared volume of its own, docs/cluster-lvm.md)")


@check("mount")
def mount(look: Look) -> Findings:
    """After a crash the store's filesystem is mounted, however long its device takes to come."""
    found = look.config()
    if found is None or found.store is None:
        return
    for line in (look.read("/etc/fstab") or "").splitlines():
        words = line.split()
        if len(words) < 4 or words[0].startswith("#") or words[2] not in ("gfs2", "ocfs2"):
            continue
        if found.store != words[1] and not found.store.startswith(words[1].rstrip("/") + "/"):
            continue
        waits = any(option.startswith("x-systemd.device-timeout=") for option in words[3].split(","))
        if waits or "noauto" in words[3].split(","):
            yield ok(f"{words[1]} is mounted at boot however long its device takes")
            continue
        says = (
            f"{words[1]} is given up at boot where its device takes longer than 90 s: after a crash a volume of a shared"
            " group can, and no guest could start then"
        )
        yield doubtful(says, f"add x-systemd.device-timeout=10min to the options of {words[1]} in /etc/fstab")


def _join(_: Look) -> None:
    membership.join_host()


@check("membership", mend=_join)
def member(look: Look) -> Findings:
    """This host is in the lockspace, and what it holds is of this membership."""
    found, there = look.config(), look.store()
    if found is None or there is None or look.sanlock() is None:
        return
    now = lockspace.state(there, found.host_id or 0)
    if now == "joined":
        yield ok(f"member of {there.lockspace}, generation {lockspace.generation(there)}")
    elif now == "joining":
        yield doubtful("this host is just joining", f"wait some {2 * there.io_timeout + 1} s")
    else:
        yield wrong("this host is not a member of the lockspace: no guest can start", "vmguard join", mendable=now == "out")


@check("hosts")
def hosts(look: Look) -> Findings:
    """A host that does not answer keeps what it had until its watchdog must have fired."""
    found, there = look.config(), look.store()
    if found is None or there is None or not found.shared or look.sanlock() is None:
        return
    silent = [one for one in lockspace.members(there) if one.state == "fail"]
    for one in silent:
        says = f"{one.host or one.host_id} has stopped renewing: its disks are free 8 io_timeouts + 60 s after that"
        yield doubtful(says, "see to that host: is it dead, or only cut off?")
    if not silent:
        yield ok("every host that is in it renews")


@check("leases")
def leases(look: Look) -> Findings:
    """sanlock on this host can read every lease."""
    there = look.store()
    if there is None or look.sanlock() is None:
        return
    damaged, newer = there.judged()
    if newer:
        says = f"leases that sanlock on this host is too old for: {len(newer)}; what needs them cannot start here"
        yield wrong(says, "update sanlock on this host to the version of the others")
    for name in damaged:
        identity = there.identity_of(name) or name
        yield wrong(f"the lease of {identity} is damaged: what needs it cannot start", "vmguard gc --repair")
    if not (damaged or newer):
        yield ok("no lease is damaged")


@check("clocks")
def clocks(look: Look) -> Findings:
    """sanlock needs no common clock; the words of a refusal (\"since\"), and proofs about saved states, are written in one."""
    there = look.store()
    if there is None:
        return
    now, ahead = time.time(), {}
    for name in there.noted():
        for note in there.notes_of_name(name):
            if note.since is not None and note.since > now + 60:
                ahead[note.host] = note.since - now
    for who, seconds in sorted(ahead.items()):
        fix = "chrony or systemd-timesyncd on all hosts"
        yield doubtful(f"the clock of {who} is {seconds / 60:.0f} minutes ahead of this one, or was", fix)
    synchronized = (look.said("timedatectl", "show", "--property=NTPSynchronized", "--value") or "").strip()
    if synchronized == "no":
        yield doubtful("the clock of this host is not synchronized", "start chrony or systemd-timesyncd")
    elif not ahead:
        yield ok("no note of another host is from the future")
