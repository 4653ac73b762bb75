# SPDX-License-Identifier: LGPL-2.1-or-later
"""
One page of HTML for a cluster: its hosts and guests, who shares what with whom, and the findings. Nothing outside of it is
needed to read it, and nothing in it runs.
"""

import time
from html import escape
from typing import Dict, Iterator, List, NamedTuple, Optional, Tuple

from vmguard import __version__
from vmguard.claims import Mode
from vmguard.lint.doubles import Guest, Mark
from vmguard.lint.engine import Report, tally, worst
from vmguard.lint.findings import Finding, Severity
from vmguard.lint.looking import is_weak
from vmguard.text import moment, plain

# Shared things that are drawn, the most dangerous first: at once, and folded away; and guests with each of them. The rest
# is counted.
AT_ONCE, DRAWN, WITH_EACH = 12, 60, 6

_STYLE = """
:root { color-scheme: light dark; --page: #fbfbfa; --ink: #1d1f21; --soft: #63676b; --line: #d9dadb; --card: #ffffff;
  --error: #c0262d; --warning: #a86400; --notice: #2f6fab; --fine: #c9d3ce; --mark: #f3f3f0; }
@media (prefers-color-scheme: dark) { :root { --page: #16181a; --ink: #e6e6e3; --soft: #9ba0a4; --line: #36393c;
  --card: #1e2123; --error: #ff6b6b; --warning: #e0a13a; --notice: #6fb1ee; --fine: #46524c; --mark: #26292b; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 76rem; padding: 1.5rem 1.25rem 4rem; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; margin: 0; } h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem; }
p, .soft { color: var(--soft); margin: .2rem 0; } a { color: inherit; }
code, .path { font: .86em/1.45 ui-monospace, monospace; overflow-wrap: anywhere; }
.numbers { display: flex; flex-wrap: wrap; gap: .6rem; margin: 1.2rem 0; padding: 0; list-style: none; }
.numbers li { background: var(--card); border: 1px solid var(--line); border-radius: .5rem; padding: .5rem .9rem;
  min-width: 6.5rem; }
.numbers b { display: block; font-size: 1.5rem; line-height: 1.2; font-variant-numeric: tabular-nums; }
.error { color: var(--error); } .warning { color: var(--warning); } .notice { color: var(--notice); }
.hosts { display: grid; grid-template-columns: repeat(auto-fill, minmax(15rem, 1fr)); gap: .8rem; }
.host { background: var(--card); border: 1px solid var(--line); border-radius: .5rem; padding: .6rem .8rem .8rem; }
.host h3 { font-size: 1rem; margin: 0 0 .4rem; overflow-wrap: anywhere; } .host h3 span { color: var(--soft); font-weight: 400; }
.squares { display: flex; flex-wrap: wrap; gap: 3px; }
.squares a { width: 13px; height: 13px; border-radius: 3px; background: var(--fine); }
.squares a.error { background: var(--error); } .squares a.warning { background: var(--warning); }
.squares a.notice { background: var(--notice); } .squares a:hover, .squares a:focus { outline: 2px solid var(--ink); }
.legend span { margin-right: 1rem; white-space: nowrap; }
.legend i.dashed { background: none; border: 2px dashed var(--error); }
.legend i { display: inline-block; width: .8rem; height: .8rem; border-radius: 3px; vertical-align: -1px;
  margin-right: .35rem; }
.scroll { overflow-x: auto; background: var(--card); border: 1px solid var(--line); border-radius: .5rem; }
svg { display: block; min-width: 46rem; width: 100%; height: auto; font: 13px system-ui, sans-serif; }
svg text { fill: var(--ink); } svg .less { fill: var(--soft); font-size: 12px; }
svg rect { fill: var(--mark); stroke: var(--line); }
svg path { fill: none; stroke-width: 1.6; stroke: var(--soft); opacity: .75; }
svg .clash path { stroke: var(--error); opacity: 1; } svg .clash rect { stroke: var(--error); }
svg .maybe path { stroke: var(--error); stroke-dasharray: 5 4; } svg .maybe rect { stroke: var(--error); stroke-dasharray: 5 4; }
svg .shared path { stroke: var(--warning); } svg .shared rect { stroke: var(--warning); }
table { border-collapse: collapse; width: 100%; } th, td { text-align: left; vertical-align: top; padding: .45rem .7rem; }
th { color: var(--soft); font-weight: 500; position: sticky; top: 0; background: var(--card); }
tr + tr td, thead + tbody td { border-top: 1px solid var(--line); }
tr:target td { background: var(--mark); } td p { margin: 0; } .tall { max-height: 40rem; overflow-y: auto; }
details { margin: .6rem 0; } summary { cursor: pointer; }
@media print { .tall { max-height: none; } }
"""


