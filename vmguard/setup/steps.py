# SPDX-License-Identifier: LGPL-2.1-or-later
"""
What is to be done on this host: wishes and the state of things in, a plan out.

The order matters. sanlock, store and host id come first: what may fail there has changed nothing for the guests yet.
Then the configuration and the membership: from now on guests are guarded where the hook is. Then libvirt: first that it
takes no leases of its own (qemu-sanlock.conf), then the plugin (qemu.conf), and its daemon last.
"""

import os
from typing import Callable, NamedTuple, Optional

from vmguard import config, host, membership, paths
from vmguard.config import Config, Guarding, WithoutWatchdog
from vmguard.errors import BadRequest, CannotTell, Misconfigured, SanlockDown
from vmguard.leases import lockspace, status
from vmguard.leases._cluster import Elsewhere
from vmguard.leases.store import Store, exists, is_device
from vmguard.report import brief
from vmguard.setup import adoption, daemons, libvirtside, others, place, record
from vmguard.setup.libvirtconf import sanlock_add, sanlock_get
from vmguard.setup.plan import Change, Plan, contents, replace
from vmguard.setup.record import Identity

JOIN_UNIT = "vmguard-join.service"
AGENT_UNIT = "vmguardd.service"
SANLOCK_UNIT = "sanlock.service"


class Wishes(NamedTuple):
    """What the administrator asked for; None: as it is now, or the default."""

    store: Optional[str] = None
    host_id: Optional[int] = None
    io_timeout: Optional[int] = None
    single_host: Optional[bool] = None
    shared: Optional[bool] = None
    accept_no_watchdog: Optional[bool] = None
    mode: Optional[Guarding] = None
    restart: bool = True


