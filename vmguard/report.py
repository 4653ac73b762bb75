# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Errors as sentences: what happened, to which disk of which domain, who is in the way, what to do.

The only place with prose. `sentence` is for a start that was refused (it is what `virsh start` prints), `of_running` for a
guest that runs or has ended, `message` for commands.
"""

import errno as errnos
import os
import time

from vmguard import errors, events
from vmguard._typing import TYPE_CHECKING, Callable, Dict, List, Optional
from vmguard.claims import Claim
from vmguard.text import duration, moment, plain, quoted, typed

if TYPE_CHECKING:
    from vmguard.openfiles import Finding

# sanlock_rv.h: those an administrator may meet, in words.
CODES = {
    -202: "an I/O timeout on the lease storage",
    -203: "the watchdog daemon wdmd does not run",
    -210: "an I/O error on the lease storage",
    -211: "an I/O error on the lease storage",
    -214: "the lease is damaged",
    -220: "an I/O error on the lease storage",
    -221: "an I/O error on the lease storage",
    -223: "there is no lease at that place",
    -224: "the lease was made by a newer version of sanlock",
    -262: "the host id is used by another host",
}


# What becomes of a start, in fact or if it were made.
NOT_STARTED, WOULD_NOT, TOLERATED = "was not started", "would not be started", "would not have been started"


def sentence(error: errors.Error, domain: str, now: Optional[float] = None, outcome: str = NOT_STARTED) -> str:
    """
    The text of a refusal. The first line says it all; the lines below say who, since when, and what to do.

    now: seconds since the epoch, for "since"; the present by default.
    """
    return _text(f"domain {quoted(domain)} {outcome}", _words(error, domain, now))


def of_running(error: errors.Error, domain: str, now: Optional[float] = None) -> str:
    """The same about a guest that runs, or has run: nobody was refusing its start. For the log of events."""
    if isinstance(error, errors.LeaseLost):
        do = "see who has written it (`vmguard audit`), check its filesystem, then start the guest"
        lines = [f"the lease of {error.claim.what} was lost.", *_lost(error), f"  do:    {do}"]
    else:
        lines = _words(error, "", now)
    return _text(f"domain {quoted(domain)}", lines)


def of_tolerated(text: str, domain: str) -> str:
    """A refusal that was none: the start went through, in audit mode or by an override."""
    head = f"domain {quoted(domain)} "
    return text.replace(head + NOT_STARTED, head + TOLERATED, 1)


def bug_words(domain: str) -> str:
    """The text of a start that an error of vmguard's own has ended."""
    return _text(
        f"domain {quoted(domain)} {NOT_STARTED}",
        [
            "an error in vmguard itself; nothing is known about its disks.",
            f"  why:   {events.path()} has the trace",
            "  do:    start it again. If that fails too, report the trace; mode = off (vmguard.conf(5)) starts guests",
            "         unguarded meanwhile",
        ],
    )


def message(error: errors.Error) -> str:
    """The text of an error that a command ends with."""
    if isinstance(error, errors.HostIdTaken):
        return f"host id {error.host_id} is taken in {plain(error.store)}: {_taken_by(error)}.\ndo:  {_free_id(error)}"
    if isinstance(error, errors.Misconfigured):
        return f"{plain(error.where)}: {error.why}" + (f"\ndo:  {error.remedy}" if error.remedy else "")
    if isinstance(error, errors.BadRequest):
        return error.why + (f"\ndo:  {error.remedy}" if error.remedy else "")
    text = _text("", _words(error, "", None))
    if os.geteuid() and "permission denied" in text.lower():
        # Nothing has to be mended because another user may not look at it.
        return "\n".join([*(line for line in text.splitlines() if "  do:  " not in line), "  do:    run it as root"])
    return text


def brief(error: errors.Error) -> str:
    """The same as a clause: what it is, and why."""
    first, *more = message(error).splitlines()
    why = next((line.partition("why:")[2].strip() for line in more if line.startswith("  why:")), "")
    return first.replace("vmguard: ", "", 1).rstrip(".") + (f" ({why})" if why else "")


