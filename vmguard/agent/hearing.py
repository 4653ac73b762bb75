# SPDX-License-Identifier: LGPL-2.1-or-later
"""
libvirt's events, over a connection that comes and goes.

A call to a libvirtd that hangs would hang the whole agent. So it is asked in a process of its own whether it answers, before
the connection is made; afterwards nothing is called on it any more, and libvirt's keepalive closes it when it falls silent.
A daemon that an administrator has stopped is not started by us: the sockets of systemd would do that.
"""

import asyncio
from typing import Any, Callable, Optional

from vmguard import host
from vmguard.agent import work

URI = "qemu:///system"
PIDFILES = ("/run/libvirtd.pid", "/run/virtqemud.pid", "/var/run/libvirtd.pid", "/var/run/virtqemud.pid")

_PAUSE = 1.0  # seconds between two looks whether there is a daemon, while we are not connected
# Seconds, and how often in vain. The daemon asks by itself every 5 s: this is only for one that hangs.
_KEEPALIVE = (15, 2)
_ASK = "import libvirt; libvirt.openReadOnly('%s').close()"


def daemon_runs() -> Optional[int]:
    """The pid of libvirt's daemon, if one runs."""
    for path in PIDFILES:
        text = (host.read(path) or b"").strip()
        if text.isdigit() and host.process(int(text)) is not None:
            return int(text)
    return None


class Hearing:
    """
    Tells wake(uuid, event) of each event of a domain; uuid "" when all may have changed, because we did not listen.

    defined(uuid): a definition is new, or other.
    """

    def __init__(self, wake: Callable[[str, str], None], defined: Callable[[str], None]) -> None:
        self._wake = wake
        self._defined = defined
        self._connection: Any = None
        self._lost = asyncio.Event()  # the connection, since it was last made
        self._registered: Any = None

    async def keep(self) -> None:
        """Connect, and connect again, until cancelled."""
        try:
            import libvirt
            import libvirtaio
        except ImportError:
            return  # the files that libvirt writes tell nearly as much
        libvirt.registerErrorHandler(lambda _context, _error: None, None)
        self._registered = libvirtaio.virEventRegisterAsyncIOImpl(loop=asyncio.get_running_loop())
        while True:
            if daemon_runs() is not None:
                await self._connect(libvirt)
            if self._connection is not None:
                await self._lost.wait()
            await asyncio.sleep(_PAUSE)

    async def _connect(self, libvirt: Any) -> None:
        answers = await work.program(["/usr/bin/python3", "-I", "-c", _ASK % URI], "", 20)
        if answers.status != 0:
            return
        try:
            opened = libvirt.openReadOnly(URI)
            opened.setKeepAlive(*_KEEPALIVE)
            opened.registerCloseCallback(self._closed, None)

            def on(number: int, word: str) -> None:
                def heard(_connection: Any, domain: Any, *_rest: Any) -> None:
                    self._wake(domain.UUIDString(), word)

                opened.domainEventRegisterAny(None, number, heard, None)

            def lifecycle(_connection: Any, domain: Any, event: int, _detail: int, _opaque: Any) -> None:
                if event == libvirt.VIR_DOMAIN_EVENT_DEFINED:
                    self._defined(domain.name())
                else:
                    self._wake(domain.UUIDString(), "lifecycle")

            opened.domainEventRegisterAny(None, libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE, lifecycle, None)
            for name in ("DEVICE_ADDED", "DEVICE_REMOVED", "TRAY_CHANGE", "DISK_CHANGE", "BLOCK_JOB_2"):
                on(getattr(libvirt, "VIR_DOMAIN_EVENT_ID_" + name), name.lower())
        except libvirt.libvirtError:
            return
        self._connection = opened
        self._lost.clear()
        self._wake("", "connected")

    def _closed(self, _connection: Any, _reason: int, _opaque: Any) -> None:
        self._connection = None
        self._lost.set()
        self._wake("", "closed")


