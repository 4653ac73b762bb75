# SPDX-License-Identifier: LGPL-2.1-or-later
"""
How a store comes into being on a block device.

Nothing that is on the device already is written over: it must be empty. And of two setups at the same moment one makes
the store: a claim is written where the head will be, and whoever finds his own there after a while goes on. A claim whose
maker died is taken over after much longer than a maker may take.
"""

import os
import subprocess
import time

from vmguard import host
from vmguard._typing import Any, Dict, Optional
from vmguard.errors import BadRequest, StoreBroken
from vmguard.leases import _cluster, _notes, client, lockspace
from vmguard.leases._cluster import Cluster, Elsewhere
from vmguard.leases.device import layout, store
from vmguard.leases.device.blocks import Blocks
from vmguard.leases.device.layout import Head
from vmguard.leases.status import Facts

# Seconds. A write takes milliseconds: of two claims, the later is there long before both look again.
SETTLES = store.SETTLES
# The maker gives up after this; the others wait longer before they take his claim for abandoned.
AT_MOST, ABANDONED = 30.0, 60.0

FEWEST = 4  # places


def make(path: str, io_timeout: int, instead_of: Optional[Elsewhere]) -> None:
    """
    A store on this device, if there is none; see Store.create. Raises BadRequest for a device that is in use or not
    empty, StoreBroken, SanlockDown, SanlockFailed.
    """
    facts = client.daemon_facts()
    blocks = Blocks(path)
    if blocks.sector not in store.SECTORS:
        raise BadRequest(
            f"{path} has sectors of {blocks.sector} bytes, and sanlock knows only 512 and 4096",
            "name another device",
        )
    if blocks.size() < layout.bytes_for(FEWEST):
        least = layout.bytes_for(FEWEST) // layout.MiB
        raise BadRequest(f"{path} is too small", f"it needs {least} MiB at least, and 4 MiB for each storage object")
    _see_daemon_may_write(path, facts)
    end = time.monotonic() + ABANDONED
    seen = b""
    while True:
        head = blocks.read(layout.HEAD)
        if layout.decode_head(path, head) is not None:
            return  # there is one
        if head[:8] != layout.SETUP_KIND:
            try:
                see_empty(blocks)
            except BadRequest:
                if blocks.read(layout.HEAD)[:8] in (layout.HEAD_KIND, layout.SETUP_KIND):
                    continue  # another setup was quicker
                raise
        elif not _maker_is_dead(head):
            if head != seen:
                seen, end = head, time.monotonic() + ABANDONED
            if time.monotonic() < end:
                time.sleep(0.1)
                continue
        if _try(blocks, head, _cluster.new(io_timeout, blocks.sector, instead_of)):
            return


def _try(blocks: Blocks, before: bytes, facts: Cluster) -> bool:
    """
    Claim the device, and make the store if nobody else claims it. False: somebody does.

    before: the head, which must still be so.
    """
    began = time.monotonic()
    me = host.process(os.getpid())
    claim = {
        "cluster": facts.cluster,
        "boot": host.boot_id(),
        "pid": os.getpid(),
        "start": me.start if me is not None else 0,
        "by": facts.by[:48],
    }
    ours = layout.seal(layout.SETUP_KIND, "", layout.HEAD, _notes.text(claim))
    if blocks.read(layout.HEAD) != before:
        return False
    blocks.write(layout.HEAD, ours)
    time.sleep(SETTLES)

    def still_ours() -> bool:
        if time.monotonic() - began > AT_MOST:
            raise StoreBroken(blocks.path, f"to make the store took longer than {AT_MOST:.0f} s", "run setup again")
        return blocks.read(layout.HEAD) == ours

    if not still_ours():
        return False
    blocks.write(layout.HOSTS, bytes(layout.MiB))
    blocks.write(layout.INDEX, layout.empty_index(facts.cluster))
    if not still_ours():
        return False
    client.format_lockspace(facts.lockspace, blocks.path, facts.io_timeout, layout.LOCKSPACE, blocks.sector)
    head = Head(facts, blocks.size(), store.volume_of(blocks))
    made = store.DeviceStore(blocks, head)
    client.format_lease(made.index.guard())
    client.check_lockspace(facts.lockspace, blocks.path, layout.LOCKSPACE, blocks.sector)
    sector, marks = layout.encode_head(head)
    if not still_ours():
        return False
    blocks.write(layout.MARKS, marks)
    blocks.write(layout.HEAD, sector)
    return True


