# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Lint of one definition at a time, against all others that are known: for whatever hears that one has changed.

`vmguard lint --watch` is made of it in the foreground, the agent in the background.
"""

from types import ModuleType
from typing import Callable, Dict, Iterable, List, Optional

from vmguard.lint import engine
from vmguard.lint.document import Origin
from vmguard.lint.engine import Judged
from vmguard.lint.findings import Finding
from vmguard.lint.site import Site
from vmguard.lint.sources import Source
from vmguard.lint.subject import Meeting


class Standing:
    """All definitions of a host or a cluster, as they are now."""

    def __init__(self, look: Callable[[], Site], modules: Dict[str, ModuleType]) -> None:
        """look: makes a fresh look at the host, whose storage may have changed since the last definition."""
        self._look = look
        self._modules = modules
        self._meeting = Meeting()
        self._known: Dict[str, Judged] = {}  # by source

    def __len__(self) -> int:
        return len(self._known)

    def fill(self, sources: Iterable[Source]) -> None:
        """Take in what is there already, without a word about it."""
        site = self._look()
        for origin, read in sources:
            judged = engine.judge_source(origin, read, site, self._modules)
            if judged is not None:
                self._keep(origin.source, judged)

    def defined(self, xml: bytes, origin: Origin) -> List[Finding]:
        """A definition is new, or has changed: what is wrong with it. Raises Misconfigured."""
        site = self._look()
        judged = engine.judge(xml, origin, site, self._modules)
        self._keep(origin.source, judged)
        found = [*judged.findings, *engine.compare(judged, self._meeting, site, self._modules)]
        return engine.finish(judged, found, site, self._modules)

    def gone(self, source: str) -> bool:
        """A definition is gone. False if it was not known."""
        known = self._known.pop(source, None)
        if known is not None and known.guest is not None:
            self._meeting.remove(known.guest)
        return known is not None

    def judged(self, source: str) -> Optional[Judged]:
        """What is kept of a definition."""
        return self._known.get(source)

    def _keep(self, source: str, judged: Judged) -> None:
        self.gone(source)
        self._known[source] = judged
        if judged.guest is not None:
            self._meeting.add(judged.guest)
