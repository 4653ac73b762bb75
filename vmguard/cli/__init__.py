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
import errno
import io
import os
import sys
import threading
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


# Those that only look. No signal interrupts a call to a sanlock that has stopped, or a look at storage that went away.
LOOKS = (status.run, check.run_check, check.run_explain, verify.run, identify.run, metrics.run, store.run)
PATIENCE = 30.0  # seconds

# Errors of writing, if they are of no file that has a name.
OF_OUTPUT = (errno.EPIPE, errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def main(arguments: Optional[List[str]] = None) -> int:
    """Run one command, and see that what it has printed arrives."""
    if sys.stdout is None:  # somebody has closed it
        sys.stdout = open(os.devnull, "w", encoding="utf-8")
    try:
        try:
            return _run(arguments)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        ended = OK  # the reader of our output had enough
    except OSError as error:
        print(f"vmguard: the output could not be written: {error.strerror}", file=sys.stderr)
        ended = UNKNOWN
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python would try once more when it ends
    return ended


def _run(arguments: Optional[List[str]]) -> int:
    """Errors that are meant become sentences; anything else is a bug: it is logged, and named."""
    options = parser().parse_args(arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names in letters that the terminal does not have
    late = threading.Timer(PATIENCE, _give_up)
    late.daemon = True
    if options.run in LOOKS:
        late.start()
    try:
        return int(options.run(options))
    except Error as error:
        sys.stdout.flush()  # what was said before comes before
        print(message(error), file=sys.stderr)
        if isinstance(error, (Misconfigured, BadRequest)) and not isinstance(error, NotYet):
            return WRONG
        return UNKNOWN if isinstance(error, CannotTell) else FOUND
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        if isinstance(error, OSError) and error.filename is None and error.errno in OF_OUTPUT:
            raise
        import traceback

        events.record("bug", traceback.format_exc(), command=sys.argv[1:])
        print(f"vmguard: an error in vmguard itself. {events.path()} has the trace.", file=sys.stderr)
        return UNKNOWN
    finally:
        late.cancel()


def _give_up() -> None:
    hangs = "sanlock, the store or the storage of a guest hangs"
    print(f"vmguard: there was no answer within {PATIENCE:.0f} seconds: {hangs}.", file=sys.stderr)
    print("do:  see which: `vmguard doctor`", file=sys.stderr, flush=True)
    os._exit(UNKNOWN)
