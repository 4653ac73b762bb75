# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The first process of a host: gives it its own folders and name, then reaps.

    unshare --mount --uts --pid --ipc --net --fork --kill-child python3 -I -S init.py NAME READY [SOURCE=TARGET | =TARGET]...

SOURCE is bound over TARGET; without SOURCE an empty tmpfs is put there. When all is in place the file READY is made.
Killing this process is the power cut: the kernel takes everything in the host with it. It must reap, since QEMU and
libvirtd become its children: an unreaped QEMU looks alive to libvirt.
"""

import ctypes
import os
import signal
import socket
import sys

MS_BIND = 0x1000  # linux/mount.h
MS_REC = 0x4000
MS_PRIVATE = 0x40000

libc = ctypes.CDLL(None, use_errno=True)


def mount(source: str, target: str, kind: str, flags: int) -> None:
    if libc.mount(os.fsencode(source), os.fsencode(target), os.fsencode(kind), ctypes.c_ulong(flags), None):
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error), f"{source} on {target}")


def main(name: str, ready: str, *mounts: str) -> None:
    mount("none", "/", "", MS_REC | MS_PRIVATE)
    mount("proc", "/proc", "proc", 0)
    socket.sethostname(name)
    for one in mounts:
        source, _, target = one.partition("=")
        if source:
            mount(source, target, "", MS_BIND | MS_REC)
        else:
            mount("tmpfs", target, "tmpfs", 0)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])
    open(ready, "w").close()
    while True:
        signal.sigwait([signal.SIGCHLD])
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            pass


if __name__ == "__main__":
    main(*sys.argv[1:])
