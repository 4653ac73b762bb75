# SPDX-License-Identifier: LGPL-2.1-or-later
"""sanlock, its watchdog, and the times of those whom it must outlast."""

import os
import re
from typing import Optional

from vmguard import host
from vmguard.doctor.check import Findings, check, doubtful, ok, wrong
from vmguard.doctor.look import Look
from vmguard.errors import SanlockDown
from vmguard.leases import status
from vmguard.setup import daemons, libvirtconf, libvirtside, others
from vmguard.setup.libvirtconf import sanlock_get
from vmguard.setup.plan import contents

# sanlock gives a host up, and its guests, after so many io_timeouts without a renewal (timeouts.c).
FAIL = 8


def _start(_: Look) -> None:
    if daemons.systemd_runs():
        daemons.start_unit("sanlock.service")


@check("sanlock", mend=_start)
def runs(_: Look) -> Findings:
    """Its daemon answers."""
    try:
        found = status.status().daemon
    except SanlockDown as error:
        fix = "systemctl start sanlock, then `vmguard join`"
        says = f"its daemon does not answer ({os.strerror(error.errno)}): every start is refused"
        yield wrong(says, fix, mendable=daemons.systemd_runs())
        return
    yield ok(f"sanlock {found.version} answers (process {found.pid})")


@check("host-name")
def host_name(look: Look) -> Findings:
    """By a name that stays, a host is back in the store at once; by that of another host, it takes its place."""
    found = look.sanlock()
    if found is None or look.config() is None:
        return
    written = sanlock_get(contents(others.SANLOCK_CONF) or b"", "our_host_name")
    now, own = found.daemon.host_name, host.key().machine
    there = look.store()
    named = [one.host for one in there.hosts_known() if one.machine == written] if there and written != own else []
    if named:
        says = f"{others.SANLOCK_CONF} gives this host the name of {named[0]}, as it was on the host that this is a clone of"
        yield doubtful(says, "vmguard setup (writes its own)")
    elif written is None and now != own:
        fix = "vmguard setup (writes our_host_name; after a crash a join takes minutes without it)"
        yield doubtful(f"{others.SANLOCK_CONF} names no our_host_name", fix)
    elif written is not None and written != now:
        fix = "restart sanlock when no guest runs"
        yield doubtful(f"sanlock calls this host {now}, and will call it {written} after its next start", fix)
    else:
        yield ok(f"sanlock knows this host as {now}, also after a crash")


@check("watchdog")
def watchdog(look: Look) -> Findings:
    """If sanlock's daemon dies, only a watchdog ends its guests before others may have their disks."""
    found = look.sanlock()
    config = look.config()
    if found is None or config is None:
        return
    if not found.daemon.use_watchdog:
        fix = "load a watchdog driver, start wdmd, and sanlock without -w 0: WATCHDOG in vmguard(8)"
        says = "sanlock runs without a watchdog (-w 0): if its daemon dies, guests run on without leases"
        if _owned(look) or config.without_watchdog == "accept":
            yield doubtful(says, fix)
        else:
            yield wrong(says + ", and without the plugin no start is let through", fix)
        return
    if not daemons.find(("wdmd",)):
        yield wrong("sanlock uses the watchdog, and wdmd does not run: no join succeeds", "systemctl start wdmd")
        return
    drivers = [
        (look.read(f"/sys/class/watchdog/{name}/identity") or "").strip() for name in look.listed("/sys/class/watchdog")
    ]
    if not drivers:
        yield wrong("wdmd runs, and the kernel has no watchdog", "load a driver: modprobe iTCO_wdt, or softdog")
    elif all(driver in ("Software Watchdog", "") for driver in drivers):
        fix = "use one of the board, or IPMI's: modprobe iTCO_wdt, or ipmi_watchdog"
        yield doubtful("the watchdog is the kernel's own (softdog): it dies with the kernel", fix)
    else:
        yield ok("wdmd runs, with " + ", ".join(filter(None, drivers)))


