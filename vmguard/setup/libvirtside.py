# SPDX-License-Identifier: LGPL-2.1-or-later
"""
libvirt's side of a set-up: its lock manager registers each QEMU with sanlock and takes no leases of its own; it has the
hook; its daemon has seen both.
"""

import os
from contextlib import contextmanager
from typing import Iterator, List, NamedTuple, Optional

from vmguard import host, paths
from vmguard.errors import Misconfigured
from vmguard.leases import status
from vmguard.setup import daemons, hookfile, libvirtconf, others
from vmguard.setup.libvirtconf import Value
from vmguard.setup.plan import Change, Plan, contents, remove, replace
from vmguard.setup.record import Previous

# Seconds by which a daemon's start may be mistaken: /proc tells the time of boot in whole ones.
_BOOT = 2


class Setting(NamedTuple):
    """A setting of libvirt's that the guard needs."""

    file: str
    name: str
    value: Value
    what: str


def _plugin_conf() -> str:
    return os.path.join(others.LIBVIRT, "qemu-sanlock.conf")


def settings() -> List[Setting]:
    """In the order in which they are to be made: lock_manager alone would make libvirt ask for leases of its own."""
    plugin = _plugin_conf()
    return [
        Setting(plugin, "auto_disk_leases", 0, "libvirt takes no leases by path"),
        Setting(plugin, "require_lease_for_disks", 0, "libvirt asks for no leases in the guests' definitions"),
        Setting(os.path.join(others.LIBVIRT, "qemu.conf"), "lock_manager", "sanlock", "each QEMU is known to sanlock"),
    ]


def previous(known: Previous) -> Previous:
    """What stands in libvirt's files now where that is not ours, and what earlier set-ups found where it is."""
    found: Previous = {path: dict(entries) for path, entries in known.items()}
    if daemons.plugin() is None:
        return found
    for setting in settings():
        text = now(setting)
        if text != libvirtconf.written(setting.value):
            found.setdefault(setting.file, {})[setting.name] = text
    return found


def now(setting: Setting) -> Optional[str]:
    """How the setting stands in its file, None where it does not. Raises Misconfigured."""
    return libvirtconf.get(setting.file, contents(setting.file) or b"", setting.name)


def asks_for_plugin() -> bool:
    """Whether lock_manager names the sanlock plugin: where that is not installed libvirt's daemon does not start."""
    return (now(settings()[-1]) or "").strip("'\"") == "sanlock"


def add_to(plan: Plan, restart: bool, accept_no_watchdog: bool) -> None:
    """Plan libvirt's side. `restart`: its daemon may be restarted where that is needed."""
    if not os.path.isdir(others.LIBVIRT):
        plan.left.append("libvirt is not installed here. Install it and run `vmguard setup` again.")
        return
    plugin = daemons.plugin() is not None
    if plugin:
        for setting in settings():
            _add_setting(plan, setting)
    else:
        _say_no_plugin(plan, accept_no_watchdog)
    hook_new = _add_hook(plan)
    running = daemons.find(daemons.LIBVIRT)
    if not running:
        plan.remarks.append("libvirt's daemon does not run now. It will see hook and settings when it starts.")
    for daemon in running:
        _add_daemon(plan, daemon, plugin, hook_new, restart)


def _add_setting(plan: Plan, setting: Setting) -> None:
    before, after = now(setting), libvirtconf.written(setting.value)
    if before == after:
        return

    def apply() -> None:
        data = contents(setting.file) or b""
        replace(setting.file, libvirtconf.change(setting.file, data, setting.name, setting.value))

    shown = "not set" if before is None else f"{setting.name} = {before}"
    plan.changes.append(Change(setting.what, setting.file, shown, f"{setting.name} = {after}", apply))


