# SPDX-License-Identifier: LGPL-2.1-or-later
"""The life of one disk as a picture: who held it on which host, what was refused, what was done to it, what nobody saw."""

import time
from typing import Dict, List, Sequence, Tuple
from xml.sax.saxutils import escape

from vmguard.audit.history import OTHERWISE, Event, Span
from vmguard.text import moment, plain

_WIDTH, _LEFT, _RIGHT = 960, 210, 24
_ROW, _TOP = 34, 74

# Colours that can be told apart by everybody (Okabe and Ito), on light and on dark.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
# What is marked, by a shape of its own: colour alone is not enough.
_MARKS = {
    "refused": "refused",
    "would-refuse": "refused",
    "conflict": "conflict",
    "contained": "conflict",
    "overridden": "override",
    "override-given": "override",
}

# What is shown by bars.
_SPANS = ("held", "released", "surprise", "given-back", "unseen", "watching", "adopted", "conflict-over", "handover")

_STYLE = """
  :root { color-scheme: light dark }
  text { font: 13px system-ui, sans-serif; fill: #1b1b1b }
  .small { font-size: 11px; fill: #555 }
  .head { font-size: 15px; font-weight: 600 }
  .back { fill: #fff }
  .grid { stroke: #d8d8d8 }
  .mark { stroke: #1b1b1b; stroke-width: 1.5; fill: none }
  .solid { fill: #1b1b1b }
  .unseen { fill: url(#hatch) }
  .inside { fill: #fff; font-size: 11px; font-weight: 600 }
  @media (prefers-color-scheme: dark) {
    text { fill: #e8e8e8 }
    .small { fill: #aaa }
    .back { fill: #17191c }
    .grid { stroke: #383c42 }
    .mark { stroke: #e8e8e8 }
    .solid { fill: #e8e8e8 }
    .inside { fill: #fff }
  }
"""


def draw(
    disk: str, held: Sequence[Span], found: Sequence[Event], unseen: Sequence[Tuple[str, float, float]], now: float
) -> str:
    """
    The picture, as SVG.

    held: the spans of this disk. found: events that are about it. unseen: host, from and to. now: where what lasts ends.
    """
    marks = [event for event in found if event["event"] not in _SPANS]
    times = [span.since for span in held] + [float(event["time"]) for event in marks]
    first = min(times, default=now - 3600)
    last = max([now if any(span.until is None for span in held) else 0.0, *times, *(span.until or 0.0 for span in held)])
    if last - first < 1:
        last = first + 1
    margin = (last - first) * 0.02
    first, last = first - margin, last + margin
    rows = _rows(held, marks)
    height = _TOP + len(rows) * _ROW + 56
    scale = (_WIDTH - _LEFT - _RIGHT) / (last - first)

    def x(at: float) -> float:
        return round(_LEFT + (min(max(at, first), last) - first) * scale, 1)

    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}" viewBox="0 0 {_WIDTH} {height}"'
        f' role="img" aria-label="{_text("who held " + disk)}">',
        f"<style>{_STYLE}</style>",
        '<defs><pattern id="hatch" width="6" height="6" patternUnits="userSpaceOnUse" patternTransform="rotate(45)">'
        '<rect width="2" height="6" fill="#888" fill-opacity="0.45"/></pattern></defs>',
        f'<rect class="back" width="{_WIDTH}" height="{height}"/>',
        f'<text class="head" x="16" y="26">{_text(_short(disk, 100))}</text>',
        f'<text class="small" x="16" y="44">{_text(moment(first + margin))} to {_text(moment(last - margin))}</text>',
    ]
    for at in _ticks(first, last):
        lines.append(f'<line class="grid" x1="{x(at)}" x2="{x(at)}" y1="{_TOP - 8}" y2="{height - 48}"/>')
        words = time.strftime("%H:%M:%S" if last - first < 7200 else "%m-%d %H:%M", time.localtime(at))
        lines.append(f'<text class="small" x="{x(at)}" y="{_TOP - 14}" text-anchor="middle">{words}</text>')
    domains = {domain: number for number, domain in enumerate(sorted({domain for _, domain in rows}))}
    for number, (host, domain) in enumerate(rows):
        y = _TOP + number * _ROW
        lines.append(f'<text x="16" y="{y + 15}">{_text(_short(domain or "(host)", 24))}</text>')
        lines.append(f'<text class="small" x="16" y="{y + 28}">{_text(_short("on " + host, 30))}</text>')
        colour = _COLOURS[domains[domain] % len(_COLOURS)]
        spans, events = rows[host, domain]
        for span in spans:
            lines += _bar(span, x(span.since), x(span.until if span.until is not None else now), y, colour)
        for whose, begin, end in unseen:
            if whose == host and end > first and begin < last:
                title = f"<title>not watched: {_text(moment(begin))} to {_text(moment(end))}</title>"
                width = max(2.0, x(end) - x(begin))
                lines.append(f'<rect class="unseen" x="{x(begin)}" y="{y}" width="{width}" height="26">{title}</rect>')
        for event in events:
            lines += _mark(event, x(float(event["time"])), y + 13)
    y = height - 22
    lines += _legend(y)
    lines.append("</svg>")
    return "\n".join(lines) + "\n"


