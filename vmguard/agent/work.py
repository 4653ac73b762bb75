# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Children and programs of the agent, waited for by its event loop.

Whatever may hang (storage, sanlock, libvirt) is done in one of them, with an end: the loop itself never waits.
"""

import asyncio
import os
import signal
import subprocess
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Sequence

from vmguard import deadline
from vmguard._light import loads

Message = Dict[str, Any]


class Ended(NamedTuple):
    """How a child or a program ended."""

    whole: bool  # it came to its own end in time
    text: str = ""  # of a program: what it printed; of a child: the trace of an exception that nobody meant
    status: Optional[int] = None


async def child(work: Callable[[], None], seconds: float, heard: Callable[[Message], None]) -> Ended:
    """
    Run work() in a forked child; each line that it tells (deadline.tell) is given to heard() as it comes.

    It is killed when nothing was heard of it for so many seconds. To be called in the main thread.
    """

    def begin() -> deadline.Outcome:
        # The loop's own: a signal to the child must not arrive in the parent.
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        work()
        return 0, ""

    pid, pipe = deadline.begin(begin)
    whole, trace = False, ""
    try:
        reader = _Lines(pipe)
        while True:
            line = await reader.next(seconds)
            if line is None or not line.endswith(b"\n"):
                break  # the end; or cut off by the child's death
            message = loads(line.decode())
            if "bug" in message:
                trace = message["bug"]
            elif "status" in message:
                whole = True
            else:
                heard(message)
    finally:
        os.close(pipe)
        _end(pid)
    return Ended(whole, trace)


async def program(words: Sequence[str], stdin: str, seconds: float) -> Ended:
    """Run a program with this on its standard input; killed, with its children, when it takes longer."""
    process = subprocess.Popen(
        words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
    )
    assert process.stdin is not None and process.stdout is not None
    os.set_blocking(process.stdin.fileno(), False)
    try:
        process.stdin.write(stdin.encode()[:65536])  # what a pipe takes at once
        process.stdin.close()
    except (BrokenPipeError, BlockingIOError):
        pass
    pipe = process.stdout.fileno()
    data: List[bytes] = []
    try:
        reader = _Lines(pipe)
        end = asyncio.get_running_loop().time() + seconds
        while True:
            line = await reader.next(end - asyncio.get_running_loop().time())
            if line is None:
                break
            data.append(line)
    finally:
        try:
            if not reader.ended:
                os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        process.stdout.close()
    if reader.ended:
        for _ in range(100):
            if process.poll() is not None:
                break
            await asyncio.sleep(0.01)
    if process.returncode is None:
        _left.append(process.pid)
    text = b"".join(data).decode("utf-8", "replace")
    return Ended(reader.ended and process.returncode is not None, text, process.returncode)


class _Lines:
    """The lines of a pipe."""

    def __init__(self, pipe: int) -> None:
        self._pipe = pipe
        self._data = b""
        self.ended = False
        os.set_blocking(pipe, False)

    async def next(self, seconds: float) -> Optional[bytes]:
        """The next line; None at the end, or when nothing came for so many seconds."""
        loop = asyncio.get_running_loop()
        while b"\n" not in self._data and not self.ended:
            ready = loop.create_future()
            loop.add_reader(self._pipe, lambda ready=ready: ready.done() or ready.set_result(None))  # type: ignore[misc]
            try:
                await asyncio.wait_for(ready, max(0.0, seconds))
            except asyncio.TimeoutError:
                return None
            finally:
                loop.remove_reader(self._pipe)
            chunk = os.read(self._pipe, 65536)
            self._data += chunk
            self.ended = not chunk
        line, newline, rest = self._data.partition(b"\n")
        if self.ended and not newline:
            self._data = b""
            return line or None
        self._data = rest
        return line + newline


_left: List[int] = []  # children that are not reaped yet: one that hangs in the kernel stays for a while


def _end(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    _left.append(pid)
    reap()


def reap() -> None:
    """See those off that have ended."""
    for pid in list(_left):
        try:
            done, _ = os.waitpid(pid, os.WNOHANG)
        except ChildProcessError:
            done = pid
        if done:
            _left.remove(pid)
