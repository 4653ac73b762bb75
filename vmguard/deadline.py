# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Work that may hang, with an end.

A call to a stopped sanlock daemon, or a stat on storage that went away, returns when it likes; signals do not
interrupt it. So the work runs in a child, and the parent answers in time whatever happens to the child. The child

* has none of the parent's standard descriptors: libvirt waits for their end, not for the process;
* dies with the parent, and is killed when it is late. A call that sanlock finishes after that leaves an orphan lease
  that the record of the instance names, and the next sweep gives back.
"""

import ctypes
import os
import select
import time

from vmguard._light import dumps, loads
from vmguard._typing import Any, Callable, Dict, Optional, Tuple
from vmguard.errors import Late

PR_SET_PDEATHSIG = 1  # linux/prctl.h
SIGKILL = 9  # everywhere; the module `signal` takes a while to load

Outcome = Tuple[int, str]  # exit status, and what to say

_pipe: Optional[int] = None  # in the child: where it reports to
_parent = 0


class Bug(Exception):
    """An exception in the child that nobody meant; its argument is the trace, as text."""


def tell(message: Dict[str, Any]) -> None:
    """Say something to the parent, in a child: one line of JSON."""
    assert _pipe is not None
    data = dumps(message).encode() + b"\n"
    while data:
        data = data[os.write(_pipe, data) :]


def step(doing: str) -> None:
    """Say what is done now, for the sentence that a late answer becomes. A clause: "waiting for the host lock"."""
    if _pipe is not None:
        tell({"doing": doing})


def tolerate(reason: str) -> None:
    """Say that a late answer is not to be a refusal, and why."""
    if _pipe is not None:
        tell({"tolerated": reason})


def orphaned() -> bool:
    """True in a child whose parent is gone: nobody hears its answer, so it must not change anything any more."""
    return _pipe is not None and os.getppid() != _parent


def _child(work: Callable[[], Outcome], pipe: int, parent: int) -> None:
    global _pipe, _parent
    _pipe, _parent = pipe, parent
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0)
    if orphaned():  # it died before the line above
        return
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    try:
        status, text = work()
    except BaseException:  # whatever it is, the parent must hear of it
        import traceback

        tell({"bug": traceback.format_exc()})
    else:
        tell({"status": status, "text": text})


def _read(pipe: int, child: int, seconds: float) -> bytes:
    """All that the child says until it ends or time is up."""
    end = time.monotonic() + seconds
    poll = select.poll()
    poll.register(pipe, select.POLLIN)
    data = bytearray()  # it may become large
    while True:
        left = end - time.monotonic()
        if left <= 0 or not poll.poll(left * 1000):
            os.kill(child, SIGKILL)
            # One that hangs in the kernel cannot be reaped, and need not be: it holds nothing that libvirt waits for.
            os.waitpid(child, os.WNOHANG)
            return bytes(data)
        chunk = os.read(pipe, 65536)
        if not chunk:
            os.waitpid(child, 0)
            return bytes(data)
        data += chunk


def begin(work: Callable[[], Outcome]) -> Tuple[int, int]:
    """
    Begin work() in a child that dies with the thread which calls this: its pid, and the pipe that it says its lines into.
    """
    receive, send = os.pipe()
    parent = os.getpid()
    child = os.fork()
    if child == 0:
        try:
            os.close(receive)
            _child(work, send, parent)
        finally:
            os._exit(1)
    os.close(send)
    return child, receive


def run(seconds: float, work: Callable[[], Outcome]) -> Outcome:
    """
    The outcome of work(), which must come within `seconds`.

    Raises Late when it does not, or when the child was killed by somebody; Bug when work() raised: it is expected to
    turn the errors that it means into an outcome itself.
    """
    child, receive = begin(work)
    data = _read(receive, child, seconds)
    os.close(receive)
    doing, tolerated = "starting", ""
    for line in data.splitlines(keepends=True):
        if not line.endswith(b"\n"):
            break  # cut off by the child's death
        message = loads(line.decode())
        if "bug" in message:
            raise Bug(message["bug"])
        if "status" in message:
            return message["status"], message["text"]
        doing = message.get("doing", doing)
        tolerated = message.get("tolerated", tolerated)
    raise Late(seconds, doing, tolerated)