_Row = Tuple[List[Span], List[Event]]


def _rows(held: Sequence[Span], marks: Sequence[Event]) -> Dict[Tuple[str, str], _Row]:
    """What is in the row of each domain on each host, in the order in which they come up."""
    found: Dict[Tuple[str, str], _Row] = {}
    first: Dict[Tuple[str, str], float] = {}
    for span in held:
        key = (span.host, span.domain)
        found.setdefault(key, ([], []))[0].append(span)
        first[key] = min(first.get(key, span.since), span.since)
    for event in marks:
        key, at = (event.get("host", ""), event.get("domain", "")), float(event["time"])
        found.setdefault(key, ([], []))[1].append(event)
        first[key] = min(first.get(key, at), at)
    return {key: found[key] for key in sorted(found, key=first.__getitem__)}


def _bar(span: Span, begin: float, end: float, y: int, colour: str) -> List[str]:
    width = max(3.0, round(end - begin, 1))
    until = moment(span.until) if span.until is not None else "now"
    title = f"{span.domain} on {span.host}, {span.mode}: {moment(span.since)} to {until}"
    dash = "" if span.until is not None and span.ended in ("released", "given-back", OTHERWISE) else ' stroke-dasharray="4 3"'
    opacity = "1" if span.mode == "exclusive" else "0.55"
    lines = [
        f'<rect x="{begin}" y="{y + 2}" width="{width}" height="22" rx="3" fill="{colour}" fill-opacity="{opacity}"'
        f' stroke="{colour}"{dash}><title>{_text(title)}</title></rect>'
    ]
    if width > 70:
        kind = "inside" if span.mode == "exclusive" else "small"
        lines.append(f'<text class="{kind}" x="{begin + 8}" y="{y + 17}">{_text(span.mode)}</text>')
    return lines


def _mark(event: Event, x: float, y: int) -> List[str]:
    title = f"<title>{_text(event['event'] + ', ' + moment(float(event['time'])) + ': ' + str(event.get('text', '')))}</title>"
    kind = _MARKS.get(event["event"], "done")
    return [f'<g transform="translate({x} {y})">{_SHAPES[kind]}{title}</g>']


_SHAPES = {
    "refused": '<path class="mark" d="M-5 -5L5 5M-5 5L5 -5"/>',
    "conflict": '<path class="solid" d="M0 -8L7 6H-7Z"/>',
    "override": '<path class="mark" d="M0 -7L6 0L0 7L-6 0Z"/>',
    "done": '<circle class="mark" r="5"/>',
}


def _legend(y: int) -> List[str]:
    lines, x = [], 22
    for kind, words in (("refused", "refused"), ("conflict", "conflict"), ("override", "override"), ("done", "done to it")):
        lines.append(f'<g transform="translate({x} {y - 4})">{_SHAPES[kind]}</g>')
        lines.append(f'<text class="small" x="{x + 12}" y="{y}">{words}</text>')
        x += 34 + 7 * len(words)
    lines.append(f'<rect class="unseen" x="{x - 6}" y="{y - 12}" width="22" height="14"/>')
    lines.append(f'<text class="small" x="{x + 22}" y="{y}">nobody watched the host</text>')
    lines.append(f'<text class="small" x="{x + 178}" y="{y}">dashed: still held, or its end was not seen; pale: shared</text>')
    return lines


def _ticks(first: float, last: float) -> List[float]:
    """Some four to eight round moments."""
    for step in (1, 2, 5, 10, 30, 60, 120, 300, 600, 1800, 3600, 7200, 21600, 43200, 86400, 172800, 604800, 2592000):
        if (last - first) / step <= 8:
            break
    else:
        step = int((last - first) / 8)  # a clock that had not been set yet
    zone = time.localtime(first).tm_gmtoff
    at = ((first + zone) // step + 1) * step - zone
    found = []
    while at < last:
        found.append(at)
        at += step
    return found


def _short(text: str, length: int) -> str:
    """With its middle left out: the end of a path says most."""
    return text if len(text) <= length else text[: length // 3] + "…" + text[-(length - length // 3 - 1) :]


def _text(text: str) -> str:
    return escape(plain(text), {'"': "&quot;"})
