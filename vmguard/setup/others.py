# SPDX-License-Identifier: LGPL-2.1-or-later
"""Where others keep things. Read as `others.LIBVIRT` at the moment of use, so that a test can point elsewhere."""

LIBVIRT = "/etc/libvirt"
SANLOCK_CONF = "/etc/sanlock/sanlock.conf"
# The plugin is in libvirt's library folder; which one that is differs by distribution.
PLUGINS = (
    "/usr/lib/*/libvirt/lock-driver/sanlock.so",
    "/usr/lib64/libvirt/lock-driver/sanlock.so",
    "/usr/lib/libvirt/lock-driver/sanlock.so",
)
PROC = "/proc"
# There if systemd runs (sd_booted(3)).
SYSTEMD = "/run/systemd/system"
MOUNTINFO = "/proc/self/mountinfo"
FSTAB = "/etc/fstab"
