# SPDX-License-Identifier: LGPL-2.1-or-later
"""The figures of `make bench` as a page and as a drawing."""

import statistics
from typing import Dict, List, Optional, Sequence
from xml.sax.saxutils import escape

from bench_measures import Call, Footprint, Result

# Keys of the clusters, in the order of columns and bars, with the words for people.
NAMES = {"bare": "no guard", "plugin": "libvirt's sanlock plugin", "guarded": "vmguard"}

HEAD = """# What a guard costs

The same guests on three clusters of two hosts, on one machine, in one run that alternates between them: without any guard
(QEMU's own image locks alone), with libvirt's sanlock plugin (`auto_disk_leases = 1`), and with vmguard. {rounds} rounds after
one for warming up ({storms} of the storm). Milliseconds of the whole command: the median, with the middle half of all rounds in
brackets. The ratios are medians of round by round ratios. Written by `make bench`; absolute times are those of a small machine
with {cpus} processors.

![the medians as bars](benchmarks.svg)

"""


def spread(values: Sequence[float]) -> str:
    """Median and quartiles."""
    if not values:
        return "—"
    if len(values) < 2:
        return f"{values[0]:.0f}"
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return f"{middle:.0f} ({low:.0f}–{high:.0f})"


def ratio(result: Result, one: str, other: str) -> Optional[float]:
    """How many times as long one cluster takes as the other; None where one of them has no figures."""
    pairs = [a / b for a, b in zip(result.values[one], result.values[other]) if b > 0]
    return statistics.median(pairs) if pairs else None


def shown(value: Optional[float]) -> str:
    return "—" if value is None else f"{value:.2f}"


def table(results: Sequence[Result]) -> List[str]:
    lines = ["| | " + " | ".join(NAMES.values()) + " | vmguard / no guard | vmguard / plugin |", "|---" * 6 + "|"]
    reasons: List[str] = []
    for result in results:
        cells = [result.title]
        for name in NAMES:
            if name in result.without:
                words = f"{result.title}, {NAMES[name]}: {result.without[name]}"
                reasons += [words] if words not in reasons else []
                cells.append(f"none [{reasons.index(words) + 1}]")
            else:
                cells.append(spread(result.values[name]))
        cells += [shown(ratio(result, "guarded", "bare")), shown(ratio(result, "guarded", "plugin"))]
        lines.append("| " + " | ".join(cells) + " |")
    lines += ["", *(f"[{number}] {words}  " for number, words in enumerate(reasons, 1))]
    return lines


def page(
    results: Sequence[Result],
    footprints: Dict[str, Footprint],
    calls: Sequence[Call],
    rounds: int,
    storms: int,
    cpus: int,
    profile: str,
) -> str:
    """docs/benchmarks.md. profile: what follows the figures, as it is."""
    lines = [HEAD.format(rounds=rounds, storms=storms, cpus=cpus) + "\n".join(table(results)).rstrip(), ""]
    lines += [
        "## While a guest runs",
        "",
        "| for each running guest | " + " | ".join(NAMES.values()) + " |",
        "|---" * 4 + "|",
    ]
    rows = {
        "processes beside its QEMU": [f"{one.processes:g}" for one in footprints.values()],
        "processes of vmguard on the host": [f"{one.ours}" for one in footprints.values()],
        "resident memory that sanlock gains, KiB": [f"{one.sanlock_kib:.0f}" for one in footprints.values()],
    }
    lines += [f"| {title} | " + " | ".join(cells) + " |" for title, cells in rows.items()]
    lines += ["", "## The hook alone", ""]
    lines += [
        "Whole processes. No QEMU exists in these rounds, so `started` adopts nothing.",
        "",
    ]
    lines += ["| disks | operation | milliseconds | worst | peak memory |", "|---" * 5 + "|"]
    for call in calls:
        lines.append(
            f"| {call.disks} | `{call.operation}` | {spread(call.values)} | {max(call.values):.0f} | {call.memory:.0f} MiB |"
        )
    return "\n".join(lines) + "\n" + profile


# -- the drawing --------------------------------------------------------------------------------------------------------

WIDTH, LABEL, BAR, GAP, TOP = 860, 210, 13, 12, 64  # units of the drawing

STYLE = """
  text { font: 12px system-ui, sans-serif; fill: #1f2328 }
  .title { font-size: 15px; font-weight: 600 }
  .value { font-size: 11px; fill: #59636e }
  .bare { fill: #8c959f } .plugin { fill: #bc4c00 } .guarded { fill: #0969da }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6edf3 } .value { fill: #9198a1 }
    .bare { fill: #6e7681 } .plugin { fill: #f0883e } .guarded { fill: #58a6ff }
  }
"""


def drawing(results: Sequence[Result]) -> str:
    """docs/benchmarks.svg: a group of bars for each measure, each group to a scale of its own."""
    parts: List[str] = []
    y = TOP
    room = WIDTH - LABEL - 170
    for result in results:
        medians = {name: statistics.median(found) for name, found in result.values.items() if found}
        longest = max(medians.values(), default=0) or 1
        middle = y + BAR * len(NAMES) / 2 + 4
        parts.append(
            f'<text x="{LABEL - 10}" y="{middle:g}" text-anchor="end">{escape(result.title.replace("`", ""))}</text>'
        )
        for name in NAMES:
            width = max(medians.get(name, 0) / longest * room, 0)
            words = f"{medians[name]:.0f} ms" if name in medians else "none"
            if name == "guarded" and "plugin" in medians and name in medians:
                words += f" ({shown(ratio(result, 'guarded', 'plugin'))} × the plugin)"
            parts.append(f'<rect class="{name}" x="{LABEL}" y="{y}" width="{width:.1f}" height="{BAR - 2}" rx="2"/>')
            parts.append(f'<text class="value" x="{LABEL + width + 6:.1f}" y="{y + BAR - 3}">{escape(words)}</text>')
            y += BAR
        y += GAP
    x = LABEL
    legend = []
    for name, words in NAMES.items():
        legend.append(f'<rect class="{name}" x="{x}" y="38" width="11" height="11" rx="2"/>')
        legend.append(f'<text x="{x + 17}" y="48">{escape(words)}</text>')
        x += 40 + 7 * len(words)
    title = "What a guard costs: medians, each group to its own scale"
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y}" width="{WIDTH}" height="{y}" role="img">',
            f"<title>{escape(title)}</title>",
            f"<style>{STYLE}</style>",
            f'<text class="title" x="{LABEL}" y="22">{escape(title)}</text>',
            *legend,
            *parts,
            "</svg>",
            "",
        ]
    )
