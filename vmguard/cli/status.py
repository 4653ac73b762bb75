# SPDX-License-Identifier: LGPL-2.1-or-later
"""`vmguard status`: the hosts and their health, who holds what on which host since when."""

import argparse
import os
from typing import Any, Dict, List, NamedTuple, Tuple

from vmguard import host, instance, overrides, relied
from vmguard.agent import defining
from vmguard.claims import Mode
from vmguard.cli import _show
from vmguard.config import Config, load
from vmguard.errors import CannotTell, Error, Misconfigured
from vmguard.holders import everywhere
from vmguard.leases import client, lockspace, status
from vmguard.leases.store import Store
from vmguard.member import here
from vmguard.owning import is_known
from vmguard.report import message
from vmguard.setup import daemons, hookfile, libvirtside
from vmguard.text import moment, plain, typed


def add(commands: Any) -> None:
    """The subcommand."""
    status = commands.add_parser(
        "status",
        help="the hosts and their health, and who holds what since when",
        description="Show the members of the lockspace, the leases held anywhere, and what is wrong on this host."
        " Exit status 1 if this host is not guarded as it should be, 3 if that could not be found out.",
    )
    status.add_argument("--json", action="store_true", help="one JSON document")
    status.add_argument(
        "--all", action="store_true", help="shared leases too: read-only disks and what lies under disks"
    )
    status.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Exit status 0 guarded, 1 something is wrong here, 3 could not be found out."""
    report, unknown = report_of()
    if options.json:
        _show.as_json(report)
    else:
        _print(report, options.all)
    return 3 if unknown else 1 if report["warnings"] else 0


class Warned(NamedTuple):
    """One thing that is wrong on this host, in a line."""

    text: str
    critical: bool = False  # disks are written unguarded, or no guest can start


def report_of(ask: bool = True) -> Tuple[Dict[str, Any], List[Error]]:
    """
    All that is known of this host, and what could not be found out. Raises Misconfigured.

    ask: sanlock and the store, too, which may hang.
    """
    config = load()
    if config.store is None:
        raise Misconfigured("/etc/vmguard", "this host was not set up", "run `vmguard setup`")
    report: Dict[str, Any] = {"version": 1, "host": os.uname().nodename, "mode": str(config.mode.value)}
    report["store"] = {"path": config.store, "shared": config.shared, "host_id": config.host_id}
    unknown: List[Error] = []
    report["vanished"] = []
    try:
        if ask:
            _ask(Store.open(config.store, config.cluster), config, report)
    except CannotTell as error:
        unknown.append(error)
    records = instance.load_all()
    report["instances"] = [_instance(one) for one in records]
    report["guests"] = [
        {"name": qemu.name, "uuid": qemu.uuid, "pid": qemu.process.pid, "guarded": is_known(qemu, records)}
        for qemu in host.qemu_processes()
    ]
    report["agent"] = {"watching": daemons.agent_watches()}
    report["definitions"] = {name: [one._asdict() for one in found] for name, found in defining.known().items()}
    report["overrides"] = [one._asdict() for one in overrides.pending()]
    report["notes"] = _notes(report)
    warned = _warnings(report, config)
    report["warnings"] = [one.text for one in warned] + [message(error) for error in unknown]
    report["critical"] = [one.text for one in warned if one.critical]
    return report, unknown


def _ask(store: Store, config: Config, report: Dict[str, Any]) -> None:
    """What sanlock and the store say, as far as they come. Raises CannotTell kinds."""
    room = store.room()
    report["store"].update(kind=store.kind, room=room and {"taken": room[0], "places": room[1]})
    report["lockspace"] = {"name": store.lockspace, "state": lockspace.state(store, config.host_id or 0)}
    report["sanlock"] = client.daemon_facts()._asdict()
    report["lockspace"].update(_renewal(store))
    report["hosts"] = _hosts(store)
    report["held"] = _held(store, config)
    report["vanished"] = [f"{one.text}. {relied.REMEDY}" for one in relied.vanished(config)]


def _renewal(store: Store) -> Dict[str, Any]:
    """How long ago our entry in the lockspace was renewed, in seconds; after 8 io_timeouts our leases are lost."""
    now = status.status()
    for space in now.spaces:
        if space.name == store.lockspace and space.renewed:
            age = int(now.daemon.settings.get("monotime", space.renewed)) - space.renewed
            return {"renewed_ago": max(0, age), "io_timeout": space.io_timeout, "renewal_result": space.renewal_result}
    return {}


def _hosts(store: Store) -> List[Dict[str, Any]]:
    return [
        {"host_id": one.host_id, "name": one.host, "state": one.state, "generation": one.generation}
        for one in lockspace.members(store)
    ]


def _held(store: Store, config: Config) -> List[Dict[str, Any]]:
    """Every lease that a host holds, by the notes that match it."""
    found = []
    states = here(config).states
    for identity, holder in everywhere(store, states):
        found.append(
            {
                "identity": identity,
                "mode": "shared" if holder.shared else Mode.EXCLUSIVE.value,
                "host": holder.host,
                "host_id": holder.host_id,
                "domain": holder.domain,
                "uuid": holder.uuid,
                "path": holder.path,
                "since": holder.since,
                "alive": holder.alive,
            }
        )
    return found


def _instance(one: instance.Instance) -> Dict[str, Any]:
    return {
        "domain": one.name,
        "uuid": one.uuid,
        "state": one.state,
        "owner": one.owner,
        "pid": one.qemu.pid if one.qemu else None,
        "since": one.since,
        "leases": sum(not want.missing for want in one.wants),
        "without_lease": [want.claim.path for want in one.wants if want.missing],
        "contested": [want.claim.path for want in one.wants if want.contested],
        "note": one.note,
        "stopped_by_join": one.frozen,
    }


def _warnings(report: Dict[str, Any], config: Config) -> List[Warned]:
    found = []
    if config.mode.value != "enforce":
        found.append(Warned(f"mode = {config.mode.value}: nothing is refused on this host"))
    if about_membership(report):
        found.append(Warned(f"{about_membership(report)}. Run `vmguard join`", critical=True))
    room = report["store"].get("room")
    if room and room["taken"] * 10 >= room["places"] * 9:
        left = room["places"] - room["taken"]
        text = f"the lease store has room for {left} more storage objects. Make the device larger (`lvextend`)"
        found.append(Warned(text))
    vanished = [Warned(text, critical=True) for text in report["vanished"]]
    return [*found, *_hook_warnings(), *vanished, *about_guests(report)]


def about_membership(report: Dict[str, Any]) -> str:
    """What it means that this host is no member; "" where it is one, or that is not known."""
    if report.get("lockspace", {}).get("state") in (None, "joined"):
        return ""
    words = "this host is not a member of the lockspace: no guest can start"
    alive = {one["uuid"] for one in report["guests"]}
    names = ", ".join(plain(one["domain"]) for one in report["instances"] if one["uuid"] in alive)
    return f"{words}, and without their leases run: {names}" if names else words


def about_guests(report: Dict[str, Any]) -> List[Warned]:
    """What is wrong with guests of this host."""
    found = []

    def shown(names: List[str]) -> str:
        return ", ".join(map(plain, names))

    for one in report["instances"]:
        if one["contested"]:
            which = f"`vmguard audit --domain {typed(one['domain'])}` says who"
            text = f"{plain(one['domain'])} writes what others have: {shown(one['contested'])}. {which}"
            found.append(Warned(text, critical=True))
        elif one["without_lease"]:
            why = one["note"] or "taken by somebody else"
            text = f"{plain(one['domain'])} runs without leases for {shown(one['without_lease'])} ({why})."
            found.append(Warned(f"{text} `vmguard explain {typed(one['domain'])}` says who has them"))
        if one["stopped_by_join"]:
            text = f"{plain(one['domain'])} is stopped until its leases are certain. Run `vmguard join`"
            found.append(Warned(text, critical=True))
    for one in report["guests"]:
        if not one["guarded"]:
            which = plain(one["name"]) or f"a QEMU (pid {one['pid']})"
            text = f"{which} runs without any lease: it was started without the guard, or before it."
            found.append(Warned(f"{text} vmguardd takes its leases, or `vmguard setup`", critical=True))
    return found


def _notes(report: Dict[str, Any]) -> List[str]:
    """What is worth knowing and is no fault of this host's set-up: Debian 12 comes so."""
    found = []
    if not report.get("sanlock", {}).get("use_watchdog", True):
        found.append(
            "sanlock runs without a watchdog (-w 0): if its daemon dies, guests run on without their leases."
            " See WATCHDOG in vmguard(8)"
        )
        names = ", ".join(plain(one["domain"]) for one in report["instances"] if one["owner"] == "host" and one["pid"])
        if names:
            found.append(
                f"the leases of these guests are this host's, and sanlock cannot end them when those are lost: {names}."
                " Start them again, or migrate them; see WATCHDOG in vmguard(8)"
            )
    if not report["agent"]["watching"]:
        found.append(
            "vmguardd does not run: what is plugged into running guests is not claimed"
            " (systemctl enable --now vmguardd)"
        )
    return found


