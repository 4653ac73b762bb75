# SPDX-License-Identifier: LGPL-2.1-or-later
"""`vmguard define FILE`: lint, then define through libvirt."""

import argparse
import os
import sys
from typing import Any

from vmguard import events
from vmguard.cli.lint import OK, status
from vmguard.errors import BadRequest
from vmguard.text import quoted

URI = "qemu:///system"


def add(commands: Any) -> None:
    """The subcommand."""
    define = commands.add_parser(
        "define",
        help="judge a definition, and define it through libvirt if nothing is wrong",
        description="Judge a definition as `vmguard lint` does, against all domains of the connection, and define it if"
        " nothing at the threshold is found.",
        epilog="exit status: 0 it is defined; 1 it is not, for what was found; 2 the command is wrong, or libvirt refuses;"
        " 3 it is not, since something could not be found out.",
    )
    define.add_argument("file", metavar="FILE", help="the definition; - for standard input")
    define.add_argument("--connect", metavar="URI", default=URI, help=f"the libvirt connection ({URI})")
    define.add_argument("--force", metavar="REASON", help="define it whatever is found; the reason is recorded")
    severities = ("error", "warning", "notice")
    define.add_argument(
        "--fail-on", choices=severities, default="error", help="the least severity that keeps it from being defined (error)"
    )
    define.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Raises BadRequest and Misconfigured."""
    from vmguard.lint import engine, registry, site, sources
    from vmguard.lint.formats import writer

    if options.force is not None and not options.force.strip():
        raise BadRequest("--force needs a reason", "vmguard define --force 'REASON' FILE")
    if options.file != "-" and not os.path.isfile(options.file):
        raise BadRequest(f"{options.file}: there is no such file")
    libvirt = sources.library()
    if libvirt is None:
        raise BadRequest("libvirt's Python module is not installed", "install python3-libvirt")
    try:
        connection = libvirt.open(options.connect)
    except libvirt.libvirtError as error:
        raise BadRequest(f"{options.connect}: {error.get_error_message()}") from error
    try:
        host, local = sources.whose(connection)
        ((origin, read),) = sources.files([options.file], host, local)
        try:
            xml = read()
        except OSError as error:
            raise BadRequest(f"{options.file}: {error.strerror}") from error
        if xml is None:
            raise BadRequest(f"{options.file}: it is no domain")
        try:
            text = xml.decode("utf-8")
        except UnicodeDecodeError as error:
            raise BadRequest(f"{options.file}: it is not in UTF-8", "iconv -t UTF-8, and without encoding=") from error
        # Read once: what is judged is what is defined.
        others = [(one._replace(target=False), how) for one, how in sources.connection(options.connect)]
        report = engine.run([(origin, lambda: xml), *others], site.here(False, inventory=True), registry.load())
        found = status(report.counted, options.fail_on)
        if report.counted or found != OK:
            writer("text").write(report, sys.stdout)
        name = next((guest.name for guest in report.guests if guest.target), "")
        if found != OK and options.force is None:
            print("It was not defined. To define it all the same: --force REASON", file=sys.stderr)
            return found
        if found != OK:
            rules = sorted({finding.rule for finding in report.counted})
            events.record("defined-by-force", options.force, domain=name, rules=rules, uri=options.connect)
        try:
            defined = connection.defineXML(text)
        except libvirt.libvirtError as error:
            raise BadRequest(f"libvirt does not define it: {error.get_error_message()}") from error
        print(f"{quoted(str(defined.name()))} is defined.")
        return OK
    finally:
        connection.close()
