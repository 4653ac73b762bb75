# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Definitions are judged when they change: by `vmguard lint`, in a process of its own, against all others of this host.

What is wrong with a definition now is kept in /run/vmguard/lint, a file a domain, for `vmguard status`; what is newly wrong is
told, once.
"""

import asyncio
import json
import os
from typing import Any, Callable, Dict, List, NamedTuple, Sequence, Set

from vmguard import paths
from vmguard.agent import work
from vmguard.arrivals import DEFINITIONS

# virsh edit and its like write more than once. Seconds.
_SETTLES = 0.2
# For all definitions of a large host, on a busy one. Seconds.
_TAKES = 300
# What could not be judged when the agent began is judged after that. Seconds.
_AGAIN = 60.0

_CODE = "import sys; sys.path.insert(0, sys.argv.pop(1)); from vmguard.cli import main; sys.exit(main())"
_LIBRARY = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


class Wrong(NamedTuple):
    """One thing that is wrong with a definition."""

    domain: str
    rule: str
    severity: str
    what: str
    text: str
    remedy: str


def _folder() -> str:
    return os.path.join(paths.RUN, "lint")


def known() -> Dict[str, List[Wrong]]:
    """By domain, what was wrong with it when it was last judged."""
    found: Dict[str, List[Wrong]] = {}
    try:
        entries = sorted(entry for entry in os.listdir(_folder()) if entry.endswith(".json"))
    except OSError:
        return {}
    for entry in entries:
        try:
            with open(os.path.join(_folder(), entry), encoding="ascii") as file:
                found[entry[:-5]] = [Wrong(*one) for one in json.load(file)]
        except (OSError, ValueError, TypeError):
            continue  # gone, or half a file of a crash: the next change writes it anew
    return found


def _keep(domain: str, wrong: Sequence[Wrong]) -> None:
    path = os.path.join(_folder(), domain + ".json")
    try:
        if not wrong:
            os.unlink(path)
            return
        os.makedirs(_folder(), mode=0o755, exist_ok=True)
        with open(path + ".tmp", "w", encoding="ascii") as file:
            json.dump(wrong, file)
        os.rename(path + ".tmp", path)
    except OSError:
        pass  # it is told all the same


class Definitions:
    """Hears which have changed, and judges them."""

    def __init__(self, tell: Callable[..., None]) -> None:
        """tell(event, text, **data) is called for each thing that is newly wrong."""
        self._tell = tell
        self._changed: Set[str] = set()
        self._woken = asyncio.Event()

    def changed(self, name: str) -> None:
        self._changed.add(name)
        self._woken.set()

    async def keep(self) -> None:
        """Judge all once, then what changes, until cancelled."""
        while not await self._judge([]):
            await asyncio.sleep(_AGAIN)  # what changes meanwhile is judged with all the others
        while True:
            await self._woken.wait()
            await asyncio.sleep(_SETTLES)
            self._woken.clear()
            names, self._changed = sorted(self._changed), set()
            there = [name for name in names if os.path.exists(_file(name))]
            for name in set(names) - set(there):
                _keep(name, ())
            # What was wrong with another one may have been about these.
            there = sorted({*there, *(name for name in known() if os.path.exists(_file(name)))})
            if there and not await self._judge(there):
                self._changed.update(there)

    async def _judge(self, names: Sequence[str]) -> bool:
        """These, or all. False if it came to nothing."""
        words = ["/usr/bin/python3", "-I", "-c", _CODE, _LIBRARY, "lint", "--format", "json", "--all", "--jobs", "1"]
        done = await work.program([*words, *(_file(name) for name in names)], "", _TAKES)
        try:
            report = json.loads(done.text)
            found = [_wrong(one) for one in report["findings"] if not one["suppressed"] and one["severity"] != "notice"]
        except (ValueError, KeyError, TypeError):
            return False  # libvirt, or one of the files, went away in the middle; the next change asks again
        before = known()
        for name in {*names, *before, *(one.domain for one in found)} if not names else names:
            now = [one for one in found if one.domain == name]
            for one in now:
                if one not in before.get(name, ()):
                    self._tell("lint", f"{name}: {words_of(one)}", domain=name, rule=one.rule, severity=one.severity)
            if now != before.get(name, []):
                _keep(name, now)
        return True


def _file(name: str) -> str:
    return os.path.join(DEFINITIONS, name + ".xml")


def _wrong(one: Dict[str, Any]) -> Wrong:
    return Wrong(one["domain"], one["rule"], one["severity"], one["what"], one["text"], one["remedy"])


def words_of(one: Wrong) -> str:
    """In a line."""
    where = f"{one.what}: " if one.what and not one.text.startswith(one.what) else ""
    return f"{where}{one.text} ({one.rule}, {one.severity}). {one.remedy}"
