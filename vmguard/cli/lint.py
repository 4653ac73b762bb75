# SPDX-License-Identifier: LGPL-2.1-or-later
"""`vmguard lint` and `vmguard rules`: what is dangerous about the storage of definitions, before anything starts."""

import argparse
import os
import sys
from typing import Any, List, Optional, Sequence

from vmguard.cli import _show
from vmguard.errors import BadRequest

OK, FOUND, UNKNOWN = 0, 1, 3

FAIL_ON = ("error", "warning", "notice", "never")
FORMATS = ("text", "json", "sarif", "junit", "github")

# Fewer definitions than this are done before anybody would look.
_LONG = 300


def add(commands: Any) -> None:
    """The two subcommands."""
    lint = commands.add_parser(
        "lint",
        help="what is dangerous about the storage of domain definitions",
        description="Read domain definitions and say what is dangerous about their storage. Where files are given, they"
        " are judged, and all else is what they are compared with; else everything is judged.",
        epilog="exit status: 0 nothing at the threshold was found; 1 it was; 2 the command or the configuration is"
        " wrong; 3 something could not be read or found out. See vmguard-lint(1).",
    )
    lint.add_argument("files", metavar="FILE|FOLDER", nargs="*", help="definitions; - for standard input")
    lint.add_argument("--all", action="store_true", help="every domain of this host")
    lint.add_argument(
        "--connect", metavar="URI", action="append", default=[], help="every domain of a libvirt connection"
    )
    lint.add_argument("--inventory", metavar="FOLDER", action="append", default=[], help="definitions of other hosts")
    lint.add_argument(
        "--offline", action="store_true", help="the definitions are not this host's: look at nothing of it"
    )
    lint.add_argument("--rules", metavar="LIST", default="", help="only these rules: VMG101,VMG4,cache-unsafe")
    lint.add_argument("--ignore", metavar="LIST", default="", help="not these rules")
    lint.add_argument("--format", choices=FORMATS, default="text", help="of the report (text)")
    lint.add_argument("--output", metavar="FILE", help="write the report there")
    lint.add_argument(
        "--fail-on", choices=FAIL_ON, default="error", help="the least severity for exit status 1 (error)"
    )
    lint.add_argument("--validate", action="store_true", help="check against libvirt's schema, too")
    lint.add_argument("--watch", action="store_true", help="go on, and judge each definition when it changes")
    lint.add_argument("--jobs", metavar="N", type=int, default=0, help="so many processes (as many as processors)")
    lint.set_defaults(run=run)
    rules = commands.add_parser("rules", help="the rules of lint", description="List the rules of vmguard lint.")
    rules.add_argument("--json", action="store_true", help="one JSON document")
    rules.set_defaults(run=run_rules)


def run(options: argparse.Namespace) -> int:
    """Raises BadRequest and Misconfigured."""
    from vmguard.lint import engine, formats, registry, site

    modules = registry.load(options.rules)
    for code in registry.load(options.ignore) if options.ignore else ():
        modules.pop(code, None)
    if options.watch:
        from vmguard.lint import watch
        from vmguard.lint.sources import DEFINED

        # Of this host the files are watched: libvirt writes them whoever asked for it. Changes come by whole paths.
        files = [*map(os.path.abspath, options.files), *([DEFINED] if options.all else [])]
        found = gather(files, False, options.connect, options.inventory, options.offline, empty=True)
        return watch.run(found, files, options.connect, modules, options.format, options.offline, sys.stdout)
    sources = gather(options.files, options.all, options.connect, options.inventory, options.offline)
    here = site.here(
        options.offline, inventory=len(sources) > 1 or bool(options.all or options.connect or options.inventory)
    )
    if options.validate:
        from vmguard.lint.validation import Schema

        here.schema = Schema.load()
    report = engine.run(sources, here, modules, progress(), options.jobs)
    if options.output:
        try:
            with open(options.output, "w", encoding="utf-8", errors="surrogateescape") as file:
                formats.writer(options.format).write(report, file)
        except OSError as error:
            raise BadRequest(f"{options.output}: {error.strerror}") from error
    else:
        formats.writer(options.format).write(report, sys.stdout)
    return status(report.counted, options.fail_on)


def gather(
    files: Sequence[str],
    all_: bool,
    connections: Sequence[str],
    inventories: Sequence[str],
    offline: bool,
    empty: bool = False,
) -> "List[Any]":
    """
    The definitions that the options name; those that are only compared with say so in their origin.

    empty: a folder without definitions will do.
    Raises BadRequest.
    """
    from vmguard.lint import sources

    if not (files or all_ or connections or inventories):
        raise BadRequest("nothing to judge", "vmguard lint FILE..., or --all for every domain of this host")
    host = "" if offline else os.uname().nodename
    found = list(sources.files(files, host, local=not offline, empty=empty))
    rest = []
    if all_:
        rest += sources.everything()
    for uri in connections:
        rest += sources.connection(uri)
    named = {os.path.realpath(origin.source): number for number, (origin, _) in enumerate(found)}
    for folder in inventories:
        for origin, read in sources.folder(folder, empty):
            number = named.get(os.path.realpath(origin.source))
            if number is None:
                rest.append((origin, read))
            elif origin.host:
                # It is in the inventory itself, which knows whose it is.
                mine, how = found[number]
                found[number] = (
                    mine._replace(host=origin.host, local=not offline and sources.is_here(origin.host)),
                    how,
                )
    if offline:
        rest = [(origin._replace(local=False), read) for origin, read in rest]
    if found:
        rest = [(origin._replace(target=False), read) for origin, read in rest]
    return [*found, *rest]


def status(findings: Sequence[Any], fail_on: str) -> int:
    """The exit status: what was found counts before what could not be found out."""
    from vmguard.lint.findings import Severity

    least = Severity(fail_on).rank if fail_on != "never" else -1
    if any(not finding.unread and finding.severity.rank <= least for finding in findings):
        return FOUND
    return UNKNOWN if any(finding.unread for finding in findings) else OK


def progress() -> "Optional[Any]":
    """What tells a terminal how far a long run is; None where there is none."""
    if not sys.stderr.isatty():
        return None

    def show(done: int, of: int) -> None:
        if of >= _LONG and (done % 50 == 0 or done == of):
            sys.stderr.write(f"\r{done} of {of} definitions" if done < of else "\r" + " " * 40 + "\r")
            sys.stderr.flush()

    return show


def run_rules(options: argparse.Namespace) -> int:
    """List the rules."""
    from vmguard.lint import registry

    rules = [registry.rule(one) for one in registry.known()]
    if options.json:
        _show.as_json({"version": 1, "rules": [rule._asdict() for rule in rules]})
        return OK
    rows = [
        [rule.code, rule.slug, rule.severity.value, rule.needs.value, "yes" if rule.deny else "", rule.title]
        for rule in rules
    ]
    _show.table("rules", ["code", "name", "severity", "needs", "refused", "what it finds"], rows)
    return OK


def explain(name: str) -> Optional[str]:
    """The page of a rule, by its code or name; None if there is no such rule. Imports that rule alone."""
    from vmguard.lint import pages, registry

    found = registry.find(name)
    return pages.text(found) if found is not None else None
