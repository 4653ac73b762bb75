# SPDX-License-Identifier: LGPL-2.1-or-later
"""Where vmguard keeps things on a host. Read as `paths.RUN` at the moment of use, so that a test can point elsewhere."""

CONFIG = "/etc/vmguard/vmguard.conf"
CONFIG_DIR = "/etc/vmguard/vmguard.conf.d"
# What is true until the next boot: instances, the host lock, overrides. tmpfs on every distribution with systemd.
RUN = "/run/vmguard"
# What outlives a boot: that this host was set up, and as whom.
STATE = "/var/lib/vmguard"
LOG = "/var/log/vmguard"