def finding_words(finding: "Finding") -> str:
    """What to think of one object that QEMU has open, as a clause."""
    opened, claim = finding.opened, finding.claim
    words = {
        "claimed": "claimed",
        "leaseless": "claimed, but it runs without this lease; `vmguard status` says why",
        "dormant": "NOT CLAIMED; only read until its guest arrives",
        "read": "NOT CLAIMED; only read",
        "written": "WRITTEN, NOT CLAIMED" if claim is None else f"WRITTEN, but claimed {claim.mode.value} only",
        "opaque": "given to the guest whole; what is behind it cannot be seen",
        "unknown": f"cannot be identified: {opened.unknown}",
    }[finding.verdict.value]
    return words + ("; the file has been deleted" if opened.deleted else "")


def not_open_words(claim: Claim) -> str:
    """The same for a claim on something that QEMU has not open."""
    return "claimed, and QEMU does not have it open"


def _text(head: str, lines: List[str]) -> str:
    """Who says it, about whom, and what."""
    return "\n".join([": ".join(filter(None, ("vmguard", head, lines[0]))), *lines[1:]])


def _words(error: errors.Error, domain: str, now: Optional[float]) -> List[str]:
    return _REFUSALS.get(type(error), _anything)(error, domain, time.time() if now is None else now)


# -- one function a kind: what is wrong, as a clause behind its head, and the lines below --------------------------------
# domain: the one whose start is refused; "" where nobody starts anything.

# What only a refused start is told.
_AGAIN = ", then start it again"


def _place(what: str, path: str) -> str:
    """The line that names the storage. What it is to the domain stands in the head; the path is what can be looked at."""
    return f"  {'disk: ' if what.startswith('disk') else 'path: '} {plain(path)}"


def _in_use(error: errors.InUse, domain: str, now: float) -> List[str]:
    claim, holders = error.claim, error.holders
    itself = claim.identity.startswith("vm:")
    head = "it runs already." if itself else f"{claim.what} is in use."
    lines = [head]
    if not itself:
        lines.append(_place(claim.what, claim.path))
        if not claim.why.startswith("the guest"):
            lines.append(f"  why:   {claim.why}")
    for holder in holders:
        lines.append(f"  by:    {_holder(holder, claim, now)}")
    if not holders:
        lines.append("  by:    somebody who has let go of it since")
    lines.append(f"  do:    {_in_use_remedy(error, domain)}")
    return lines


def _where(holder: errors.Holder) -> str:
    if holder.here:
        return f"this host ({os.uname().nodename})"
    return f"host {plain(holder.host)}" if holder.host else f"the host with id {holder.host_id}"


def _holder(holder: errors.Holder, claim: Claim, now: float) -> str:
    if holder.domain is None:
        text = f"somebody on {_where(holder)}; its note does not say which domain"
    else:
        text = f"domain {quoted(holder.domain)} on {_where(holder)}"
        if not claim.identity.startswith("vm:"):
            text += f", as {plain(holder.path or '?')}"
            if holder.shared:
                text += " (reading or sharing it)"
        if holder.since is not None:
            text += f", since {moment(holder.since)} ({duration(now - holder.since)})"
    if holder.slot == "ticket":
        text += "; it is just migrating there"
    elif holder.slot == "drain":
        text += "; it has ended, and its last writes are still on their way to the disk"
    if holder.alive is False:
        text += "; that host does not answer"
    return text


def _in_use_remedy(error: errors.InUse, domain: str) -> str:
    holders = error.holders
    if not holders:
        return "start it again"
    first = holders[0]
    if first.alive is False:
        return (
            f"if {_where(first)} is really down, wait: its leases end by themselves, within minutes, and the start"
            " then succeeds. `vmguard status` calls that host dead then"
        )
    if first.slot == "drain":
        return f"wait until {_where(first)} has written them, some seconds as a rule, and start it again"
    who = quoted(first.domain) if first.domain else "whoever has it"
    if error.claim.identity.startswith("vm:"):
        stop = f": virsh shutdown {typed(first.domain)}, on {_where(first)}" if first.domain else f", on {_where(first)}"
        return f"use it where it runs, or stop it there{stop}"
    if not domain:
        return f"stop {who} on {_where(first)}, or take the disk away from the guest that came to it"
    named = f" (`vmguard explain {typed(domain)}` shows how both names lead to one disk)"
    return (
        f"stop {who} on {_where(first)}, or give {quoted(domain)} a disk of its own"
        + (named if first.path != error.claim.path else "")
    )


