# SPDX-License-Identifier: LGPL-2.1-or-later
"""Host ids: which machine is which host of the lockspace. One file for each, that only its machine writes again."""

import os
import time
from contextlib import AbstractContextManager

from vmguard import host
from vmguard._light import re
from vmguard._typing import List, Optional, Tuple
from vmguard.errors import BadRequest, HostIdTaken, StoreBroken
from vmguard.leases import _files, _notes
from vmguard.leases._notes import HostRecord

# Records that a lockspace of 1 MiB with 512-byte sectors has room for.
HOST_IDS = range(1, 2001)

_RECORD = re.compile(r"([1-9][0-9]{0,3})\.json")


class HostIds:
    """The part of a store that says who is who."""

    path: str

    def _open(self, name: str) -> "AbstractContextManager[int]":
        raise NotImplementedError

    def _host_ids(self) -> List[int]:
        with _files.directory(os.path.join(self.path, "hosts")) as fd:
            matches = (_RECORD.fullmatch(entry) for entry in os.listdir(fd))
            return sorted(int(match.group(1)) for match in matches if match)

    def host_record(self, host_id: int) -> Optional[HostRecord]:
        """Which machine has a host id; None: none. Raises StoreBroken."""
        with _files.directory(os.path.join(self.path, "hosts")) as fd:
            name = f"{host_id}.json"
            data = _files.read(fd, name, _notes.LIMIT)
            if data is None:
                try:
                    os.stat(name, dir_fd=fd, follow_symlinks=False)
                except FileNotFoundError:
                    return None
            return _notes.decode_host(data, host_id)

    def hosts_known(self) -> Tuple[HostRecord, ...]:
        """Every host id that a machine has claimed. Raises StoreBroken."""
        records = (self.host_record(host_id) for host_id in self._host_ids())
        return tuple(record for record in records if record is not None)

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
            if wanted not in HOST_IDS:
                raise BadRequest(f"{wanted} is no host id", f"they go from 1 to {HOST_IDS[-1]}")
            return self._claim(wanted, key)
        known = self.hosts_known()
        for record in known:
            if record.machine == key.machine:
                return record.host_id
        taken = {record.host_id for record in known}
        for host_id in HOST_IDS:
            if host_id not in taken:
                try:
                    return self._claim(host_id, key)
                except HostIdTaken:
                    continue  # since we looked
        raise StoreBroken(self.path, f"all {len(HOST_IDS)} host ids are taken")

    def _claim(self, host_id: int, key: host.HostKey) -> int:
        record = HostRecord(host_id, key.machine, key.name, time=time.time())
        with self._open("hosts") as fd:
            if not _files.place(fd, _files.make(fd, _notes.encode_host(record), 0o640), f"{host_id}.json"):
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
        record = HostRecord(host_id, key.machine, key.name, boot, time.time())
        with self._open("hosts") as fd:
            _files.replace(fd, _files.make(fd, _notes.encode_host(record), 0o640), f"{host_id}.json")

    def release_host_id(self, host_id: int, key: Optional[host.HostKey] = None) -> None:
        """
        Forget which machine has a host id; with a key, only if it is that machine's. The caller knows that it has
        left the lockspace.

        Raises HostIdTaken, BadRequest, StoreBroken.
        """
        if key is not None:
            self._own(host_id, key)
        with self._open("hosts") as fd:
            _files.drop(fd, f"{int(host_id)}.json")
            os.fsync(fd)