def _owned(look: Look) -> bool:
    """Whether QEMU owns its leases: by what libvirt's daemon has in memory, or by what it will load when it is asked again."""
    running = look.libvirt()
    if running:
        return any(host.libvirt_has_sanlock_plugin(daemon.pid) for daemon in running)
    wanted = all(libvirtside.now(each) == libvirtconf.written(each.value) for each in libvirtside.settings())
    return wanted and daemons.plugin() is not None


@check("timeouts")
def timeouts(look: Look) -> Findings:
    """Storage that is away for shorter than others need to bring it back must not cost the guests their leases."""
    config = look.config()
    if config is None:
        return
    limit, found = FAIL * config.io_timeout, []
    multipath = _queueing(look)
    if multipath == float("inf"):
        says = f"multipath retries for ever without a path; sanlock gives this host up after {limit} s"
        yield doubtful(says, "set no_path_retry to a number, for the LUN of the store, in multipath.conf")
        return
    if multipath is not None and multipath >= limit:
        found.append((f"multipath retries for {multipath:g} s without a path", multipath))
    token = _corosync(look)
    if token is not None and token >= limit:
        says = f"corosync takes {token:g} s to call a node lost, and its cluster filesystems stand still until then"
        found.append((says, token))
    for says, seconds in found:
        fix = f"a store with --io-timeout {int(seconds // FAIL) + 1} or more; or shorter times there"
        yield doubtful(f"{says}; sanlock gives this host up after {limit} s", fix)
    if not found:
        yield ok(f"sanlock gives this host up after {limit} s; nothing here is known to take longer")


def _queueing(look: Look) -> Optional[float]:
    """Seconds that multipath retries without a path, by its configuration; None where it does not run or not say."""
    text = look.read("/etc/multipath.conf")
    if text is None:
        return None
    text = re.sub(r"[#!].*", "", text)
    if re.search(r"\bqueue_if_no_path\b", text) and not re.search(r"\bno_path_retry\b", text):
        return float("inf")
    retries = re.findall(r'\bno_path_retry\s+"?(\w+)"?', text)
    if "queue" in retries:
        return float("inf")
    polling = re.search(r'\bpolling_interval\s+"?(\d+)"?', text)
    numbers = [int(each) for each in retries if each.isdigit()]
    return float(max(numbers) * int(polling.group(1) if polling else 5)) if numbers else None


def _corosync(look: Look) -> Optional[float]:
    """Seconds until a node is lost: token and consensus; None without corosync."""
    text = look.read("/etc/corosync/corosync.conf")
    if text is None:
        return None
    text = re.sub(r"(?m)^\s*#.*", "", text)
    token = re.search(r"\btoken:\s*(\d+)", text)
    consensus = re.search(r"\bconsensus:\s*(\d+)", text)
    # corosync.conf(5): 3000 ms (1000 before version 3), and 1.2 times that.
    token_ms = int(token.group(1)) if token else 3000
    return (token_ms + (int(consensus.group(1)) if consensus else 1.2 * token_ms)) / 1000


@check("sanlock-user")
def user(look: Look) -> Findings:
    """sanlock itself can read and write the leases."""
    found, store = look.sanlock(), look.store()
    if found is None or store is None:
        return
    path, daemon = store.lockspace_path, found.daemon
    owner = os.stat(path)
    listed = re.search(r"(?m)^Groups:(.*)$", look.read(f"/proc/{daemon.pid}/status") or "")
    groups = {daemon.gid, *(int(word) for word in (listed.group(1).split() if listed else ()))}
    if daemon.uid == 0 or (daemon.uid == owner.st_uid and owner.st_mode & 0o600 == 0o600):
        yield ok(f"sanlock (user {daemon.uid}) can write {path}")
    elif owner.st_gid in groups and owner.st_mode & 0o060 == 0o060:
        yield ok(f"sanlock (user {daemon.uid}, by group {owner.st_gid}) can write {path}")
    elif store.kind == "device":
        yield wrong(f"sanlock (user {daemon.uid}) cannot write {path}", f"add sanlock's user to group {owner.st_gid}")
    else:
        fix = f"chgrp -R {daemon.gid} {store.path}; chmod -R g+rwX {store.path}"
        yield wrong(f"sanlock (user {daemon.uid}, group {daemon.gid}) cannot write {path}", fix)