def _used_by_host(error: errors.UsedByHost, domain: str, now: float) -> List[str]:
    return [
        f"{error.what} is in use by this host itself.",
        _place(error.what, error.path),
        f"  by:    this host: {error.how}",
        "  do:    unmount or deactivate it on this host first, or give the domain another disk",
    ]


def _unguardable(error: errors.Unguardable, domain: str, now: float) -> List[str]:
    return [
        f"{error.what} cannot be guarded.",
        _place(error.what, error.path),
        f"  why:   {error.why}",
        f"  do:    name {plain(error.instead)} instead"
        if error.instead
        else "  do:    move it to other storage, such as a volume of LVM, or a file on ext4, XFS, GFS2 or NFS",
    ]


def _named_twice(error: errors.NamedTwice, domain: str, now: float) -> List[str]:
    return [
        "it names one storage object twice, and writes it.",
        f"  once:  {error.first.what}, {plain(error.first.path)}: {error.first.why}",
        f"  again: {error.second.what}, {plain(error.second.path)}: {error.second.why}",
        "  do:    take one of them out of the definition",
    ]


def _local_store(error: errors.LocalStore, domain: str, now: float) -> List[str]:
    return [
        f"other hosts can see {error.claim.what}, but not the leases of this host.",
        f"{_place(error.claim.what, error.claim.path)}: {error.claim.why}",
        f"  store: {plain(error.store)}, which is local to this host",
        "  do:    put the leases on storage that all hosts share (vmguard setup --store DIR on each), or say that they",
        "         are: vmguard setup --shared yes, or that no other host can reach this storage: vmguard setup --single-host",
    ]


def _no_watchdog(error: errors.NoWatchdog, domain: str, now: float) -> List[str]:
    return [
        "if it lost its leases, it would run on, beside the next guest that gets its disks.",
        "  why:   libvirt has not loaded its sanlock plugin, so sanlock could not stop QEMU; and sanlock runs without a",
        "         watchdog that would reset this host",
        "  do:    install the plugin (Debian 12: libvirt-sanlock), run vmguard setup, restart libvirtd (guests keep",
        "         running); or run sanlock with wdmd; or accept it: without_watchdog = accept in vmguard.conf",
    ]


def _lease_lost(error: errors.LeaseLost, domain: str, now: float) -> List[str]:
    return [
        f"the lease of {error.claim.what} was lost while it started; it was stopped at once.",
        *_lost(error),
        "  do:    start it again; if that fails, look at `vmguard status` and /var/log/sanlock.log",
    ]


def _lost(error: errors.LeaseLost) -> List[str]:
    found = "it is gone" if error.found is None else f"its version is {error.found}"
    expected = "" if error.expected is None else f", and it was held at version {error.expected}"
    return [
        _place(error.claim.what, error.claim.path),
        f"  why:   {found}{expected}: another guest may have written the disk in between",
    ]


def _not_coming(error: errors.NotComing, domain: str, now: float) -> List[str]:
    return [
        "it was announced as a guest that migrates in, and was then started here.",
        "  do:    start it again: it is then checked as any other start",
    ]


def _wrong_disk(error: errors.WrongDisk, domain: str, now: float) -> List[str]:
    return [
        f"{error.claim.what} is another disk here than on host {plain(error.source)}, where it comes from.",
        _place(error.claim.what, error.claim.path),
        "  why:   the same path leads to different storage on the two hosts, and the migration does not copy it",
        "  do:    put the disk where both hosts reach it by that path, or migrate with --copy-storage-all",
    ]


def _state_stale(error: errors.StateStale, domain: str, now: float) -> List[str]:
    claim, writer = error.claim, error.writer
    why = {
        "again": "this state was restored before, and the guest has run since",
        "since": "the guest has run since the state was saved",
        "other": f"another guest has had {claim.what} since the state was saved",
    }[error.how]
    lines = ["the saved state does not fit its disks any more."]
    if error.how == "other":
        lines.append(_place(claim.what, claim.path))
    started = f", started {moment(writer.since)} ({duration(now - writer.since)} ago)" if writer.since is not None else ""
    return [
        *lines,
        f"  why:   {why}",
        f"  by:    domain {quoted(writer.domain or '?')} on {_where(writer)}{started}",
        "  do:    discard the state and start the guest afresh (virsh managedsave-remove, virsh start --force-boot). To",
        f"         restore it all the same, and lose what was written since: vmguard override {typed(domain)} --reason '...'",
    ]