def _maker_is_dead(head: bytes) -> bool:
    """Whether a claim is of a process of this host that has ended. Of other hosts' nothing can be said."""
    found = layout.unseal(layout.SETUP_KIND, "", layout.HEAD, head)
    claim: Dict[str, Any] = (_notes.members(found[1]) if found is not None else None) or {}
    if claim.get("boot") != host.boot_id() or type(claim.get("pid")) is not int:
        return False
    return host.process(claim["pid"]) != host.Process(claim["pid"], claim.get("start") or 0)


def see_empty(blocks: Blocks) -> None:
    """
    Raises BadRequest where anything is on the device: what looks like data is data. `lvcreate` zeroes the beginning of a
    new volume, and a new LUN is zeros.
    """
    path = blocks.path
    try:
        done = subprocess.run(
            ["blkid", "-p", "-o", "export", path], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise StoreBroken(path, f"blkid could not look whether it is empty ({error})") from error
    remedy = f"name an empty device; if what is on {path} can go: `wipefs -a {path}`, and zeros over its first MiB"
    if done.returncode == 0:
        kinds = dict(line.partition("=")[::2] for line in done.stdout.splitlines())
        kind = kinds.get("TYPE") or kinds.get("PTTYPE") or "something"
        raise BadRequest(f"{path} is not empty: there is {kind} on it", remedy)
    if done.returncode != 2:  # 2: nothing was found; 8: several things
        raise BadRequest(f"{path} is not empty (blkid ended with {done.returncode})", remedy)
    if any(blocks.read(layout.HEAD)):
        raise BadRequest(f"{path} is not empty: it does not begin with zeros", remedy)
    _see_nobody_alive(blocks)


def _see_nobody_alive(blocks: Blocks) -> None:
    """
    Raises BadRequest where hosts are alive in a lockspace on the device, whose head somebody has wiped: they go on without
    it for as long as they are members, and a new lockspace would end them.
    """
    first = blocks.read(layout.LOCKSPACE, layout.MiB)
    timeouts = [
        lockspace.renewed_within(first[begin : begin + blocks.sector]) for begin in range(0, layout.MiB, blocks.sector)
    ]
    end = time.monotonic() + max(timeouts)
    while time.monotonic() < end:
        time.sleep(0.5)
        if blocks.read(layout.LOCKSPACE, layout.MiB) != first:
            raise BadRequest(
                f"{blocks.path} is not empty: its first blocks are, and hosts are alive in the lockspace behind them",
                "name another device; those hosts have lost their store: docs/recovery.md",
            )


def _see_daemon_may_write(path: str, facts: Facts) -> None:
    """sanlock opens the device by itself, as its own user. Raises BadRequest where it may not."""
    node = os.stat(path)
    groups = {facts.gid}
    for line in (host.read(f"{host.PROC}/{facts.pid}/status") or b"").decode("ascii", "replace").splitlines():
        if line.startswith("Groups:"):
            groups |= {int(word) for word in line.split()[1:] if word.isdigit()}
    mode = node.st_mode
    may = (
        facts.uid == 0
        or (node.st_uid == facts.uid and mode & 0o600 == 0o600)
        or (node.st_gid in groups and mode & 0o060 == 0o060)
        or mode & 0o006 == 0o006
    )
    if not may:
        raise BadRequest(
            f"sanlock, which runs as user {facts.uid}, may not read and write {path}",
            "put that user into the device's group (`usermod -aG disk sanlock`) and restart sanlock, or have a udev rule"
            " give it the device",
        )
