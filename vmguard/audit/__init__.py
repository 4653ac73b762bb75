# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The audit trail: who held which volume when, and what else was done to it.

    history.py    reads the events that hooks, commands and the agent have written; who held what from when until when
    shared.py     the trail of all hosts, in the store
    timeline.py   the life of one disk as a picture
    monitor.py    what is done to held volumes by others, as udev, the mount table and inotify tell it: for the agent
    openers.py    who opens them for writing, and whether files keep their names: of that, inotify tells only that it happened
"""