def _say_no_plugin(plan: Plan, accept_no_watchdog: bool) -> None:
    if asks_for_plugin():
        plan.left.append(
            f"libvirt's daemon does not start any more: lock_manager in {settings()[-1].file} names its sanlock plugin, which is"
            f" not installed. Install {daemons.plugin_package()}, or take that line out."
        )
        return
    plan.left.append(
        f"libvirt's sanlock plugin is not installed (package {daemons.plugin_package()}). Without it the leases stay"
        " with this host instead of each guest's QEMU. Better: install it and run `vmguard setup` again."
    )
    if not accept_no_watchdog and not _watchdog():
        plan.left.append(
            "Without the plugin and without a watchdog, a guest may go on writing when its leases are lost. Until one"
            " of the two is there, guests are refused. To run them all the same: `vmguard setup --accept-no-watchdog`."
        )


def _watchdog() -> bool:
    try:
        return bool(status.status().daemon.use_watchdog)
    except Exception:
        return False


def _add_hook(plan: Plan) -> bool:
    """Whether the hook is to be put there."""
    path = hookfile.target(daemons.libvirt_version())
    there = contents(path)
    if there is not None and not hookfile.is_ours(there):
        plan.left.append(
            f"{path} belongs to somebody else, and this libvirt knows only that one hook. Have it run"
            f" {hookfile.source()} with the same arguments and input, and end with its exit status."
        )
        return False
    if hookfile.installed(path):
        return False

    before = None if there is None else "another version, or not executable"
    what, after = "the hook that libvirt calls", "vmguard's, executable"
    plan.changes.append(Change(what, path, before, after, lambda: hookfile.put(path)))
    return True


def _add_daemon(plan: Plan, daemon: daemons.Daemon, plugin: bool, hook_new: bool, restart: bool) -> None:
    where = daemon.unit or f"process {daemon.pid}"
    lacks = _lacks(plan, daemon) if plugin else ""
    if lacks:
        if restart:
            plan.changes.append(
                Change(
                    f"libvirt's daemon {daemon.name}", where, f"without {lacks}",
                    "restarted, with the plugin and the hook (guests run on)", lambda: _restart(daemon),
                )  # fmt: skip
            )
            return
        command = f"systemctl restart {daemon.unit}" if daemon.unit else f"stop process {daemon.pid}, start it again"
        plan.left.append(f"{daemon.name} must be restarted to have {lacks} (guests run on): {command}")
    if hook_new or not has_seen_hook(daemon):
        change = Change(
            f"libvirt's daemon {daemon.name}", where, "has not looked for the hook yet", "told to look (SIGHUP)",
            lambda: tell(daemon),
        )  # fmt: skip
        plan.changes.append(change)


def _lacks(plan: Plan, daemon: daemons.Daemon) -> str:
    """What only a restart can give the daemon: it reads lock_manager and the plugin's settings when it starts."""
    loaded = host.libvirt_has_sanlock_plugin(daemon.pid)
    if loaded is False:
        return "the sanlock plugin"
    changes = any(change.where == _plugin_conf() for change in plan.changes)
    return "its sanlock plugin's settings" if loaded and (changes or not has_read_settings(daemon)) else ""


def has_read_settings(daemon: daemons.Daemon) -> bool:
    """Whether the daemon has read the plugin's settings as they are now: False where they were certainly changed since."""
    try:
        changed = os.stat(_plugin_conf()).st_ctime
    except OSError:
        return True
    return daemons.started_at(daemon) > changed - _BOOT


def _restart(daemon: daemons.Daemon) -> None:
    daemons.restart(daemon)
    if not daemons.gets_plugin(daemon.name):
        raise Misconfigured(
            daemon.name, "it was restarted and has not loaded libvirt's sanlock plugin",
            f"look into its log; `lock_manager` in {os.path.join(others.LIBVIRT, 'qemu.conf')} must be \"sanlock\"",
        )  # fmt: skip
    _note_seen(daemons.find((daemon.name,)))


def _seen_file() -> str:
    return os.path.join(paths.RUN, "hook-seen")


