# SPDX-License-Identifier: LGPL-2.1-or-later
"""libvirt's daemons and settings."""

import os

from vmguard import host
from vmguard.doctor.check import Findings, check, doubtful, ok, unknown, wrong
from vmguard.doctor.look import Look
from vmguard.setup import daemons, hookfile, libvirtconf, libvirtside, others
from vmguard.setup.plan import contents, replace
from vmguard.setup.steps import JOIN_UNIT


@check("libvirt")
def runs(look: Look) -> Findings:
    """A daemon is there, of a version with hooks in folders."""
    version = daemons.libvirt_version()
    shown = "unknown" if version is None else ".".join(map(str, version))
    found = look.libvirt()
    if not os.path.isdir(others.LIBVIRT):
        yield wrong("libvirt is not installed", "install libvirt, then `vmguard setup`")
    elif not found:
        yield ok(f"libvirt {shown}; its daemon does not run now, and starts when it is asked")
    else:
        yield ok(f"libvirt {shown}: " + ", ".join(f"{daemon.name} (process {daemon.pid})" for daemon in found))
    if version is not None and version < hookfile.FOLDER_SINCE:
        yield doubtful(f"libvirt {shown} knows one hook only, hooks/qemu", "no other hook of qemu can be used beside it")


@check("plugin")
def plugin(look: Look) -> Findings:
    """QEMU owns its leases where libvirt registers it with sanlock."""
    config = look.config()
    if config is None:
        return
    if daemons.plugin() is None:
        fix = f"install {daemons.plugin_package()}, then `vmguard setup`"
        if libvirtside.asks_for_plugin():
            says = "libvirt's sanlock plugin is not installed, and lock_manager names it: its daemon does not start any more"
            yield wrong(says, fix)
        else:
            yield doubtful("libvirt's sanlock plugin is not installed: leases stay with the host, not with QEMU", fix)
        return
    for daemon in look.libvirt():
        loaded = host.libvirt_has_sanlock_plugin(daemon.pid)
        if loaded is None:
            yield unknown(f"whether {daemon.name} has loaded its sanlock plugin cannot be seen")
        elif not loaded:
            fix = f"vmguard setup (restarts {daemon.name}; guests run on)"
            yield wrong(f"{daemon.name} has not loaded its sanlock plugin: guests that lose their leases run on", fix)
        else:
            yield ok(f"{daemon.name} has loaded its sanlock plugin")


def _settings(_: Look) -> None:
    """Only those that keep libvirt from leases of its own: they count from its daemon's next start."""
    for setting in libvirtside.settings():
        if setting.file.endswith("qemu-sanlock.conf") and _differs(setting):
            data = contents(setting.file) or b""
            replace(setting.file, libvirtconf.change(setting.file, data, setting.name, setting.value))


def _differs(setting: libvirtside.Setting) -> bool:
    return libvirtside.now(setting) != libvirtconf.written(setting.value)


@check("register-only", mend=_settings)
def register_only(look: Look) -> Findings:
    """
    The plugin takes no leases of its own, on any host: one that does makes migration fail, and kills guests that restart.
    """
    if look.config() is None or daemons.plugin() is None:
        return
    found = [setting for setting in libvirtside.settings() if _differs(setting)]
    for setting in found:
        shown = libvirtside.now(setting)
        now = "not set" if shown is None else shown
        text = f"{setting.file}: {setting.name} is {now}, not {libvirtconf.written(setting.value)}"
        yield wrong(text, "vmguard setup", mendable=setting.file.endswith("qemu-sanlock.conf"))
    late = [daemon for daemon in look.libvirt() if not found and not libvirtside.has_read_settings(daemon)]
    for daemon in late:
        text = f"the plugin's settings were changed after the start of {daemon.name}, which reads them only then"
        yield doubtful(text, f"vmguard setup (restarts {daemon.name}; guests run on)")
    if not found and not late:
        yield ok("the plugin takes no leases of its own")


@check("boot")
def boot(look: Look) -> Findings:
    """After a boot the host joins before libvirt starts what is to start with it."""
    if look.config() is None:
        return
    if not daemons.systemd_runs():
        yield unknown("whether `vmguard join` runs at boot cannot be seen: systemd does not run here", "see vmguard(8)")
        return
    starts = [name[: -len(".xml")] for name in look.listed("/etc/libvirt/qemu/autostart") if name.endswith(".xml")]
    saved = (look.said("systemctl", "is-enabled", "libvirt-guests.service") or "").strip() == "enabled"
    if not daemons.unit_is("enabled", JOIN_UNIT):
        who = ", ".join(starts) or "guests"
        yield wrong(f"this host does not join at boot: {who} cannot start", f"systemctl enable {JOIN_UNIT}")
        return
    order = look.said("systemctl", "show", "--property=Before", "--value", JOIN_UNIT) or ""
    missing = [daemon.unit for daemon in look.libvirt() if daemon.unit and daemon.unit not in order.split()]
    if saved and "libvirt-guests.service" not in order.split():
        missing.append("libvirt-guests.service")
    if missing:
        fix = "install the package vmguard again, then systemctl daemon-reload"
        yield wrong(f"{JOIN_UNIT} is not ordered before {', '.join(missing)}", fix)
    else:
        yield ok(f"{JOIN_UNIT} is enabled, before libvirt" + (f"; with the host start {', '.join(starts)}" if starts else ""))