class _Shared(NamedTuple):
    """One thing that more than one guest has."""

    path: str
    kind: str  # "clash", "maybe" (one path on several hosts, of which nobody knows whether it is one thing), "shared", "read"
    users: Tuple[Tuple[Guest, Mark], ...]


def page(report: Report, now: Optional[float] = None) -> str:
    """The page. now: seconds since the epoch."""
    counts = tally(report)
    hosts = _hosts(report)
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">',
            "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">",
            f"<title>Storage of {_count(len(_keys(report)), 'guest')}</title><style>{_STYLE}</style></head><body>",
            f"<h1>Storage of {_count(len(_keys(report)), 'guest')} on {_count(len(hosts), 'host')}</h1>",
            f"<p>vmguard {__version__}, {escape(moment(time.time() if now is None else now))}</p>",
            '<ul class="numbers">',
            *(
                f'<li class="{kind if counts[kind + "s"] else ""}"><b>{counts[kind + "s"]}</b>{kind}s</li>'
                for kind in ("error", "warning", "notice")
            ),
            f"<li><b>{report.disks}</b>disks</li><li><b>{counts['suppressed']}</b>allowed</li>",
            f"<li><b>{counts['unread']}</b>not readable</li></ul>",
            *_squares(report, hosts),
            *_picture(report),
            *_findings(report),
            *_guests(report),
            *_skipped(report),
            "</body></html>",
            "",
        ]
    )


def _keys(report: Report) -> Dict[str, Guest]:
    return {guest.key: guest for guest in report.guests}


def _hosts(report: Report) -> Dict[str, List[Guest]]:
    found: Dict[str, List[Guest]] = {}
    for guest in report.guests:
        found.setdefault(guest.host, []).append(guest)
    return dict(sorted(found.items()))


def _by_guest(report: Report) -> Dict[str, List[Finding]]:
    found: Dict[str, List[Finding]] = {}
    for finding in report.counted:
        found.setdefault(finding.source, []).append(finding)
    return found


def _squares(report: Report, hosts: Dict[str, List[Guest]]) -> Iterator[str]:
    by_guest = _by_guest(report)
    numbers = _numbers(report)
    yield "<h2>Hosts and their guests</h2>"
    kinds = (("error", "error"), ("warning", "warning"), ("notice", "notice"), ("fine", "nothing found"))
    yield '<p class="legend">' + "".join(
        f'<span><i style="background: var(--{kind})"></i>{words}</span>' for kind, words in kinds
    ) + "</p>"  # fmt: skip
    yield '<div class="hosts">'
    for host, guests in hosts.items():
        yield f'<section class="host"><h3>{_text(host or "no host named")} <span>{_count(len(guests), "guest")}</span></h3>'
        yield '<div class="squares">'
        for guest in sorted(guests, key=lambda one: one.name):
            severity = worst(by_guest.get(guest.source, ()))
            kind = severity.value if severity is not None else ""
            title = _text(guest.name) + (f": {kind}" if kind else "")
            yield f'<a class="{kind}" href="#g{numbers[guest.key]}" title="{title}" aria-label="{title}"></a>'
        yield "</div></section>"
    yield "</div>"


def _numbers(report: Report) -> Dict[str, int]:
    return {key: number for number, key in enumerate(_keys(report))}


def _shared(report: Report) -> List[_Shared]:
    users: Dict[str, Dict[str, Tuple[Guest, Mark]]] = {}
    for guest in report.guests:
        for mark in guest.marks:
            if mark.direct and not mark.claim.identity.startswith("vm:"):
                users.setdefault(mark.claim.identity, {}).setdefault(guest.key, (guest, mark))
    found = []
    for some in users.values():
        if len(some) > 1:
            kind = _kind(list(some.values()))
            # Whoever writes it comes first: that is what a reader looks for.
            order = sorted(some.values(), key=lambda one: (one[1].claim.mode is not Mode.EXCLUSIVE, one[0].name))
            found.append(_Shared(order[0][1].claim.path, kind, tuple(order)))
    rank = {"clash": 0, "maybe": 1, "shared": 2, "read": 3}
    return sorted(found, key=lambda one: (rank[one.kind], -len(one.users), one.path))