def _state_unproven(error: errors.StateUnproven, domain: str, now: float) -> List[str]:
    saved = f" (saved {moment(error.saved)})" if error.saved else ""
    return _cannot_tell(
        domain,
        f"nothing shows that nobody has written {error.claim.what} since its state was saved{saved}",
        f"{plain(error.claim.path)}: its lease was held in between, and no note says whether it was written",
        f"if you know that nobody has: vmguard override {typed(domain)} --reason '...'; else discard the state and start the"
        " guest afresh (virsh managedsave-remove)",
    )


def _cannot_tell(domain: str, what: str, why: str, do: str) -> List[str]:
    return [
        f"vmguard cannot tell whether it is safe: {what}." if domain else f"{what}.",
        f"  why:   {why}",
        f"  do:    {do if domain else do.replace(_AGAIN, '')}",
    ]


def _bad_domain(error: errors.BadDomain, domain: str, now: float) -> List[str]:
    line = f" (line {error.line} of its XML)" if error.line else ""
    return _cannot_tell(domain, "its definition cannot be understood", error.why + line, "mend the definition")


def _unresolvable(error: errors.Unresolvable, domain: str, now: float) -> List[str]:
    what = error.what or plain(error.path)
    do = "make the path available on this host, or correct it in the definition"
    volume = None
    if error.missing:
        from vmguard.storage import lvm  # every hook loads this module, and `started` and `release` no resolver

        volume = lvm.named(error.path)
    if volume:
        # -asy is -ay where no lock manager keeps the group
        do = f"if it is a volume of LVM, which is not active on this host: lvchange -asy {volume}; else {do}"
    return _cannot_tell(domain, f"it could not find out what {what} is", f"{plain(error.path)}: {error.why}", do)


def _sanlock_failed(error: errors.SanlockFailed, domain: str, now: float) -> List[str]:
    words = CODES.get(error.code) or (os.strerror(-error.code) if -200 < error.code < 0 else "an error")
    return _cannot_tell(
        domain,
        f"a call to sanlock failed ({error.call})",
        f"{plain(error.about)}{': ' if error.about else ''}{words} (sanlock {error.code})",
        "look at `vmguard status` and /var/log/sanlock.log, then start it again",
    )


def _sanlock_down(error: errors.SanlockDown, domain: str, now: float) -> List[str]:
    return _cannot_tell(
        domain,
        "the sanlock daemon does not answer",
        errnos.errorcode.get(error.errno, str(error.errno)) + ": " + os.strerror(error.errno),
        "start sanlock (systemctl start sanlock), then run `vmguard join`: it stops guests that run for some seconds, and"
        " takes their leases again",
    )


def _not_joined(error: errors.NotJoined, domain: str, now: float) -> List[str]:
    if error.joining:
        return _cannot_tell(
            domain,
            "this host is just joining the lockspace",
            f"{plain(error.lockspace)}: leases can be taken once that is done, within a minute as a rule",
            "wait, then start it again",
        )
    return _cannot_tell(
        domain,
        "this host is not a member of the lockspace",
        f"{plain(error.lockspace)}: no lease can be taken without that",
        "run `vmguard join`, which says what stands in its way, then start it again",
    )


def _unexplained(error: errors.Unexplained, domain: str, now: float) -> List[str]:
    return _cannot_tell(
        domain,
        f"this host holds the lease of {error.claim.what}, and no record says for whom",
        plain(error.claim.path),
        "run `vmguard gc`: it says which guests run without a record, and gives back what nobody needs",
    )


_DAMAGE = {
    -errnos.EMSGSIZE: "it is too short",
    -errnos.ENOENT: "it was there, and has been removed; whoever had it may still use its storage",
    -errnos.ESTALE: "another file has been put in its place, as by restoring a backup; somebody may have the old one",
}


