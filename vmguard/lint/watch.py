# SPDX-License-Identifier: LGPL-2.1-or-later
"""`vmguard lint --watch`: each definition is judged when it changes, in files or in libvirt, until it is interrupted."""

import os
import queue
import sys
import threading
from types import ModuleType
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, TextIO, Union

from vmguard.errors import BadRequest
from vmguard.lint import formats, site, sources
from vmguard.lint.document import Origin
from vmguard.lint.engine import Report
from vmguard.lint.findings import Finding
from vmguard.lint.inotify import Folders
from vmguard.lint.sources import Source
from vmguard.lint.standing import Standing


class Change(NamedTuple):
    """A definition is new or other (xml), or gone (None)."""

    origin: Origin
    xml: Optional[bytes]


class Watch:
    """Hears of changes and hands them to a Standing."""

    def __init__(
        self, standing: Standing, folders: Sequence[str], connections: Sequence[str], local: bool = True
    ) -> None:
        """Raises BadRequest for a folder or a connection that is not there."""
        self.standing = standing
        self._local = local
        self._host = os.uname().nodename if local else ""
        self._changes: queue.Queue[Union[Change, str]] = queue.Queue()  # or why there will be no more
        try:
            self._folders = Folders(folders) if folders else None
        except OSError as error:
            raise BadRequest(f"{error.filename}: {error.strerror}") from error
        self._opened = [self._listen(uri) for uri in connections]
        if self._folders is not None:
            threading.Thread(target=self._files, daemon=True).start()

    def next(self) -> List[Finding]:
        """Wait for one change; what is wrong with the definition that it made."""
        while True:
            change = self._changes.get()
            if isinstance(change, str):
                raise BadRequest(change, "start it again")
            if change.xml is not None:
                return self.standing.defined(change.xml, change.origin)
            self.standing.gone(change.origin.source)

    def _files(self) -> None:
        assert self._folders is not None
        while True:
            for path, there in self._folders.changes():
                if not path:
                    self._changes.put("changes came faster than they could be read, and some are lost")
                elif path.endswith(".xml"):
                    self._changes.put(self._change(path, there))

    def _change(self, path: str, there: bool) -> Change:
        origin = Origin(path, self._host, self._local)
        if there:
            try:
                xml = sources.read_one(path)
                if xml is not None:
                    return Change(origin, xml)
            except OSError:
                pass  # gone again
        return Change(origin, None)

    def _listen(self, uri: str) -> Any:
        libvirt = sources.library()
        if libvirt is None:
            raise BadRequest("libvirt's Python module is not installed", "install python3-libvirt")
        if not _looping.is_set():
            _looping.set()
            libvirt.virEventRegisterDefaultImpl()
            threading.Thread(target=_loop, args=(libvirt,), daemon=True).start()
        try:
            opened = libvirt.openReadOnly(uri)
            host, local = sources.whose(opened)

            def heard(_connection: Any, domain: Any, event: int, _detail: int, _opaque: Any) -> None:
                self._heard(libvirt, Origin(f"{uri}: {domain.name()}", host, local), domain, event)

            opened.domainEventRegisterAny(None, libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE, heard, None)
            opened.registerCloseCallback(lambda *_: self._changes.put(f"{uri}: the connection was closed"), None)
            opened.setKeepAlive(5, 3)
        except libvirt.libvirtError as error:
            raise BadRequest(f"{uri}: {error.get_error_message()}") from error
        return opened

    def _heard(self, libvirt: Any, origin: Origin, domain: Any, event: int) -> None:
        if event == libvirt.VIR_DOMAIN_EVENT_DEFINED:
            try:
                xml = str(domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)).encode("utf-8", "surrogateescape")
                self._changes.put(Change(origin, xml))
            except libvirt.libvirtError:
                pass  # gone again, which is another event
        elif event == libvirt.VIR_DOMAIN_EVENT_UNDEFINED:
            self._changes.put(Change(origin, None))


_looping = threading.Event()


def _loop(libvirt: Any) -> None:
    while True:
        libvirt.virEventRunDefaultImpl()


def run(
    found: Sequence[Source],
    names: Sequence[str],
    connections: Sequence[str],
    modules: Dict[str, ModuleType],
    form: str,
    offline: bool,
    to: TextIO,
) -> int:
    """
    Until it is interrupted.

    found: the definitions that are there already. names: files and folders to watch. Raises BadRequest and Misconfigured.
    """
    standing = Standing(lambda: site.here(offline, inventory=True), modules)
    standing.fill(found)
    folders = {os.path.abspath(name if os.path.isdir(name) else os.path.dirname(name) or ".") for name in names}
    for origin, _ in found:
        if origin.target and os.path.exists(origin.source):
            folders.add(os.path.dirname(os.path.abspath(origin.source)))
    watch = Watch(standing, sorted(folders), connections, not offline)
    where = ", ".join([*sorted(folders), *connections]) or "nothing"
    print(f"watching {len(standing)} definitions: {where}", file=sys.stderr, flush=True)
    rules = tuple(module.RULE for module in modules.values())
    while True:
        findings = watch.next()
        formats.writer(form).write(Report(tuple(findings), 1, len(standing) - 1, 0, (), rules, ()), to)
        to.flush()
