# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Findings that are meant: <allow> elements in a definition's metadata, each with a reason.

    <metadata>
      <vmguard:policy xmlns:vmguard="urn:vmguard:policy:1">
        <vmguard:allow rule="VMG204" target="vdb" reason="GFS2 inside the guests"/>
      </vmguard:policy>
    </metadata>
"""

from typing import TYPE_CHECKING, List, Optional, Sequence, Set

from vmguard.lint import registry
from vmguard.lint.document import Allow, Origin
from vmguard.lint.doubles import Guest
from vmguard.lint.findings import Finding, Place, Severity

if TYPE_CHECKING:
    from vmguard.lint.engine import AllowAt

CODE = "VMG003"


def judge(
    allows: "Sequence[AllowAt]",
    found: List[Finding],
    ran: Set[str],
    report: bool,
    origin: Origin,
    guest: Optional[Guest],
) -> List[Finding]:
    """
    The findings, those that are allowed marked with the reason, and what is wrong with the <allow>s themselves.

    ran: the rules that were applied; only of those it is known that an <allow> is not needed. report: say what is wrong.
    """
    for allow, place in allows:
        known = registry.find(allow.rule)
        wrong = ""
        if known is None:
            wrong = f"there is no rule {allow.rule!r}" if allow.rule else "it names no rule"
            remedy = "name a rule by its code; `vmguard rules` lists them"
        elif not allow.reason:
            wrong, remedy = (
                f"it gives no reason, so {known.code} is reported all the same",
                'say why it is meant: reason="..."',
            )
        else:
            used = False
            for number, finding in enumerate(found):
                if finding.rule == known.code and _aims(allow, finding):
                    found[number] = finding._replace(suppressed=finding.suppressed or allow.reason)
                    used = True
            if not used and known.code in ran:
                where = f" at {allow.target}" if allow.target else ""
                wrong, remedy = f"{known.code} finds nothing{where}, so nothing needs to be allowed", "take it out"
        if wrong and report:
            found.append(_finding(f"an <allow> has no effect: {wrong}", remedy, place, origin, guest))
    return found


def _aims(allow: Allow, finding: Finding) -> bool:
    if not allow.target:
        return True
    what = finding.what
    return what in (allow.target, f"disk {allow.target}") or what.startswith(
        (allow.target + ",", f"disk {allow.target},")
    )


def _finding(text: str, remedy: str, place: Optional[Place], origin: Origin, guest: Optional[Guest]) -> Finding:
    return Finding(
        CODE,
        Severity.WARNING,
        "",
        text,
        remedy,
        place,
        source=origin.source,
        host=origin.host,
        domain=guest.name if guest is not None else "",
    )
