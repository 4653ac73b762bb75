# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Preparing a host, and taking it back.

    steps.py        what is to be done on this host: a plan
    removal.py      what is to be undone
    plan.py         a plan: changes that can be shown before they are made
    record.py       host.json: as whom this host was set up, and what stood in the files of others before
    place.py        where a store lies, and who else sees it
    libvirtconf.py  editing qemu.conf and its like; sanlock.conf
    hookfile.py     the script in libvirt's folder
    adoption.py     guests that ran before there was a guard
    daemons.py      libvirt's and sanlock's processes
"""
