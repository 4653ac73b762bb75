# SPDX-License-Identifier: LGPL-2.1-or-later
"""
A store on a block device that all hosts share: an LV of a shared volume group, a LUN. docs/store-format.md is its format.

    layout.py   where what lies, and how it is written: bytes in, facts out
    blocks.py   the device: direct reads and writes of whole blocks
    index.py    which place a lease has, and how one is given out
    store.py    the store itself
    making.py   how it comes into being
"""
