# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Taking the guard off this host: what setup put there goes, what it replaced comes back. The store stays: it is
everybody's.
"""

import os

from vmguard import config, membership
from vmguard.errors import BadRequest, CannotTell, Misconfigured
from vmguard.report import brief
from vmguard.setup import daemons, libvirtside, record
from vmguard.setup.plan import Change, Plan, contents, remove
from vmguard.setup.steps import AGENT_UNIT, JOIN_UNIT


def plan(restart: bool, keep_guests: bool = False) -> Plan:
    """
    What is to be undone. Looks only. keep_guests: guests that need their leases do not end it; they keep what they have.

    host.json goes last: it has libvirt's earlier settings, and while it is there a hook refuses.
    """
    made = Plan([], [], [])
    recorded = config.recorded_host()
    if daemons.systemd_runs() and (daemons.unit_is("enabled", AGENT_UNIT) or daemons.unit_is("active", AGENT_UNIT)):
        made.changes.append(
            Change("watch over running guests", AGENT_UNIT, "runs", "stopped", lambda: daemons.stop_unit(AGENT_UNIT))
        )
    if recorded is not None:
        member = Change("membership", recorded.store, "member", "left", lambda: _leave(made, keep_guests))
        made.changes.append(member)
    libvirtside.take_back(made, record.previous(recorded), restart)
    if daemons.systemd_runs() and daemons.unit_is("enabled", JOIN_UNIT):
        made.changes.append(
            Change("join at boot", JOIN_UNIT, "enabled", "not enabled", lambda: daemons.disable_unit(JOIN_UNIT))
        )
    path = record.conf_file()
    there = contents(path)
    if there is not None:
        made.changes.append(
            Change("vmguard's configuration", path, there.decode("utf-8", "replace"), None, lambda: remove(path))
        )
    if os.path.lexists(config.host_file()):
        what = "the record of this host's set-up"
        made.changes.append(Change(what, config.host_file(), "there", None, lambda: remove(config.host_file())))
    return made


def _leave(made: Plan, keep_guests: bool) -> None:
    """BadRequest where guests need their leases ends the removal; a store or sanlock that is gone must not."""
    try:
        membership.leave_host()
        membership.mark_left(False)  # without a configuration it belongs nowhere anyway
    except BadRequest as e:
        if not keep_guests:
            keeping = "with --keep-guests they keep the leases that they have"
            raise BadRequest(e.why, f"{e.remedy}; {keeping}" if e.remedy else keeping) from e
        made.left.append(
            f"{e.why}. They keep them, and other hosts see that; this host stays a member of the store until it is"
            " restarted, or sanlock is when no guest runs. What they have shared is given back only then."
        )
    except (CannotTell, Misconfigured) as e:
        made.left.append(
            f"This host may still be a member of the store: {brief(e)}. Restarting it, or sanlock when no guest runs, ends that."
        )
