# SPDX-License-Identifier: LGPL-2.1-or-later
"""What rules may ask besides the definition: this host, its configuration, LVM's own report, libvirt's sanlock settings."""

import json
import os
import subprocess
from typing import Any, Dict, FrozenSet, NamedTuple, Optional, Tuple

from vmguard.config import Config, load
from vmguard.domain import HostPath
from vmguard.errors import Error, Misconfigured
from vmguard.lint.findings import Needs
from vmguard.lint.validation import Schema
from vmguard.setup import libvirtconf
from vmguard.storage import Storage, resolve
from vmguard.storage.facts import Facts, LiveFacts
from vmguard.storage.onelook import OneLook

LVS = ("lvs", "--reportformat", "json", "-a", "-o")
_FIELDS = "vg_uuid,lv_uuid,vg_name,lv_name,vg_systemid,vg_lock_type,segtype,origin,lv_active_remotely"
# Seconds. lvs scans devices; one that hangs must not hold up the rest.
_PATIENCE = 20

_PLUGIN = "/etc/libvirt/qemu-sanlock.conf"


class Volume(NamedTuple):
    """A logical volume as LVM reports it."""

    name: str  # "vg/lv"
    system_id: str
    lock_type: str  # "", "none", "sanlock", "dlm"
    kinds: FrozenSet[str]  # of its segments: "linear", "striped", "thin", "raid1", and "snapshot"
    active_remotely: bool


class Site:
    """One host, as it is during one run."""

    def __init__(
        self,
        facts: Optional[Facts],
        host: str = "",
        config: Optional[Config] = None,
        volumes: Optional[Dict[str, Volume]] = None,
        system_id: str = "",
        inventory: bool = False,
        lvm_trouble: str = "",
    ) -> None:
        self.facts = OneLook(facts) if facts is not None else None
        self.host = host
        self.config = config if config is not None and config.store is not None else None
        self.inventory = inventory
        self.system_id = system_id  # LVM's name of this host
        self.volumes = volumes or {}  # by identity
        self.lvm_trouble = lvm_trouble  # why LVM could not be asked
        self.schema: Optional[Schema] = None  # libvirt's, where definitions are to be checked against it
        self._demands: Optional[bool] = None
        self._store: Optional[Tuple[Storage, ...]] = None

    def missing(self, needs: Needs, local: bool) -> str:
        """Why a rule with these needs cannot be applied to a definition; "" if it can."""
        if needs is Needs.INVENTORY:
            return "" if self.inventory else "no other definitions were given (--all, --connect or --inventory)"
        if needs is Needs.XML:
            return ""
        if self.facts is None:
            return "nothing of this host was looked at (--offline)"
        if not local:
            return "the definition is of another host"
        if needs is Needs.CLUSTER and self.config is None:
            return "this host is no part of a cluster of vmguard (vmguard setup)"
        return ""

    def store(self) -> Tuple[Storage, ...]:
        """The storage that the leases of this host are on."""
        if self._store is None:
            self._store = ()
            if self.config is not None and self.config.store is not None and self.facts is not None:
                try:
                    self._store = resolve(HostPath(self.config.store), self.facts)
                except Error:
                    pass
        return self._store

    def shared_files(self) -> str:
        """What identities of files begin with that lie on the filesystem of a store that hosts share; "" for none."""
        if self.config is None or not self.config.shared:
            return ""
        return next(
            (one.identity.rpartition("/")[0] + "/" for one in self.store() if one.identity.startswith("file:")), ""
        )

    def demands_leases(self) -> bool:
        """
        Whether libvirt refuses to start disks that are written without a <lease>: its sanlock plugin is on, makes none
        of its own, and is not told to do without.
        """
        if self._demands is None:
            plugin = (self._text("/etc/libvirt/qemu.conf", "lock_manager") or "").strip("\"'") == "sanlock"
            # without automatic leases it wants them, unless it is told not to
            self._demands = (
                plugin
                and self._text(_PLUGIN, "auto_disk_leases") in ("0", "")
                and self._text(_PLUGIN, "require_lease_for_disks") not in ("0", None)
            )
        return self._demands

    def _text(self, path: str, name: str) -> Optional[str]:
        """A setting of libvirt's, "" where it is not set; None where that is not known."""
        if self.facts is None:
            return None
        try:
            return libvirtconf.get(path, self.facts.read(path), name) or ""
        except FileNotFoundError:
            return ""
        except (OSError, Misconfigured):
            return None


def here(offline: bool, inventory: bool) -> Site:
    """
    This host.

    offline: nothing of it is looked at. Raises Misconfigured if its configuration is wrong.
    """
    if offline:
        return Site(None, inventory=inventory)
    volumes, system_id, trouble = _lvm()
    return Site(LiveFacts(), os.uname().nodename, load(), volumes, system_id, inventory, trouble)


def _lvm() -> Tuple[Dict[str, Volume], str, str]:
    if os.geteuid() != 0:
        return {}, "", "LVM answers only to root"
    try:
        report = json.loads(_said(*LVS, _FIELDS))
        system_id = _said("lvm", "systemid").partition(":")[2].strip()
    except FileNotFoundError:
        return {}, "", "lvm2 is not installed"
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        return {}, "", f"lvs did not answer ({type(error).__name__})"
    return volumes_of(report), system_id, ""


def _said(*command: str) -> str:
    return subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_PATIENCE, check=True,
        env={**os.environ, "LC_ALL": "C"},
    ).stdout  # fmt: skip


def volumes_of(report: Any) -> Dict[str, Volume]:
    """The volumes in a report of lvs, by the identities that the guard gives them. Raises ValueError."""
    found: Dict[str, Volume] = {}
    try:
        for row in report["report"][0]["lv"]:
            identity = f"lvm:{row['vg_uuid']}/{row['lv_uuid']}"
            known = found.get(identity)
            kinds = {row["segtype"], "snapshot"} if row["origin"] and row["segtype"] == "linear" else {row["segtype"]}
            found[identity] = Volume(
                f"{row['vg_name']}/{row['lv_name'].strip('[]')}",
                row["vg_systemid"],
                row["vg_lock_type"],
                frozenset(kinds) | (known.kinds if known else frozenset()),
                row["lv_active_remotely"] == "active remotely",
            )
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        raise ValueError("not a report of lvs") from error
    return found
