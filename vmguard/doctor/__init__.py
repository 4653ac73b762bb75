# SPDX-License-Identifier: LGPL-2.1-or-later
"""
What makes a guard silently useless, looked for one by one.

    check.py        a check, what it finds, and how they are run: nothing that is broken may break a check
    look.py         what the checks look at, read once
    hook.py         the script that libvirt calls
    libvirt.py      libvirt's daemons and settings
    sanlock.py      sanlock, its watchdog, and the times of others
    store.py        configuration, store, membership
    guests.py       guests that run without what protects them
    system.py       clocks, denials, versions

A check is a function with a name, and says what it saw: that all is well, or what is wrong, how bad that is, and in one line
what mends it. What can be mended without harm to anybody, `vmguard doctor --fix` mends.
"""

from vmguard.doctor import guests, hook, libvirt, sanlock, store, system
from vmguard.doctor.check import Finding, Severity, checks, examine, mend, run
from vmguard.doctor.look import Look

__all__ = [
    "Finding", "Look", "Severity", "checks", "examine", "guests", "hook", "libvirt", "mend", "run",
    "sanlock", "store", "system",
]  # fmt: skip
