# SPDX-License-Identifier: LGPL-2.1-or-later
"""Leases become a process's own, while others ask about it."""

import os
import signal
import time
from pathlib import Path
from typing import List

from conftest import Pair

from vmguard import host, instance, paths
from vmguard.claims import Claim, Mode
from vmguard.config import Config
from vmguard.instance import Instance, Want
from vmguard.leases import client
from vmguard.member import Here
from vmguard.owning import hand_over

LEASES = 40


def test_somebody_asks_about_the_very_process(pair: Pair, identity: str, tmp_path: Path) -> None:
    """sanlock answers EBUSY to the second of two commands about one process: that is no lost lease."""
    guest = pair.one.guest()
    qemu = host.process(guest.pid)
    assert qemu is not None

    def work() -> List[int]:
        paths.RUN = str(tmp_path)
        this = Here(Config(), pair.store, 1, 1, {}, host.boot_id())
        claims = [Claim(f"{identity}/{n}", Mode.EXCLUSIVE, "disk", "/d", "") for n in range(LEASES)]
        leases = [pair.store.ensure(claim.identity) for claim in claims]
        with client.Connection() as connection:
            versions = [connection.acquire(lease, shared=False) for lease in leases]
        askers: List[int] = []
        while len(askers) < 3 and 0 not in askers:
            askers.append(os.fork())
        if 0 in askers:
            while True:
                client._inquire(-1, guest.pid)
        try:
            time.sleep(0.05)
            wants = tuple(Want(claim, lver) for claim, lver in zip(claims, versions))
            me = host.process(os.getpid())
            assert me is not None
            held = Instance(instance.new_id(""), "", "web", this.boot_id, me, "held", wants, 0.0, 1, 1)
            running = hand_over(held, qemu, this)
        finally:
            for asker in askers:
                os.kill(asker, signal.SIGKILL)
                os.waitpid(asker, 0)
        assert running.owner == "qemu"
        return versions

    assert len(pair.one.run(work)) == LEASES
    guest.kill()