def _kind(users: List[Tuple[Guest, Mark]]) -> str:
    marks = [mark for _, mark in users]
    if any(mark.claim.mode is Mode.EXCLUSIVE for mark in marks):
        hosts = {guest.host for guest, _ in users}
        unknown = "" not in hosts and len(hosts) == len(users) and any(mark.paper and is_weak(mark.claim) for mark in marks)
        return "maybe" if unknown else "clash"
    return "shared" if any(mark.claim.written for mark in marks) else "read"


def _picture(report: Report) -> Iterator[str]:
    shared = _shared(report)
    yield "<h2>Who shares what with whom</h2>"
    if not shared:
        yield "<p>No storage is named by more than one guest.</p>"
        return
    counts = {kind: sum(one.kind == kind for one in shared) for kind in ("clash", "maybe", "shared", "read")}
    yield f"<p>{_count(len(shared), 'thing')} with more than one guest.</p>"
    lines = (
        ("clash", "background: var(--error)", "written by one guest while others have it, too"),
        ("maybe", "", "the same, if the path is one thing on these hosts"),
        ("shared", "background: var(--warning)", "shared on purpose"),
        ("read", "background: var(--soft)", "only read"),
    )
    yield '<p class="legend">' + "".join(
        f'<span><i class="{"dashed" if kind == "maybe" else ""}" style="{style}"></i>{words} ({counts[kind]})</span>'
        for kind, style, words in lines
        if counts[kind]
    ) + "</p>"  # fmt: skip
    yield _drawn(shared[:AT_ONCE])
    rest = shared[AT_ONCE:DRAWN]
    if rest:
        yield f"<details><summary>{len(rest)} more</summary>{_drawn(rest)}</details>"
    if len(shared) > DRAWN:
        yield f"<p>and {len(shared) - DRAWN} besides, which are not drawn.</p>"


def _drawn(shared: List[_Shared]) -> str:
    body: List[str] = []
    top = 16
    for one in shared:
        rows = min(len(one.users), WITH_EACH) + (1 if len(one.users) > WITH_EACH else 0)
        height = rows * 24
        middle = top + height // 2
        body.append(f'<g class="{one.kind}">')
        body.append(f'<rect x="430" y="{middle - 15}" width="570" height="30" rx="6"/>')
        body.append(
            f'<text x="442" y="{middle + 5}">{_text(_short(one.path, 76))}<title>{_text(one.path)}</title></text>'
        )
        for row, (guest, mark) in enumerate(one.users[:WITH_EACH]):
            y = top + 12 + row * 24
            where = f" on {guest.host}" if guest.host else ""
            body.append(f'<text x="14" y="{y + 4}">{_text(_short(guest.name + where, 32))}</text>')
            how = "writes" if mark.claim.mode is Mode.EXCLUSIVE else "shares" if mark.claim.written else "reads"
            body.append(f'<text class="less" x="238" y="{y + 4}">{how}</text>')
            body.append(f'<path d="M282 {y} C 360 {y} 350 {middle} 430 {middle}"/>')
        if len(one.users) > WITH_EACH:
            y = top + 12 + WITH_EACH * 24
            body.append(f'<text class="less" x="14" y="{y + 4}">and {len(one.users) - WITH_EACH} more guests</text>')
            body.append(f'<path stroke-dasharray="3 4" d="M282 {y} C 360 {y} 350 {middle} 430 {middle}"/>')
        body.append("</g>")
        top += height + 18
    head = (
        f'<div class="scroll"><svg viewBox="0 0 1014 {top}" role="img" aria-label="guests and the storage they share">'
    )
    return "\n".join([head, *body, "</svg></div>"])