def _lease_damaged(error: errors.LeaseDamaged, domain: str, now: float) -> List[str]:
    words = _DAMAGE.get(error.code) or CODES.get(error.code, f"sanlock {error.code}")
    return _cannot_tell(
        domain,
        "a lease is damaged",
        f"{plain(error.path)}, the lease of {plain(error.identity)}: {words}",
        "run `vmguard gc --repair`: it makes damaged leases anew where nobody can be holding them",
    )


def _lease_newer(error: errors.LeaseNewer, domain: str, now: float) -> List[str]:
    return _cannot_tell(
        domain,
        "a lease was made by a newer version of sanlock",
        f"{plain(error.path)}, the lease of {plain(error.identity)}: sanlock on this host does not know its format",
        "update sanlock on this host to the version of the others; the lease is whole, and must not be made anew",
    )


def _store_broken(error: errors.StoreBroken, domain: str, now: float) -> List[str]:
    return _cannot_tell(
        domain,
        "the lease store cannot be used",
        f"{plain(error.path)}: {error.why}",
        error.remedy or "mount or mend the store (docs/recovery.md lists what can be wrong with it), then start it again",
    )


def _record_broken(error: errors.RecordBroken, domain: str, now: float) -> List[str]:
    return _cannot_tell(
        domain,
        "the records of this host cannot be used",
        f"{plain(error.path)}: {error.why}",
        "make room if /run is full, run `vmguard gc`, which puts damaged records aside, then start it again",
    )


def _late(error: errors.Late, domain: str, now: float) -> List[str]:
    late = f"there was no answer within {error.seconds:g} seconds"
    return _cannot_tell(
        domain,
        late if error.seconds else "libvirt did not wait for the answer",
        f"it was {plain(error.doing)}",
        "see whether the storage and sanlock answer (`vmguard status`), then start it again",
    )


def _misconfigured(error: errors.Misconfigured, domain: str, now: float) -> List[str]:
    return _cannot_tell(
        domain,
        "vmguard is set up wrongly on this host",
        f"{plain(error.where)}: {error.why}",
        error.remedy or "correct it, then start it again",
    )


def _host_id_taken(error: errors.HostIdTaken, domain: str, now: float) -> List[str]:
    why = f"{plain(error.store)}: {_taken_by(error)}"
    return _cannot_tell(domain, f"the host id {error.host_id} of this host is taken", why, _free_id(error))


def _taken_by(error: errors.HostIdTaken) -> str:
    return f"{plain(error.by)} {'is renewing it right now' if error.live else 'has claimed it'}"


def _free_id(error: errors.HostIdTaken) -> str:
    if error.live:  # and the id is that of our own machine id: setup would find it again
        return (
            "a cloned host image has the identity of its original: give this host its own (remove /etc/machine-id, run"
            " systemd-machine-id-setup), then run `vmguard setup --host-id auto`"
        )
    return "use another one: `vmguard setup --host-id auto` finds one that is free"


def _anything(error: errors.Error, domain: str, now: float) -> List[str]:
    do = "look into /var/log/vmguard/events.jsonl, and report this"
    return _cannot_tell(domain, "something went wrong", f"{type(error).__name__}: {error}", do)


_REFUSALS: Dict[type, Callable[..., List[str]]] = {
    errors.InUse: _in_use,
    errors.UsedByHost: _used_by_host,
    errors.Unguardable: _unguardable,
    errors.NamedTwice: _named_twice,
    errors.LocalStore: _local_store,
    errors.NoWatchdog: _no_watchdog,
    errors.LeaseLost: _lease_lost,
    errors.NotComing: _not_coming,
    errors.WrongDisk: _wrong_disk,
    errors.StateStale: _state_stale,
    errors.StateUnproven: _state_unproven,
    errors.BadDomain: _bad_domain,
    errors.Unresolvable: _unresolvable,
    errors.SanlockFailed: _sanlock_failed,
    errors.SanlockDown: _sanlock_down,
    errors.NotJoined: _not_joined,
    errors.Unexplained: _unexplained,
    errors.LeaseDamaged: _lease_damaged,
    errors.LeaseNewer: _lease_newer,
    errors.StoreBroken: _store_broken,
    errors.StoreMoved: _store_broken,
    errors.RecordBroken: _record_broken,
    errors.Late: _late,
    errors.Misconfigured: _misconfigured,
    errors.HostIdTaken: _host_id_taken,
}
