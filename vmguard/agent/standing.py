# SPDX-License-Identifier: LGPL-2.1-or-later
"""
This host among the others: that it is a member of the lockspace, that they have its trail, what came up here and is theirs.

Nothing of it is waited for: the store may hang, so each question is a child's.
"""

import asyncio
import os
import time
from functools import partial
from typing import Any, AsyncIterator, Callable, List, Optional, Set

from vmguard import events, relied
from vmguard.agent import looking, work
from vmguard.audit import elsewhere, shared
from vmguard.config import Config

# What was written down is copied to the store so often at most. Seconds.
_SHARED_EVERY = 5.0
# When the store has not answered whose something is, it is asked again. Seconds.
_ASKED_AGAIN = 5.0
# How often it is asked whether this host is still a member of the lockspace. Seconds.
_MEMBER_EVERY = 10.0
# How often the leases of this host's guests are looked for on the disk. Seconds.
_RELIED_EVERY = 60.0
# A join after a crash under another host name waits 8 io_timeouts and 80 s. Seconds.
_JOIN_TAKES = 600.0

_JOIN = "import sys; sys.path.insert(0, sys.argv[1]); from vmguard.cli import main; sys.exit(main(['join']))"


class Standing:
    """
    say(event, text, **data) writes down what was found; begin() takes what goes on by itself; config() is the configuration
    as it is now, None where nothing is to be guarded; came_up() the devices that have become active since the last call.
    """

    def __init__(
        self,
        say: Callable[..., None],
        begin: Callable[[Any], None],
        config: Callable[[], Optional[Config]],
        came_up: Callable[[], List[str]],
        library: str,
    ) -> None:
        self._say = say
        self._begin = begin
        self._config = config
        self._came_up = came_up
        self._library = library
        self._shared = (0, 0)  # inode and size of the trail when it was last copied
        self._share_next = 0.0
        self._asks = False  # a child asks who holds what has become active
        self._unanswered: List[str] = []  # of what a child asked for in vain

    def look(self) -> None:
        """Every few seconds."""
        config = self._config()
        if config is not None and config.shared:
            self._share(config)
            self._ask_for_holders(config)
        else:
            self._came_up()  # no other host has any of it

    async def keep(self) -> None:
        """A host that has lost its leases, because their storage was away, joins again as soon as it can."""
        told = ""
        async for config in self._every(_MEMBER_EVERY):
            found: List[work.Message] = []
            await work.child(partial(looking.tell_whether_lost, config), config.deadline, found.append)
            if not any(message["lost"] for message in found):
                told = ""
                continue
            if not told:
                lost = "this host is not a member of the lockspace any more, and no guest can start"
                self._say("alarm", f"{lost}: vmguardd has it join again")
            done = await work.program(["/usr/bin/python3", "-I", "-c", _JOIN, self._library], "", _JOIN_TAKES)
            hung = f"it did not end within {_JOIN_TAKES:.0f} s: see whether sanlock or the store hang"
            text = done.text.strip() if done.whole else hung
            if done.status != 0 and text != told:
                self._say("alarm", f"this host could not join again: {text}")
            elif done.status == 0:
                self._say("rejoined", text)
            told = text

    async def rely(self) -> None:
        """Leases that have vanished under their guests, and a store that cannot be used: told once, and again when it changes."""
        told: Set[str] = set()
        async for config in self._every(_RELIED_EVERY):
            found: List[work.Message] = []
            ended = await work.child(partial(relied.tell, config), config.deadline, found.append)
            for one in found:
                if one["text"] not in told:
                    self._say("alarm", one["text"], **one["data"])
            if ended.whole:
                told = {one["text"] for one in found}

    async def _every(self, seconds: float) -> AsyncIterator[Config]:
        """The configuration, so often, where there is something to be guarded by it. Without end."""
        while True:
            await asyncio.sleep(seconds)
            config = self._config()
            if config is not None:
                yield config

    def _share(self, config: Config) -> None:
        """Let the other hosts have what was written down, some seconds later."""
        try:
            now = os.stat(events.path())
        except OSError:
            return
        if (now.st_ino, now.st_size) == self._shared or time.monotonic() < self._share_next:
            return
        self._shared, self._share_next = (now.st_ino, now.st_size), time.monotonic() + _SHARED_EVERY
        self._begin(self._publish(config.deadline))

    async def _publish(self, seconds: float) -> None:
        ended = await work.child(shared.publish, seconds, lambda _: None)
        if not ended.whole:
            self._shared = (0, 0)  # the store does not answer: again, later

    def _ask_for_holders(self, config: Config) -> None:
        """Of volumes that have become active here. While a store does not answer, they wait."""
        devices = list(dict.fromkeys([*self._unanswered, *self._came_up()])) if not self._asks else []
        if devices:
            self._asks = True
            self._begin(self._ask(devices, config.deadline))

    async def _ask(self, devices: List[str], seconds: float) -> None:
        told: Set[str] = set()

        def heard(message: work.Message) -> None:
            device, holder = message.pop("device"), message.pop("holder") or "another host"
            told.add(device)
            self._say("activated", f"{message['path']}: it is active here too, as {device}; {holder} has it", **message)

        try:
            ended = await work.child(lambda: elsewhere.tell_holders(devices), seconds, heard)
            self._unanswered = [] if ended.whole else [device for device in devices if device not in told]
            if self._unanswered:
                await asyncio.sleep(_ASKED_AGAIN)
        finally:
            self._asks = False
