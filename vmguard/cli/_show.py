# SPDX-License-Identifier: LGPL-2.1-or-later
"""Tables for people: rich where a terminal is there, plain columns where not."""

import json
import sys
from typing import Any, Sequence

from vmguard.text import plain


def table(title: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table. Cells are shown literally, whatever they hold."""
    shown = [[plain(cell) for cell in row] for row in rows]
    if sys.stdout.isatty() and _rich(title, heads, shown):
        return
    print(f"{title}:")
    widths = [max(len(line[column]) for line in [list(heads), *shown]) for column in range(len(heads))]
    for line in [list(heads), *shown]:
        print("  " + "  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip())


def _rich(title: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> bool:
    try:
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text
    except ImportError:
        return False
    drawn = Table(title=title, title_justify="left")
    for head in heads:
        drawn.add_column(head, overflow="fold")  # not cut off: a path is what is looked for
    for row in rows:
        drawn.add_row(*(Text(cell) for cell in row))
    Console().print(drawn)
    return True


def as_json(value: Any) -> None:
    """Print one JSON document. The keys are part of the interface; `version` grows when one changes its meaning."""
    json.dump(value, sys.stdout, indent=2, default=str)
    print()