class _Steps:
    """The plan in the making. What a change finds out when it is made, later ones need: the store, the host id."""

    def __init__(self, wishes: Wishes) -> None:
        self.wishes = wishes
        self.plan = Plan([], [], [])
        self.recorded = config.recorded_host()
        self.now = self._known()
        self.path = self._store_path()
        self.device = place.device(self.path) if is_device(self.path) else None
        self.mount = None if self.device else place.look(self.path, others.MOUNTINFO, others.FSTAB)
        self.same_store = self.now.store == self.path
        self.store = self._existing_store()
        self.host_id: Optional[int] = self._own_host_id()
        self.settled = self.store is not None and self.host_id is not None

    def add(self, what: str, where: str, before: Optional[str], after: Optional[str], apply: "_Apply") -> None:
        self.plan.changes.append(Change(what, where, before, after, apply))

    def _known(self) -> Config:
        """The configuration in force. Where setup's own part is damaged, the record takes its place."""
        foreign = config.read(without=record.conf_file())
        try:
            known = config.read()
        except Misconfigured as e:
            self.plan.remarks.append(f"{e.where}: {e.why}. It is written anew.")
            known = foreign
        if known.store is None and self.recorded is not None:
            old = self.recorded
            known = known._replace(store=old.store, cluster=old.cluster, host_id=old.host_id)
        return known

    def _store_path(self) -> str:
        path = os.path.abspath(self.wishes.store or self.now.store or os.path.join(paths.STATE, "store"))
        if not config.store_path_fits(path):
            raise BadRequest(
                f"sanlock cannot keep leases below {ascii(path)}",
                "name a directory or device whose path is ASCII without blanks, colons and backslashes",
            )
        return path

    def _existing_store(self) -> Optional[Store]:
        if not exists(self.path):
            if self.same_store and self.now.cluster is not None:
                # Never make a new one in its place: other hosts may hold leases in the old one.
                raise Misconfigured(
                    self.path,
                    f"this host belongs to the store with the id {self.now.cluster}, and there is none",
                    "mount its filesystem, or name the right device; if the store is lost for good:"
                    " `vmguard setup --remove` on every host first",
                )
            return None
        return Store.open(self.path, self.now.cluster if self.same_store else None)

    def _others_see_it(self) -> bool:
        return self.device.others_see_it if self.device else place.seen_by_others(self.mount)

    def _lies_on(self) -> str:
        if self.device:
            return f"a block device ({self.device.what})"
        return f"{self.mount.kind}, mounted on {self.mount.point}" if self.mount else "an unknown filesystem"

    def _own_host_id(self) -> Optional[int]:
        if self.store is None or not self.same_store:
            return None
        if self.wishes.host_id not in (None, self.now.host_id):
            return None
        mine = self.now.host_id
        if mine is None:
            return None
        return mine if self._machine_of(mine) == host.key().machine else None

    def wanted(self) -> Config:
        """The configuration as it shall be, with the store and host id as far as they are known."""
        wishes, now = self.wishes, self.now
        shared = wishes.shared
        if shared is None:
            # What does not show of a store, and was said, is true of the one that took its place: other hosts went there.
            shared = now.shared if self.same_store else self._others_see_it() or (now.shared and self._follows())
        accept = wishes.accept_no_watchdog
        watchdog = now.without_watchdog
        if accept is not None:
            watchdog = WithoutWatchdog.ACCEPT if accept else WithoutWatchdog.REFUSE
        return now._replace(
            store=self.path,
            cluster=self.store.cluster if self.store else None,
            host_id=self.host_id,
            mode=wishes.mode or now.mode,
            shared=shared,
            single_host=now.single_host if wishes.single_host is None else wishes.single_host,
            io_timeout=self.io_timeout(),
            without_watchdog=watchdog,
        )

    def io_timeout(self) -> int:
        """An existing store has its own: all hosts must use the same."""
        if self.store is None:
            return self.wishes.io_timeout or config.Config().io_timeout
        there = self.store.io_timeout
        if self.wishes.io_timeout not in (None, there):
            raise BadRequest(
                f"the store {self.path} was made with an io_timeout of {there} s, and all its hosts use that",
                "leave --io-timeout out",
            )
        return there

    def identity(self) -> Identity:
        assert self.store is not None and self.host_id is not None
        return Identity(self.path, self.store.cluster, self.host_id)

    # -- the steps, in their order -------------------------------------------------------------------------------------

    def sanlock(self) -> None:
        name = host.key().machine
        data = contents(others.SANLOCK_CONF)
        wanted = sanlock_get(data or b"", "our_host_name")
        before = None
        if wanted is not None and self._is_another(wanted):
            before, wanted = f"our_host_name = {wanted}, which is another host of this store", None
        if wanted is None:
            after = f"our_host_name = {name}"
            new = sanlock_add(data or b"", "our_host_name", name)
            self.add(
                "sanlock knows this host again after a crash", others.SANLOCK_CONF, before, after,
                lambda: replace(others.SANLOCK_CONF, new),
            )  # fmt: skip
        try:
            now = status.status()
        except SanlockDown:
            if not daemons.systemd_runs():
                raise Misconfigured(
                    "sanlock", "its daemon does not run, and there is no systemd to start it",
                    "start it (`sanlock daemon`; with -w 0 if there is no watchdog), and run setup again",
                ) from None  # fmt: skip
            self.add("sanlock's daemon", SANLOCK_UNIT, "not running", "running", _start_sanlock)
            return
        if now.daemon.host_name not in (wanted, name) and not now.spaces:
            running = daemons.find(("sanlock",))
            # `-e` on its command line goes before the file: then somebody has named this host already.
            if running and not daemons.has_argument(running[0], "-e"):
                self.add(
                    "sanlock's daemon", running[0].unit or f"process {running[0].pid}",
                    f"calls this host {now.daemon.host_name}", "restarted, with the name above (it holds nothing)",
                    lambda: _restart_sanlock(running[0]),
                )  # fmt: skip
        if not now.daemon.use_watchdog:
            self.plan.remarks.append(
                "sanlock runs without a watchdog. If sanlock itself dies on this host, nothing stops its guests before"
                " others may take their disks. Better: start wdmd, and sanlock without `-w 0` (/etc/default/sanlock)."
            )

    def _is_another(self, name: str) -> bool:
        """Whether sanlock's name for this host is that of another one: a clone has what setup wrote on its original."""
        known = self.store.hosts_known() if self.store is not None else ()
        return name != host.key().machine and any(one.machine == name for one in known)

    def the_store(self) -> None:
        wanted = self.wanted()
        kind = self._lies_on()
        others_see = "other hosts see it" if wanted.shared else "this host alone sees it"
        if self.store is None:
            after = f"new, on {kind}; {others_see}; io_timeout {wanted.io_timeout} s"
            self.add("the store of leases", self.path, None, after, self._make_store)
        elif not self.same_store:
            self.plan.remarks.append(f"A store is there already, made by {self.store.by or 'an unknown host'}.")
        if wanted.shared and not self._others_see_it():
            why = "Other hosts do not reach that" if self.device else "Several hosts cannot have that mounted at once"
            self.plan.remarks.append(
                f"{self.path} is on {kind}. {why} as far as vmguard knows; it takes your word that other hosts see it."
            )
        if self.device and self.device.remark:
            self.plan.remarks.append(self.device.remark)
        if not wanted.shared and not wanted.single_host:
            self.plan.remarks.append(
                f"The store is on {kind}: this host alone sees it, as far as vmguard knows{self._entered()}. It guards this host"
                " against itself. Disks that other hosts can reach too are refused; for a cluster, give --store a directory or"
                " volume that all hosts share (--shared yes if this is one), or --single-host if there are no others."
            )

    def _entered(self) -> str:
        """Who has entered the store besides this host, as a clause: it is theirs, or a copy of theirs."""
        known = self.store.hosts_known() if self.store is not None else ()
        names = ", ".join(one.host or "?" for one in known if one.machine != host.key().machine)
        return f", though others have entered it ({names})" if names else ""

    def _make_store(self) -> None:
        if self.device:
            place.see_unused(self.device)
        if os.path.dirname(self.path) == paths.STATE:
            os.makedirs(paths.STATE, mode=0o755, exist_ok=True)
        self.store = Store.create(self.path, self.io_timeout())

    def membership(self) -> None:
        if self.host_id is None:
            number = self.wishes.host_id or self._host_id_of_before()
            after = f"host id {number}" if number else "the first host id that is free"
            self.add("this host's place in the store", self.path, None, after, lambda: self._claim(number))
        moved = self.now.store is not None and not self.same_store
        if moved:
            self._see_nobody_is_left_behind()
        renumbered = self.same_store and self.now.host_id is not None and self.host_id is None
        if (moved or renumbered) and self.now.cluster is not None:
            what = f"the store {self.now.store}" if moved else f"host id {self.now.host_id}"
            self.add("leave the old place", what, "member", "left", lambda: self._leave(renumbered))
        self._configuration()
        if not (self.settled and self._joined()):
            seconds = 2 * self.wanted().io_timeout + 1
            self.add(
                "join the other hosts", self.path, "not a member", f"member (takes some {seconds} s)",
                lambda: _ignore(membership.join_host()),
            )  # fmt: skip

    def _host_id_of_before(self) -> Optional[int]:
        """The one that this host has had, unless it is another machine's by now: a clone is configured like its original."""
        mine = self.now.host_id if self.same_store else None
        return mine if mine is not None and self._machine_of(mine) in (None, host.key().machine) else None

    def _machine_of(self, host_id: int) -> Optional[str]:
        owner = self.store.host_record(host_id) if self.store is not None else None
        return owner.machine if owner is not None else None

    def _see_nobody_is_left_behind(self) -> None:
        """
        Raises BadRequest where other hosts belong to the store that this one has now, or to the one that took its place:
        hosts with two stores do not see each other's guests.
        """
        assert self.now.store is not None
        out = "to take this host out: `vmguard setup --remove` first"
        try:
            old = Store.look(self.now.store)
            others = [one for one in old.hosts_known() if one.machine != host.key().machine]
        except CannotTell as error:
            raise Misconfigured(
                self.now.store,
                f"this host belongs to it, and cannot leave it: {brief(error)}",
                "mount or mend it; if it is lost for good: `vmguard setup --remove` on every host first",
            ) from error
        if self.now.cluster not in (None, old.cluster):
            return
        moved = self._where_it_moved(old.facts.moved)
        if moved is not None:
            raise BadRequest(
                f"the cluster of this host has moved to the store {moved.path}",
                f"`vmguard setup --store {moved.path}`; {out}",
            )
        if others and old.facts.moved is None:
            names = ", ".join(one.host or "?" for one in others)
            raise BadRequest(
                f"this host belongs to the store {self.now.store}, as do others: {names}",
                f"to move all of them: `vmguard store convert {self.path}`; {out}",
            )

    def _follows(self) -> bool:
        """Whether the store that is wanted is the one to which that of this host was moved."""
        try:
            moved = Store.look(self.now.store).facts.moved if self.now.store is not None else None
        except CannotTell:
            return False
        return moved is not None and self.store is not None and self._where_it_moved(moved) is None

    def _where_it_moved(self, moved: Optional[Elsewhere]) -> Optional[Elsewhere]:
        """The store in which the cluster is now, as far as that can be followed; None: it is in the one that is wanted."""
        while moved is not None and (self.store is None or self.store.cluster != moved.cluster):
            try:
                next_one = Store.look(moved.path)
            except CannotTell:
                return moved
            if next_one.cluster != moved.cluster or next_one.facts.moved is None:
                return moved
            moved = next_one.facts.moved
        return None

    def _claim(self, number: Optional[int]) -> None:
        assert self.store is not None
        self.host_id = self.store.claim_host_id(number, host.key())

    def _leave(self, renumbered: bool) -> None:
        membership.leave_host()
        before = self.now.host_id
        if not renumbered or before is None or before == self.host_id:
            return
        # The record may be the original's of which this host is a clone, or gone already: a setup died after this step.
        if self.store is not None and self._machine_of(before) == host.key().machine:
            self.store.release_host_id(before, host.key())

    def _joined(self) -> bool:
        assert self.store is not None and self.host_id is not None
        try:
            return bool(lockspace.state(self.store, self.host_id) == "joined")
        except SanlockDown:
            return False

    def _configuration(self) -> None:
        path, before = record.conf_file(), contents(record.conf_file())
        shown = record.conf_text(self.wanted()) if self.settled else _with_gaps(self.wanted())
        if not self.settled or before != shown.encode():
            self.add(
                "vmguard's configuration", path, _text(before), shown,
                lambda: replace(path, record.conf_text(self.wanted()).encode()),
            )  # fmt: skip
        known = record.previous(self.recorded)
        wanted = libvirtside.previous(known)
        if not self.settled or self.recorded is None or (self.identity(), wanted) != (_identity(self.recorded), known):
            after = "set up; earlier settings of libvirt kept for --remove"
            self.add(
                "the record of this host's set-up", config.host_file(), "there" if self.recorded else None, after,
                lambda: record.write(self.identity(), wanted),
            )  # fmt: skip

    def boot(self) -> None:
        if not daemons.systemd_runs():
            self.plan.left.append(
                "Have `vmguard join` run at boot, after sanlock and before libvirt, and `vmguardd` for as long as guests do:"
                " there is no systemd here to do it."
            )
            return
        if not daemons.unit_is("enabled", JOIN_UNIT):
            self.add("join at boot, leave at shutdown", JOIN_UNIT, "not enabled", "enabled", _start_join)
        elif daemons.unit_is("active", SANLOCK_UNIT) and not daemons.unit_is("active", JOIN_UNIT):
            self.add("leave at shutdown", JOIN_UNIT, "not active", "active", _start_join)
        if not (daemons.unit_is("enabled", AGENT_UNIT) and daemons.unit_is("active", AGENT_UNIT)):
            self.add("watch over running guests", AGENT_UNIT, "does not run", "runs", _start_agent)


