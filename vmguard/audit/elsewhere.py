# SPDX-License-Identifier: LGPL-2.1-or-later
"""A volume that comes up on this host while a guest of another host has it: no harm yet, and worth knowing afterwards."""

from typing import Iterable

from vmguard import deadline
from vmguard.config import load
from vmguard.domain import HostPath
from vmguard.errors import Error
from vmguard.holders import anywhere
from vmguard.member import here
from vmguard.storage import resolve
from vmguard.storage.facts import LiveFacts


def tell_holders(devices: Iterable[str]) -> None:
    """
    For a child of the agent: a line for each of these devices and each other host that holds what it is.

    A device that is gone again, or that nothing is known of, is passed over. Raises Misconfigured; hangs with the store.
    """
    config = load()
    if config.store is None or not config.shared:
        return
    this, facts = here(config), LiveFacts()
    for device in devices:
        try:
            (volume,) = resolve(HostPath(device), facts)
            holders = anywhere(volume.identity, this.store, this.states)
        except Error:
            continue
        for one in holders:
            if one.host_id != config.host_id and not one.shared:
                told = {"identity": volume.identity, "domain": one.domain, "uuid": one.uuid, "path": one.path or device}
                deadline.tell({"device": device, "holder": one.host, **told})