def _hook_warnings() -> List[Warned]:
    """libvirt passes over a hook that is missing or not executable, without a word: then nothing is guarded."""
    path = hookfile.target(daemons.libvirt_version())
    try:
        if not hookfile.installed(path):
            return [Warned(f"the hook {path} is missing, not executable or another version: run `vmguard setup`", True)]
    except (Error, OSError) as error:
        return [Warned(f"the hook {path} cannot be looked at ({error})", True)]
    unaware = [daemon.name for daemon in daemons.find(daemons.LIBVIRT) if not libvirtside.has_seen_hook(daemon)]
    return [Warned(f"{name} has not been told of the hook: run `vmguard setup`", True) for name in unaware]


def _print(report: Dict[str, Any], everything: bool) -> None:
    print(f"host {report['host']}, host id {report['store']['host_id']}, mode {report['mode']}")
    print(f"store {report['store']['path']} ({'shared' if report['store']['shared'] else 'this host only'})")
    if report["store"].get("room"):
        print("leases of {taken} storage objects, room for {places}".format(**report["store"]["room"]))
    if "hosts" in report:
        rows = [(str(one["host_id"]), one["name"] or "?", one["state"]) for one in report["hosts"]]
        _show.table("hosts", ("id", "name", "state"), rows)
    held = [
        (
            one["domain"] or "?",
            one["host"] or str(one["host_id"]),
            one["path"] or one["identity"],
            one["mode"],
            moment(one["since"]) if one["since"] else "?",
        )
        for one in report.get("held", [])
        if everything or one["mode"] == Mode.EXCLUSIVE.value
    ]
    if "held" in report:  # else nobody knows, and a table without lines would say that nothing is held
        _show.table("held", ("domain", "host", "what", "mode", "since"), sorted(held))
    for name, found in report["definitions"].items():
        for one in found:
            print(f"definition: {plain(name)}: {plain(defining.words_of(defining.Wrong(**one)))}")
    for note in report["notes"]:
        print(f"note: {note}")
    for warning in report["warnings"]:
        print(f"warning: {warning}")
