# SPDX-License-Identifier: LGPL-2.1-or-later
"""Host ids: which machine is which host of the lockspace. One record for each, that only its machine writes again."""

import time

from vmguard import host
from vmguard._typing import Optional, Tuple
from vmguard.errors import BadRequest, HostIdTaken, StoreBroken
from vmguard.leases._notes import HostRecord


class HostIds:
    """The part of a store that says who is who. How a record is kept is the store's own affair: four methods."""

    path: str
    # Those that the store has room for.
    host_ids = range(1, 2001)  # as many as a lockspace of 1 MiB with 512-byte sectors

    def host_record(self, host_id: int) -> Optional[HostRecord]:
        """Which machine has a host id; None: none. Raises StoreBroken."""
        raise NotImplementedError

    def hosts_known(self) -> Tuple[HostRecord, ...]:
        """Every host id that a machine has claimed. Raises StoreBroken."""
        raise NotImplementedError

    def _enter(self, record: HostRecord) -> bool:
        """Write a record where there is none; False: there is one. Raises StoreBroken."""
        raise NotImplementedError

    def _rewrite(self, record: HostRecord) -> None:
        """Write a record in place of this machine's own. Raises StoreBroken."""
        raise NotImplementedError

    def _strike(self, host_id: int) -> None:
        """Remove a record. Raises StoreBroken."""
        raise NotImplementedError

    def host_name(self, host_id: int) -> Optional[str]:
        """The name of the host with this id, as far as it is known. Never raises: it is for sentences."""
        try:
            record = self.host_record(host_id)
        except StoreBroken:
            return None
        return record.host or None if record is not None else None

    def claim_host_id(self, wanted: Optional[int], key: host.HostKey) -> int:
        """
        A host id for this machine, for good. None: the one it has, else the lowest that is free.

        Raises HostIdTaken where another machine has the wanted one, BadRequest for a number that is none, StoreBroken.
        """
        if wanted is not None:
            if wanted not in self.host_ids:
                raise BadRequest(f"{wanted} is no host id", f"they go from 1 to {self.host_ids[-1]}")
            return self._claim(wanted, key)
        known = self.hosts_known()
        for record in known:
            if record.machine == key.machine:
                return record.host_id
        taken = {record.host_id for record in known}
        for host_id in self.host_ids:
            if host_id not in taken:
                try:
                    return self._claim(host_id, key)
                except HostIdTaken:
                    continue  # since we looked
        raise StoreBroken(self.path, f"all {len(self.host_ids)} host ids are taken")

    def _claim(self, host_id: int, key: host.HostKey) -> int:
        if not self._enter(HostRecord(host_id, key.machine, key.name, time=time.time())):
            self._own(host_id, key)
        return host_id

    def _own(self, host_id: int, key: host.HostKey) -> HostRecord:
        """The record of a host id, which must be this machine's. Raises HostIdTaken, BadRequest, StoreBroken."""
        record = self.host_record(host_id)
        if record is None:
            raise BadRequest(f"this host has not claimed the host id {host_id}", "run `vmguard setup`")
        if record.machine != key.machine:
            raise HostIdTaken(host_id, self.path, record.host or "an unreadable record", live=False)
        return record

    def joined_before(self, host_id: int, key: host.HostKey, boot: str) -> bool:
        """
        Whether the last that joined by this host id was this machine, in this boot. Raises HostIdTaken, BadRequest,
        StoreBroken.
        """
        return self._own(host_id, key).boot == boot

    def record_join(self, host_id: int, key: host.HostKey, boot: str) -> None:
        """Write down that this machine has joined, in this boot. Raises HostIdTaken, BadRequest, StoreBroken."""
        self._own(host_id, key)
        self._rewrite(HostRecord(host_id, key.machine, key.name, boot, time.time()))

    def release_host_id(self, host_id: int, key: Optional[host.HostKey] = None) -> None:
        """
        Forget which machine has a host id; with a key, only if it is that machine's. The caller knows that it has
        left the lockspace.

        Raises HostIdTaken, BadRequest, StoreBroken.
        """
        if key is not None:
            self._own(host_id, key)
        self._strike(int(host_id))