def _findings(report: Report) -> Iterator[str]:
    yield "<h2>Findings</h2>"
    if not report.counted:
        yield "<p>Nothing was found.</p>"
        return
    rules = {rule.code: rule for rule in report.rules}
    by_key = _numbers(report)
    numbers = {guest.source: by_key[guest.key] for guest in report.guests}
    for severity in Severity:
        groups: Dict[str, List[Finding]] = {}
        for finding in report.counted:
            if finding.severity is severity:
                groups.setdefault(finding.rule, []).append(finding)
        for code, findings in sorted(groups.items()):
            rule = rules.get(code)
            opened = " open" if severity is Severity.ERROR and len(findings) <= 25 else ""
            title = _text(rule.title) if rule is not None else ""
            yield f'<details{opened}><summary><b class="{severity.value}">{severity.value} {code}</b> {title}'
            yield f' <span class="soft">({len(findings)})</span></summary><div class="scroll tall"><table><tbody>'
            for finding in findings:
                yield _finding(finding, numbers.get(finding.source))
            yield "</tbody></table></div></details>"


def _finding(finding: Finding, number: Optional[int]) -> str:
    line = f":{finding.place.line}" if finding.place is not None else ""
    name = _text(finding.domain or finding.source)
    link = f'<a href="#g{number}">{name}</a>' if number is not None else name
    where = f" on {_text(finding.host)}" if finding.host else ""
    others = "".join(
        f"<p>with {_text(other.domain)}{' on ' + _text(other.host) if other.host else ''}, {_text(other.what)}"
        f' <span class="path">{_text(other.path)}</span></p>'
        for other in finding.others
    )
    if finding.more_others:
        others += f"<p>and {finding.more_others} more</p>"
    why = f"<p>{_text(finding.why)}</p>" if finding.why else ""
    return (
        f"<tr><td>{link}<p>{where}</p></td><td>{escape(finding.text)}{others}{why}"
        f'<p class="path">{_text(finding.source)}{line}</p>'
        f"</td><td>{escape(finding.remedy)}</td></tr>"
    )


def _guests(report: Report) -> Iterator[str]:
    yield "<h2>Guests and their disks</h2>"
    heads = "".join(f"<th>{head}</th>" for head in ("guest", "host", "storage", "findings"))
    yield f'<div class="scroll tall"><table><thead><tr>{heads}</tr></thead><tbody>'
    by_guest = _by_guest(report)
    hosts: Dict[str, List[str]] = {}
    for guest in report.guests:
        hosts.setdefault(guest.key, []).append(guest.host or "-")
    numbers = _numbers(report)
    for key, guest in sorted(_keys(report).items(), key=lambda one: one[1].name):
        counts: Dict[str, int] = {}
        for finding in by_guest.get(guest.source, ()):
            counts[finding.severity.value] = counts.get(finding.severity.value, 0) + 1
        said = ", ".join(f'<span class="{kind}">{_count(count, kind)}</span>' for kind, count in counts.items())
        yield (
            f'<tr id="g{numbers[key]}"><td>{_text(guest.name)}</td><td>{_text(", ".join(sorted(set(hosts[key]))))}</td>'
            f"<td>{_storage(guest)}</td><td>{said}</td></tr>"
        )
    yield "</tbody></table></div>"


def _storage(guest: Guest) -> str:
    seen: Dict[str, Mark] = {}
    for mark in guest.marks:
        if mark.direct and not mark.claim.identity.startswith("vm:"):
            seen.setdefault(mark.claim.what, mark)
    return "".join(
        f'<div>{_text(what)} <span class="path soft">{_text(mark.claim.path)}</span></div>'
        for what, mark in seen.items()
    )


def _skipped(report: Report) -> Iterator[str]:
    if not report.skipped:
        return
    yield "<h2>Not checked</h2><ul>"
    reasons: Dict[str, List[str]] = {}
    for skip in report.skipped:
        reasons.setdefault(f"{skip.why} ({_count(skip.definitions, 'definition')})", []).append(skip.rule)
    for why, codes in reasons.items():
        yield f"<li>{_text(why)}: {' '.join(codes)}</li>"
    yield "</ul>"


def _text(name: str) -> str:
    return escape(plain(name).encode("utf-8", "replace").decode("utf-8"))


def _short(name: str, most: int) -> str:
    """Its ends: where paths differ, it is there."""
    if len(name) <= most:
        return name
    return name[: most // 3] + "…" + name[len(name) - (most - most // 3 - 1) :]


def _count(count: int, word: str) -> str:
    return f"{count} {word}{'' if count == 1 else 's'}"
