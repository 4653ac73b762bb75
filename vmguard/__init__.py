# SPDX-License-Identifier: LGPL-2.1-or-later
"""
vmguard: a guard of virtual machine disks.

The way of the data, one module or folder a step:

    domain XML -> Domain, Use -> Storage           -> Claim        -> lease   -> verdict
       domain.py                  storage/            claims.py       leases/    guard.py

The modules on the way of a guest's start import nothing that is slow to import (dataclasses, argparse, lxml,
subprocess): each start waits for them.
"""

__version__ = "0.1.0"
