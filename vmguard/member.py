# SPDX-License-Identifier: LGPL-2.1-or-later
"""This host as a member of the lockspace, and what that allows it to claim."""

from vmguard import host
from vmguard._typing import Dict, List, NamedTuple
from vmguard.claims import Claim
from vmguard.config import Config
from vmguard.errors import Error, LocalStore, NoWatchdog
from vmguard.host import Process
from vmguard.leases import HostState, client, lockspace
from vmguard.leases.store import Store


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


def check_store_reaches(claim: Claim, this: Here) -> None:
    """Raises LocalStore where other hosts can reach the storage and not its lease."""
    config = this.config
    if claim.written and claim.others_see_it and not config.shared and not config.single_host:
        raise LocalStore(claim, this.store.path)


def check_ownership(this: Here, libvirtd: Process) -> None:
    """
    Before the first lease: can QEMU own it? If not, it stays an orphan, and an orphan protects nothing once the
    lockspace is lost, unless a watchdog then resets the host. Raises NoWatchdog.
    """
    watchdog = client.daemon_facts().use_watchdog
    if not host.libvirt_has_sanlock_plugin(libvirtd.pid):
        if this.config.without_watchdog != "accept" and not watchdog:
            raise NoWatchdog()
        client.used_by_orphans(this.store.lockspace, True)
    elif watchdog:
        # Until QEMU owns them. `started` may never come, and a QEMU that owns nothing is not killed when the storage is lost.
        client.used_by_orphans(this.store.lockspace, True)
