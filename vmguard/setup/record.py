# SPDX-License-Identifier: LGPL-2.1-or-later
"""
host.json: that this host was set up, as whom, and what stood in the files of others before.

Written before the files of others are changed and removed after they are restored: at no moment is a setting changed
whose earlier value is not on disk.
"""

import json
import os
from typing import Dict, NamedTuple, Optional

from vmguard import config, paths
from vmguard.errors import Misconfigured
from vmguard.setup.plan import replace

# By file, by setting: the text that stood there, None where it was not set.
Previous = Dict[str, Dict[str, Optional[str]]]

CONF_NAME = "10-setup.conf"


class Identity(NamedTuple):
    """Who this host is in which store."""

    store: str
    cluster: str
    host_id: int


def conf_file() -> str:
    """The part of the configuration that is setup's own."""
    return os.path.join(paths.CONFIG_DIR, CONF_NAME)


def previous(host: Optional[config.Host]) -> Previous:
    """What stood in the files of others before setup. Raises Misconfigured if the record is damaged."""
    found: Previous = {}
    for path, settings in (host.previous if host is not None else {}).items():
        if not isinstance(settings, dict):
            raise Misconfigured(config.host_file(), f"what stood in {path} is damaged", "restore that file by hand")
        for name, text in settings.items():
            if text is not None and not isinstance(text, str):
                raise Misconfigured(config.host_file(), f"what {name} was is damaged", "restore it by hand")
        found[path] = dict(settings)
    return found


def write(identity: Identity, before: Previous) -> None:
    """Record it, whole or not at all. Raises Misconfigured."""
    fields = {
        "format": 1,
        "cluster": identity.cluster,
        "store": identity.store,
        "host_id": identity.host_id,
        "previous": before,
    }
    replace(config.host_file(), (json.dumps(fields, indent=1, sort_keys=True) + "\n").encode("ascii"))


def conf_text(wanted: config.Config) -> str:
    """10-setup.conf for this configuration."""

    def yes(flag: bool) -> str:
        return "yes" if flag else "no"

    return f"""\
# Written by `vmguard setup`, and written again by the next. Settings of your own belong in
# {paths.CONFIG} or in a file here with a later name.

[guard]
mode = {wanted.mode.value}

[store]
path = {wanted.store}
cluster = {wanted.cluster}
host_id = {wanted.host_id}
shared = {yes(wanted.shared)}
single_host = {yes(wanted.single_host)}
io_timeout = {wanted.io_timeout}

[leases]
without_watchdog = {wanted.without_watchdog.value}
"""
