# SPDX-License-Identifier: LGPL-2.1-or-later
"""Storage in words, as a tree."""

from vmguard._typing import List
from vmguard.storage import Storage


def describe(storage: Storage, indent: str = "") -> List[str]:
    """What a storage object is and how that was found: lines for a person, what lies beneath indented."""
    size = "" if storage.size is None else f", {storage.size} bytes"
    seen = "other hosts can reach it" if storage.others_see_it else "this host's only"
    lines = [f"{storage.identity}", f"  {storage.kind} {storage.path}{size}, {seen}"]
    lines += [f"  also {one}" for one in storage.also]
    lines += [f"  {one}" for one in storage.reasons]
    if storage.not_writable:
        lines.append(f"  cannot be guarded for writing: {storage.not_writable}")
    if storage.instead:
        lines.append(f"  name instead: {storage.instead}")
    if storage.used_by_host:
        lines.append(f"  used by this host: {storage.used_by_host}")
    for title, beneath in (("on one host at a time", storage.one_host), ("beneath", storage.under)):
        for one in beneath:
            lines.append(f"  {title}:")
            lines += describe(one, "    ")
    return [indent + line for line in lines]
