# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The trail of all hosts: the agent of each copies what its host has written down to the store, where `vmguard audit` reads it.

Nobody waits for it: hooks write to this host's own disk, and what is copied later is copied whole. A copy that was cut
short is made again, so a line may be there twice; it counts once.
"""

import json
import os
import re
from functools import partial
from typing import List, Optional, Tuple

from vmguard import deadline, events, paths
from vmguard.audit.history import Event, Wanted, parsed, pieces
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
    trails = folder(config)
    if trails is None or config.store is None or not os.path.isdir(config.store):
        return
    kept = os.path.join(paths.STATE, "published.json")
    where = (0, 0)
    try:
        with open(kept, encoding="ascii") as file:
            found = json.load(file)
        where = (int(found["inode"]), int(found["offset"]))
    except (OSError, ValueError, KeyError, TypeError):
        pass
    os.makedirs(trails, mode=0o700, exist_ok=True)
    for lines, place in pieces(where):  # all that a busy host keeps would not fit into the agent's memory
        if not lines:
            continue
        # The place first: where that cannot be kept, on a full disk, the same lines would be copied again and again.
        with open(kept + ".tmp", "w", encoding="ascii") as file:
            json.dump({"inode": place[0], "offset": place[1]}, file)
        _append(os.path.join(trails, f"{config.host_id}.jsonl"), b"".join(line + b"\n" for line in lines))
        os.rename(kept + ".tmp", kept)


def _append(target: str, data: bytes) -> None:
    """To a trail in the store, all of it or nothing. Raises OSError."""
    with open(target, "ab", buffering=0) as out:
        before = out.tell()
        try:
            while data:
                data = data[out.write(data) :]
        except OSError:
            os.ftruncate(out.fileno(), before)  # the store is full: it is copied whole when there is room
            raise
        size = out.tell()
    if size > events.MAX_BYTES:
        os.rename(target, target + ".1")


def of_others(wanted: Wanted) -> Tuple[List[Event], List[str]]:
    """What other hosts have written down and is wanted; with it why some of that is missing, a clause each."""
    config = load()
    place = folder(config)
    if place is None:
        return [], []
    found: List[Event] = []
    missing: List[str] = []
    try:
        status, text = deadline.run(_PATIENCE, lambda: _trails(place))
        names = () if status else text.split()
        missing += [text] if status else []
        for name in names:
            if name == f"{config.host_id}.jsonl":
                continue
            status, text = deadline.run(_PATIENCE, partial(_trail, os.path.join(place, name)))
            if status:
                missing.append(text)
                continue
            # The store is what may hang; to understand a year of a host takes its time.
            found += filter(wanted.takes, parsed(text.encode().split(b"\n")))
    except Late:
        missing.append("the store does not answer")
    return found, missing


def _trails(place: str) -> deadline.Outcome:
    """0 with the trails of all hosts, each by the name of the file that goes on; else 1 with why they cannot be read."""
    try:
        names = os.listdir(place)
    except FileNotFoundError:
        names = []
    except OSError as error:
        return 1, f"{place}: {error.strerror}"
    found = map(re.compile(r"([0-9]+\.jsonl)(\.1)?").fullmatch, names)  # other things may lie beside them
    return 0, "\n".join(sorted({one.group(1) for one in found if one is not None}))


def _trail(path: str) -> deadline.Outcome:
    """
    0 with what one host has written down; else 1 with why it cannot be read.

    What goes on is read before what was put aside: put aside meanwhile, it is there twice, and counts once.
    """
    parts: List[bytes] = []
    for one in (path, path + ".1"):
        try:
            with open(one, "rb") as file:
                parts.insert(0, file.read())
        except FileNotFoundError:
            continue
        except OSError as error:
            return 1, f"{one}: {error.strerror}"
    return 0, b"\n".join(dict.fromkeys(b"\n".join(parts).splitlines())).decode("ascii", "replace")
