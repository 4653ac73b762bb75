# SPDX-License-Identifier: LGPL-2.1-or-later
"""`vmguard check` and `vmguard explain`: what a start would do, and why."""

import argparse
from typing import Any, Dict, List, Sequence

from vmguard import libvirtstate
from vmguard.claims import Mode, path_of
from vmguard.cli import _domains, _show, lint
from vmguard.domain import HostPath, Use
from vmguard.errors import CannotTell, Error, Holder
from vmguard.report import WOULD_NOT, sentence
from vmguard.storage import describe, resolve
from vmguard.storage.facts import LiveFacts
from vmguard.text import moment, plain, quoted
from vmguard.verdict import Look, Verdict, verdict_of


def add(commands: Any) -> None:
    """The two subcommands."""
    check = commands.add_parser(
        "check",
        help="what a start of a domain would do now, and why",
        description="Say what a start would do now, without starting or taking anything."
        " Exit status: 0 it would start, 1 it would be refused, 3 it could not be found out.",
    )
    check.add_argument("domain", metavar="FILE|DOMAIN", help="an XML file (with a / in it), or a domain of libvirt")
    check.add_argument("--json", action="store_true", help="one JSON document")
    check.set_defaults(run=run_check)
    explain = commands.add_parser(
        "explain",
        help="how each disk of a domain leads to a lease; what a rule of lint is about",
        description="Show for each place where a domain names storage what it physically is, which leases that"
        " needs, and who has them. For a rule of vmguard lint (VMG101): why it matters, and what to do.",
    )
    explain.add_argument(
        "domain", metavar="FILE|DOMAIN|RULE", help="an XML file (with a / in it), a domain of libvirt, or a rule's code"
    )
    explain.set_defaults(run=run_explain)


def _status(verdict: Verdict) -> int:
    if not verdict.objections:
        return 0
    return 3 if all(isinstance(error, CannotTell) for error in verdict.objections) else 1


def run_check(options: argparse.Namespace) -> int:
    """Exit status 0 would start, 1 would be refused, 3 could not be found out (which is a refusal too)."""
    verdict = verdict_of(_domains.domain_of(options.domain))
    if options.json:
        _show.as_json(_plain(verdict))
        return _status(verdict)
    name = verdict.domain.name
    for objection in verdict.objections:
        print(sentence(objection, name, outcome=WOULD_NOT))
    for remark in verdict.domain.remarks:
        print(f"note: {remark.what}: {remark.why}")
    for use in verdict.late:
        print(f"note: {use.what}: {plain(path_of(use.location))} does not exist yet; it is looked at when it does")
    if libvirtstate.has_managed_save(name):
        print("note: it has a managed save, from which it would go on: whether that fits its disks is seen at the start")
    if not verdict.guarded:
        print("note: this host is not guarded (vmguard setup was not run, or mode = off): nothing would be refused")
    if not verdict.objections:
        exclusive = sum(look.claim.mode is Mode.EXCLUSIVE for look in verdict.looks)
        print(
            f"{quoted(name)} would start: {len(verdict.looks)} leases are free for it ({exclusive} of them exclusive)."
        )
    return _status(verdict)


def _plain(verdict: Verdict) -> Dict[str, Any]:
    return {
        "version": 1,
        "domain": verdict.domain.name,
        "uuid": verdict.domain.uuid,
        "guarded": verdict.guarded,
        "would_start": not verdict.objections,
        "objections": [_objection(error, verdict.domain.name) for error in verdict.objections],
        "claims": [
            {
                "identity": look.claim.identity,
                "mode": look.claim.mode.value,
                "what": look.claim.what,
                "path": look.claim.path,
                "why": look.claim.why,
                "lease": look.lease,
                "holders": [holder._asdict() for holder in look.holders],
            }
            for look in verdict.looks
        ],
        "later": [use.what for use in verdict.late],
        "remarks": [remark._asdict() for remark in verdict.domain.remarks],
    }


def _objection(error: Error, name: str) -> Dict[str, Any]:
    text = sentence(error, name, outcome=WOULD_NOT)
    return {"kind": type(error).__name__, "text": text, "checked": not isinstance(error, CannotTell)}


def run_explain(options: argparse.Namespace) -> int:
    """Print the whole way from name to lease, or the page of a rule."""
    if options.domain[:3].upper() == "VMG":
        page = lint.explain(options.domain)
        if page is not None:
            print(page)
            return 0
    verdict = verdict_of(_domains.domain_of(options.domain))
    print(f"domain {quoted(verdict.domain.name)}, uuid {verdict.domain.uuid}")
    for use in verdict.domain.uses:
        _explain_use(use, verdict.looks)
    rest = [look for look in verdict.looks if not any(look.claim.what == use.what for use in verdict.domain.uses)]
    if rest:
        print("\nand:")
        _claims(rest)
    for objection in verdict.objections:
        print("\n" + sentence(objection, verdict.domain.name, outcome=WOULD_NOT))
    return _status(verdict)


def _explain_use(use: Use, looks: Sequence[Look]) -> None:
    kind = f", {use.format} image" if use.format else ""
    print(f"\n{use.what}: {plain(path_of(use.location))} ({use.access.value}{kind})")
    try:
        for storage in resolve(use.location, LiveFacts()):
            for line in describe(storage):
                print(f"    {line}")
    except CannotTell as error:
        path = use.location.path if isinstance(use.location, HostPath) else path_of(use.location)
        print(f"    {plain(path)}: {getattr(error, 'why', error)}")
    _claims([look for look in looks if look.claim.what == use.what])


def _claims(looks: List[Look]) -> None:
    for look in looks:
        print(f"    needs {look.claim.mode.value:9}  {look.claim.identity}  ({look.claim.why})")
        if look.lease:
            who = "; ".join(_holder(holder) for holder in look.holders) or "nobody"
            print(f"          lease {look.lease}, held by {who}")


def _holder(holder: Holder) -> str:
    where = "this host" if holder.here else holder.host or f"host id {holder.host_id}"
    since = f" since {moment(holder.since)}" if holder.since else ""
    return (f"{quoted(holder.domain)} on {where}" if holder.domain else f"somebody on {where}") + since
