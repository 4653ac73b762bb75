# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The trail of all hosts: the agent of each copies what its host has written down to the store, where `vmguard audit` reads it.

Nobody waits for it: hooks write to this host's own disk, and what is copied later is copied whole. A copy that was cut
short is made again, so a line may be there twice; it counts once.
"""

import json
import os
from typing import Dict, List, Optional, Tuple

from vmguard import deadline, events, paths
from vmguard.audit.history import Event, Wanted, new_lines, parsed
from vmguard.config import Config, load
from vmguard.errors import Late

# A store that does not answer must not keep from seeing what this host knows. Seconds.
_PATIENCE = 10.0


def folder(config: Config) -> Optional[str]:
    """Where the trails lie; None where no other host sees the store, or it is no directory."""
    if config.store is None or not config.shared:
        return None
    return os.path.join(config.store, "history")


def publish() -> None:
    """Copy what is new. Raises OSError; hangs with the store."""
    config = load()
    place = folder(config)
    if place is None or config.store is None or not os.path.isdir(config.store):
        return
    kept = os.path.join(paths.STATE, "published.json")
    where = (0, 0)
    try:
        with open(kept, encoding="ascii") as file:
            found = json.load(file)
        where = (int(found["inode"]), int(found["offset"]))
    except (OSError, ValueError, KeyError, TypeError):
        pass
    lines, where = new_lines(where)
    if not lines:
        return
    # The place first: where that cannot be kept, on a full disk, the same lines would be copied again and again.
    with open(kept + ".tmp", "w", encoding="ascii") as file:
        json.dump({"inode": where[0], "offset": where[1]}, file)
    os.makedirs(place, mode=0o700, exist_ok=True)
    target = os.path.join(place, f"{config.host_id}.jsonl")
    with open(target, "ab") as out:
        out.write(b"".join(line + b"\n" for line in lines))
        size = out.tell()
    if size > events.MAX_BYTES:
        os.rename(target, target + ".1")
    os.rename(kept + ".tmp", kept)


def of_others(wanted: Wanted) -> Tuple[List[Event], bool]:
    """What other hosts have written down and is wanted; False with it if the store did not answer."""
    config = load()
    place = folder(config)
    if place is None:
        return [], True

    def read() -> Tuple[int, str]:
        lines: Dict[bytes, None] = {}
        try:
            names = os.listdir(place)
        except FileNotFoundError:
            names = []
        for name in sorted(names, reverse=True):  # what was put aside before what goes on
            if name.partition(".")[0] != str(config.host_id):
                with open(os.path.join(place, name), "rb") as file:
                    lines.update(dict.fromkeys(file.read().splitlines()))
        return 0, b"\n".join(lines).decode("ascii", "replace")

    try:
        _, text = deadline.run(_PATIENCE, read)
    except (Late, deadline.Bug):
        return [], False
    # The store is what may hang; to understand a year of many hosts takes its time.
    return [event for event in parsed(text.encode().split(b"\n")) if wanted.takes(event)], True
