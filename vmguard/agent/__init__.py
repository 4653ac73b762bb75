# SPDX-License-Identifier: LGPL-2.1-or-later
"""
vmguardd: what no hook ever sees.

Hot-plug, media change, snapshots, block jobs, and guests that were started before the guard or with its hook missing: the
agent compares what each QEMU has open with what is claimed for it, claims what is missing, gives back what nothing needs any
more, and stops a guest that has come to write what another one has.

    daemon.py    the process: one event loop, which never waits for anything but events
    guests.py    which QEMUs run, and whether what they have open has changed; cheap, for hundreds of them
    hearing.py   libvirt's events, over a connection that comes and goes
    looking.py   one look at one QEMU: claims, gives back, finds conflicts. In a child, because storage and sanlock may hang
    acting.py    what is done about a conflict, in a process of its own that asks libvirt
    standing.py  this host among the others: its membership, its trail, what came up here and is theirs
    work.py      children and programs, waited for by the event loop

Nothing depends on it: leases are QEMU's and the host's, records are written before anything is taken, and whatever it leaves
half done the next look or the next hook call mends.
"""

import sys

# asyncio loads OpenSSL where it can: 2 MiB of every host's memory for what is never used here. It can do without.
sys.modules.setdefault("ssl", None)  # type: ignore[arg-type]
