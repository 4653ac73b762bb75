# SPDX-License-Identifier: LGPL-2.1-or-later
"""A report for people: each finding with its place in the XML underlined, who else is concerned, and what to do."""

from collections import Counter
from typing import Dict, List, TextIO

from vmguard.lint.engine import Report
from vmguard.lint.findings import Finding, Other, Rule, Severity
from vmguard.text import plain, quoted

# Columns of XML that are shown; a definition in one line can be megabytes long.
_WIDE = 110

_COLOURS = {Severity.ERROR: "\033[1;31m", Severity.WARNING: "\033[1;33m", Severity.NOTICE: "\033[1;36m"}
_BOLD, _OFF = "\033[1m", "\033[0m"


def write(report: Report, to: TextIO) -> None:
    """Write the report; in colour if it goes to a terminal."""
    colour = to.isatty()
    rules = {rule.code: rule for rule in report.rules}
    for finding in report.counted:
        to.write("\n".join(_lines(finding, rules, colour)) + "\n\n")
    for line in _end(report, rules):
        to.write(line + "\n")


def _lines(finding: Finding, rules: Dict[str, Rule], colour: bool) -> List[str]:
    rule = rules.get(finding.rule)
    place = f":{finding.place.line}:{finding.place.column}" if finding.place is not None else ""
    name = f"{finding.rule} {rule.slug}" if rule is not None else finding.rule
    severity, bold, off = (_COLOURS[finding.severity], _BOLD, _OFF) if colour else ("", "", "")
    whose = f"{quoted(finding.domain)}: " if finding.domain else ""
    lines = [
        f"{bold}{plain(finding.source)}{place}{off}: {severity}{finding.severity.value}{off} {bold}{name}{off}",
        f"  {whose}{finding.text}",
    ]
    lines += _underlined(finding, severity, off)
    lines += [f"  with:  {_other(other, finding)}" for other in finding.others]
    if finding.more_others:
        lines.append(f"         and {finding.more_others} more")
    if finding.why:
        lines.append(f"  why:   {plain(finding.why)}")
    lines.append(f"  do:    {finding.remedy}")
    return lines


def _underlined(finding: Finding, on: str, off: str) -> List[str]:
    place = finding.place
    if place is None:
        return []
    start, end = place.column - 1, max(place.end - 1, place.column)
    text = place.text
    first = 0
    if len(text) > _WIDE:
        first = max(0, start - 10)
    indent = len(text) - len(text.lstrip())
    first = max(first, min(indent, start))
    shown = "".join(character if character.isprintable() else " " for character in text[first : first + _WIDE])
    number = f"{place.line:5}"
    length = max(1, min(end, first + _WIDE) - start)
    return [f"{number} | {shown}", f"{'':5} | {' ' * (start - first)}{on}{'^' * length}{off}"]


def _other(other: Other, finding: Finding) -> str:
    same = other.domain == finding.domain and other.source == finding.source
    name = "the same domain" if same else quoted(other.domain)
    where = f" on {plain(other.host)}" if other.host and other.host != finding.host else ""
    what = f", {other.what}" if other.what else ""
    path = f", {plain(other.path)}" if other.path else ""
    line = f":{other.line}" if other.line else ""
    return f"{name}{where}{what}{path} ({plain(other.source)}{line})"


def _end(report: Report, rules: Dict[str, Rule]) -> List[str]:
    lines: List[str] = []
    reasons: Dict[str, List[str]] = {}
    for skip in report.skipped:
        several = "definition" if skip.definitions == 1 else "definitions"
        how_many = "" if skip.definitions == report.definitions else f", for {skip.definitions} {several}"
        reasons.setdefault(skip.why + how_many, []).append(skip.rule)
    for why, codes in reasons.items():
        lines.append(f"not checked: {' '.join(sorted(codes))}: {why}")
    counts = Counter(finding.severity for finding in report.counted)
    allowed = len(report.findings) - len(report.counted)
    said = [_number(counts[severity], severity.value) for severity in Severity if counts[severity]]
    lines.append(
        f"{_number(report.definitions, 'definition')} with {_number(report.disks, 'disk')}: "
        + (", ".join(said) if said else "nothing found")
        + (f" ({allowed} allowed by the definitions)" if allowed else "")
        + (f"; compared with {_number(report.compared, 'other')}" if report.compared else "")
    )
    if report.counted:
        example = report.counted[0].rule
        lines.append(f"`vmguard explain {example}` says why this matters and what to do.")
    return lines


def _number(count: int, word: str) -> str:
    return f"{count} {word}{'' if count == 1 else 's'}"