def plan(wishes: Wishes) -> Plan:
    """
    What is to be done. Looks only.

    Raises BadRequest for wishes that cannot be, Misconfigured where the host is in a state that setup must not touch,
    and what opening the store raises.
    """
    steps = _Steps(wishes)
    steps.sanlock()
    steps.the_store()
    steps.membership()
    accept = steps.wanted().without_watchdog is WithoutWatchdog.ACCEPT
    libvirtside.add_to(steps.plan, wishes.restart, accept)
    adoption.add_to(steps.plan)
    steps.boot()
    return steps.plan


_Apply = Callable[[], None]


def _start_sanlock() -> None:
    daemons.start_unit(SANLOCK_UNIT)
    daemons.enable_unit(SANLOCK_UNIT)


def _start_join() -> None:
    """
    Its stop is what leaves the store: a shutdown in which nobody does waits for sanlock, and cannot unmount what the store lies
    on. It is bound to sanlock's unit: one that somebody runs by hand is left alone.
    """
    daemons.enable_unit(JOIN_UNIT)
    if daemons.unit_is("active", SANLOCK_UNIT):
        daemons.start_unit(JOIN_UNIT)


def _start_agent() -> None:
    """After host.json is there: its unit asks for that."""
    daemons.enable_unit(AGENT_UNIT)
    daemons.start_unit(AGENT_UNIT)


def _restart_sanlock(daemon: daemons.Daemon) -> None:
    """Its process is there some milliseconds before its socket is."""
    daemons.restart(daemon)
    if not daemons.until(_sanlock_answers, daemons.START):
        raise Misconfigured("sanlock", "it was restarted, and does not answer", "see /var/log/sanlock.log")


def _sanlock_answers() -> bool:
    try:
        status.status()
    except SanlockDown:
        return False
    return True


def _ignore(_: object) -> None:
    """What a membership call did is in the log of events."""


def _text(data: Optional[bytes]) -> Optional[str]:
    return None if data is None else data.decode("utf-8", "replace")


def _identity(recorded: config.Host) -> Identity:
    return Identity(recorded.store, recorded.cluster, recorded.host_id)


def _with_gaps(wanted: Config) -> str:
    """The configuration for showing, where store or host id do not exist yet."""
    text = record.conf_text(wanted)
    text = text.replace("cluster = None", "cluster = (of the new store)")
    return text.replace("host_id = None", "host_id = (see above)")
