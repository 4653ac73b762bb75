# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The command `vmguard`: one module a subcommand, each with `add(subparsers)` and a function that returns the exit status.

Exit status of all of them:

    0  done, or nothing found
    1  found something: a start would be refused; something is left to be mended
    2  the command or the configuration is wrong
    3  it could not be found out
"""

import argparse
import io
import sys
from typing import List, Optional

from vmguard import __version__, events
from vmguard.cli import (
    audit,
    check,
    define,
    doctor,
    gc,
    identify,
    lint,
    membership,
    metrics,
    override,
    report,
    setup,
    status,
    store,
    verify,
)
from vmguard.errors import BadRequest, CannotTell, Error, Misconfigured, NotYet
from vmguard.report import message

OK, FOUND, WRONG, UNKNOWN = 0, 1, 2, 3


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    top = argparse.ArgumentParser(
        prog="vmguard",
        description="A guard of virtual machine disks: no disk is started twice, on any host, by any name.",
        epilog="exit status: 0 done; 1 a start would be refused, or something is left to mend; 2 the command or the"
        " configuration is wrong; 3 it could not be found out. See vmguard(8).",
    )
    top.add_argument("--version", action="version", version=f"vmguard {__version__}")
    commands = top.add_subparsers(metavar="COMMAND", required=True)
    first = (setup, doctor, status, check, verify, audit, metrics, lint)
    for module in (*first, define, report, identify, membership, override, store, gc):
        module.add(commands)
    return top


def main(arguments: Optional[List[str]] = None) -> int:
    """Run one command. Errors that are meant become sentences; anything else is a bug: it is logged, and named."""
    options = parser().parse_args(arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names in letters that the terminal does not have
    try:
        return int(options.run(options))
    except BrokenPipeError:
        sys.stderr.close()  # the reader of our output had enough
        return OK
    except Error as error:
        print(message(error), file=sys.stderr)
        if isinstance(error, (Misconfigured, BadRequest)) and not isinstance(error, NotYet):
            return WRONG
        return UNKNOWN if isinstance(error, CannotTell) else FOUND
    except KeyboardInterrupt:
        return 130
    except Exception:
        import traceback

        events.record("bug", traceback.format_exc(), command=sys.argv[1:])
        print(f"vmguard: an error in vmguard itself. {events.path()} has the trace.", file=sys.stderr)
        return UNKNOWN
