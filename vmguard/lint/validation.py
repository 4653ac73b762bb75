# SPDX-License-Identifier: LGPL-2.1-or-later
"""A definition against libvirt's own schema (RELAX NG), as `virt-xml-validate` does; only when it is asked for."""

import os
from typing import Any, Optional, Tuple

from vmguard.errors import BadRequest

PATH = "/usr/share/libvirt/schemas/domain.rng"


class Schema:
    """libvirt's schema of a domain."""

    def __init__(self, schema: Any, parser: Any) -> None:
        self._schema = schema
        self._parser = parser

    @classmethod
    def load(cls) -> "Schema":
        """Raises BadRequest where lxml or the schema is not installed."""
        try:
            from lxml import etree
        except ImportError as error:
            raise BadRequest("--validate needs lxml, which is not installed", "install python3-lxml") from error
        if not os.path.exists(PATH):
            raise BadRequest(f"there is no {PATH}", "install libvirt's command line tools")
        parser = etree.XMLParser(resolve_entities=False, no_network=True, load_dtd=False)
        return cls(etree.RelaxNG(etree.parse(PATH)), parser)

    def trouble(self, xml: bytes) -> Optional[Tuple[int, str]]:
        """(line, what is wrong) of the first thing that the schema does not allow; None if there is nothing."""
        from lxml import etree

        try:
            tree = etree.fromstring(xml, self._parser)
        except etree.XMLSyntaxError:
            return None  # the guard's own reader says so
        if self._schema.validate(tree):
            return None
        last = self._schema.error_log.last_error
        return (last.line, last.message) if last is not None else (0, "it does not follow the schema")