def has_seen_hook(daemon: daemons.Daemon) -> bool:
    """
    Whether the daemon has looked for hooks since the hook is there. It looks when it starts and when it is told to;
    what is in the hook it reads at every call.
    """
    there = _hook()
    if there is None:
        return False
    if daemons.started_at(daemon) > there.st_ctime + _BOOT:
        return True
    return _mark(daemon, there) in (contents(_seen_file()) or b"").decode("utf-8", "replace").splitlines()


def _hook() -> Optional[os.stat_result]:
    try:
        return os.stat(hookfile.target(daemons.libvirt_version()))
    except OSError:
        return None


def _mark(daemon: daemons.Daemon, hook: os.stat_result) -> str:
    """Of this very file: while it was away, or could not be run, the daemon may have looked again and have found none."""
    return f"{daemon.pid} {daemon.start} {hook.st_ctime_ns}"


def tell(daemon: daemons.Daemon) -> None:
    """Have the daemon look for hooks now, and remember that it has."""
    daemons.reload(daemon)
    _note_seen([daemon])


def _note_seen(daemons_told: List[daemons.Daemon]) -> None:
    there, running = _hook(), daemons.find(daemons.LIBVIRT)
    lines = [_mark(each, there) for each in running if there and (each in daemons_told or has_seen_hook(each))]
    replace(_seen_file(), ("\n".join(lines) + "\n").encode())


@contextmanager
def still_seen() -> Iterator[None]:
    """The daemons that have looked for the hook have done so still, though its file is another one afterwards."""
    before = [daemon for daemon in daemons.find(daemons.LIBVIRT) if has_seen_hook(daemon)]
    yield
    if before:
        _note_seen(before)


def take_back(plan: Plan, before: Previous, restart: bool) -> None:
    """Plan libvirt's side of a removal: the hook first, so that nobody asks the guard any more."""
    path = hookfile.target(daemons.libvirt_version())
    there = contents(path)
    if there is not None and hookfile.is_ours(there):
        plan.changes.append(Change("the hook that libvirt calls", path, "vmguard's", None, lambda: _take_hook(path)))
    # lock_manager first: alone it would make libvirt ask for leases of its own.
    for setting in reversed(settings()):
        if now(setting) == libvirtconf.written(setting.value) and setting.name in before.get(setting.file, {}):
            _restore(plan, setting, before[setting.file][setting.name])
    for daemon in daemons.find(daemons.LIBVIRT):
        _let_go(plan, daemon, restart)


def _take_hook(path: str) -> None:
    """Before 6.5 libvirt runs a hook that it once saw, there or not: it is told to look."""
    remove(path)
    try:
        os.rmdir(os.path.join(others.LIBVIRT, "hooks", "qemu.d"))
    except OSError:
        pass  # others have hooks there
    for daemon in daemons.find(daemons.LIBVIRT):
        daemons.reload(daemon)


def _restore(plan: Plan, setting: Setting, text: Optional[str]) -> None:
    def apply() -> None:
        data = contents(setting.file) or b""
        if text is None:
            replace(setting.file, libvirtconf.drop(setting.file, data, setting.name))
        else:
            replace(setting.file, libvirtconf.put(setting.file, data, setting.name, text))

    after = None if text is None else f"{setting.name} = {text}"
    before = f"{setting.name} = {now(setting)}"
    plan.changes.append(Change("libvirt's earlier setting", setting.file, before, after, apply))


def _let_go(plan: Plan, daemon: daemons.Daemon, restart: bool) -> None:
    where = daemon.unit or f"process {daemon.pid}"
    files = {setting.file for setting in settings()}
    if not host.libvirt_has_sanlock_plugin(daemon.pid) or not any(change.where in files for change in plan.changes):
        return
    if restart:
        after = "restarted, with its earlier settings (guests run on)"
        what = f"libvirt's daemon {daemon.name}"
        plan.changes.append(Change(what, where, "with the guard's settings", after, lambda: daemons.restart(daemon)))
    else:
        plan.left.append(f"{daemon.name} must be restarted to have its earlier settings (guests run on).")
