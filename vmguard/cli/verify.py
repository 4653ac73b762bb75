# SPDX-License-Identifier: LGPL-2.1-or-later
"""`vmguard verify`: what the QEMUs of this host really have open, compared with what is claimed for them."""

import argparse
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple

from vmguard import host, instance
from vmguard.claims import Mode
from vmguard.cli import _show
from vmguard.domain import uuid_in
from vmguard.errors import BadRequest, CannotTell
from vmguard.host import Qemu
from vmguard.instance import Instance
from vmguard.openfiles import Finding, Findings, Verdict, compare, inspect, open_files
from vmguard.owning import record_of
from vmguard.report import finding_words, message, not_open_words
from vmguard.text import plain

# What is a finding, and what leaves the question open. A device given whole was claimed by its definition.
WRONG = (Verdict.WRITTEN, Verdict.READ, Verdict.DORMANT, Verdict.LEASELESS)


def add(commands: Any) -> None:
    """The subcommand."""
    verify = commands.add_parser(
        "verify",
        help="what running guests really have open, compared with their leases",
        description="Show what the QEMU of each running guest has open, and whether it is claimed for it. Takes and"
        " changes nothing. Exit status: 0 all is claimed, 1 something is not, or a guest has no record, 3 something"
        " could not be found out.",
    )
    verify.add_argument("domains", metavar="DOMAIN|UUID", nargs="*", help="these guests; by default all of this host")
    verify.add_argument("--json", action="store_true", help="one JSON document")
    verify.set_defaults(run=run)


class Look(NamedTuple):
    """One QEMU."""

    qemu: Qemu
    record: Optional[Instance]
    findings: Findings
    error: Optional[CannotTell] = None


def run(options: argparse.Namespace) -> int:
    """Exit status 0 all claimed, 1 something is not, 3 could not be found out."""
    records = [one for one in instance.load_all() if one.boot_id == host.boot_id() and one.state != "intent"]
    looks = [_look(qemu, record_of(qemu, records)) for qemu in _chosen(options.domains)]
    looks = [look for look in looks if look.error is not None or host.alive(look.qemu.process)]
    if options.json:
        _show.as_json({"version": 1, "host": host.name(), "guests": [_plain(look) for look in looks]})
    else:
        _print(looks)
    return _status(looks)


def _chosen(wanted: Sequence[str]) -> List[Qemu]:
    running = host.qemu_processes()
    uuids = {name: uuid_in(name) or name for name in wanted}
    for name, uuid in uuids.items():
        if not any(qemu.name == name or qemu.uuid == uuid for qemu in running):
            raise BadRequest(f"no guest {name!r} runs on this host", "virsh list shows those that do")
    return [qemu for qemu in running if not wanted or qemu.name in uuids or qemu.uuid in uuids.values()]


def _look(qemu: Qemu, record: Optional[Instance]) -> Look:
    try:
        if record is not None:
            return Look(qemu, record, inspect(record, qemu.process))
        # Nothing is claimed for it, so everything stands out.
        nothing = Instance("", qemu.uuid, qemu.name, "", qemu.process, "", (), 0)
        return Look(qemu, None, compare(open_files(qemu.process.pid), nothing, qemu.incoming))
    except CannotTell as error:
        return Look(qemu, record, Findings(), error)


def _status(looks: Sequence[Look]) -> int:
    verdicts = {finding.verdict for look in looks for finding in look.findings.objects}
    if verdicts.intersection(WRONG) or any(look.record is None for look in looks):
        return 1
    return 3 if Verdict.UNKNOWN in verdicts or any(look.error is not None for look in looks) else 0


def _open_how(finding: Finding) -> str:
    opened = finding.opened
    return ("written" if opened.writable else "read") + (", locked by QEMU" if opened.active else "")


def _print(looks: Sequence[Look]) -> None:
    rows: List[Tuple[str, str, str, str, str]] = []
    for look in looks:
        name = look.qemu.name or look.qemu.uuid
        for finding in look.findings.objects:
            claim = finding.claim
            claimed = f"{claim.mode.value}: {claim.what}" if claim else "no"
            rows.append((name, finding.opened.path, claimed, _open_how(finding), finding_words(finding)))
        for claim in look.findings.not_open:
            rows.append((name, claim.path, f"{claim.mode.value}: {claim.what}", "no", not_open_words(claim)))
    if rows:
        _show.table("open", ("domain", "object", "claimed", "open", "verdict"), rows)
    for look in looks:
        name = plain(look.qemu.name or look.qemu.uuid)  # of the arguments of a process, which any user can start
        if look.record is None:
            print(f"warning: {name} (pid {look.qemu.process.pid}) runs without a record: nothing is claimed for it")
        if look.error is not None:
            print(f"warning: {name} (pid {look.qemu.process.pid}) could not be looked at: {message(look.error)}")
    wrong = [finding for look in looks for finding in look.findings.objects if finding.verdict in WRONG]
    if not looks:
        print("no guest runs on this host")
    elif _status(looks) == 0:
        print("all that is open is claimed")
    elif wrong:
        print(f"not claimed as it is used: {len(wrong)} of {sum(len(look.findings.objects) for look in looks)} objects")
        if any(finding.verdict is not Verdict.LEASELESS for finding in wrong):
            print("do:  vmguardd claims it; without vmguardd, restart libvirt's daemon (guests run on)")


def _plain(look: Look) -> Dict[str, Any]:
    record = look.record
    return {
        "domain": look.qemu.name,
        "uuid": look.qemu.uuid,
        "pid": look.qemu.process.pid,
        "incoming": look.qemu.incoming,
        "record": record.id if record is not None else None,
        "error": message(look.error) if look.error is not None else None,
        "objects": [_plain_finding(finding) for finding in look.findings.objects],
        "not_open": [
            {"what": claim.what, "path": claim.path, "identity": claim.identity, "mode": claim.mode.value}
            for claim in look.findings.not_open
        ],
    }


def _plain_finding(finding: Finding) -> Dict[str, Any]:
    opened, claim = finding.opened, finding.claim
    return {
        "path": opened.path,
        "kind": opened.kind,
        "identities": [name for storage in opened.storage for name in (storage.identity, *storage.also)],
        "written": opened.writable,
        "active": opened.active,
        "deleted": opened.deleted,
        "claimed": Mode(claim.mode).value if claim else None,
        "as": claim.what if claim else None,
        "verdict": finding.verdict.value,
        "text": finding_words(finding),
    }
