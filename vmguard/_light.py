# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Parts of the standard library that the hook uses, without what they load and do at import.

Every start of a guest waits for the hook. `json` loads `re` and compiles six patterns, `hashlib` loads OpenSSL, `random`
loads `hashlib`; each takes milliseconds, and most calls of the hook need little of it or nothing.
"""

from vmguard._typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import json as json
    import random as random
    import re as re
    from hashlib import sha256 as sha256
else:

    class _Later:
        """A module that is loaded when something of it is asked for."""

        def __init__(self, name):
            self._name = name

        def __getattr__(self, name):
            found = getattr(__import__(self._name), name)
            setattr(self, name, found)
            return found

    class _Pattern:
        """A regular expression that is compiled when it is used."""

        def __init__(self, *arguments):
            self._arguments = arguments

        def __getattr__(self, name):
            found = getattr(__import__("re").compile(*self._arguments), name)
            setattr(self, name, found)
            return found

    json, random, re = _Later("json"), _Later("random"), _Later("re")
    re.compile = lambda pattern, flags=0: _Pattern(pattern, flags)

    def _sha256_of(*modules):
        for module in modules:
            try:
                return __import__(module).sha256
            except ImportError:
                continue
        raise ImportError(modules[-1])

    # The first since Python 3.12, the second before.
    sha256 = _sha256_of("_sha2", "_sha256", "hashlib")

_scan: Any = None
_encode: Any = None
_encode_any: Any = None

# The two halves of `json` that are written in C. They are not a public interface: without them, or where they have
# changed, it is `json` itself.
try:
    from _json import encode_basestring_ascii, make_encoder, make_scanner

    class _Reading:
        """How make_scanner is told what a json.JSONDecoder would be."""

        strict = True
        object_hook = object_pairs_hook = None
        parse_float, parse_int = float, int
        memo: Any = {}

        @staticmethod
        def parse_constant(name: str) -> float:
            return float(name.replace("Infinity", "inf"))

    def _unknown(what: Any) -> Any:
        raise TypeError(f"{type(what).__name__} is nothing that JSON knows")

    def _unknown_as_text(what: Any) -> Any:
        return str(what)

    _scanner: Any = make_scanner
    _scan = _scanner(_Reading)
    _encode, _encode_any = (
        make_encoder({}, unknown, encode_basestring_ascii, None, ": ", ", ", False, False, True)
        for unknown in (_unknown, _unknown_as_text)
    )
    if "".join(_encode([{"a": 1.5}, None], 0)) != '[{"a": 1.5}, null]' or _scan('[{"a": "\\u00e9"}]', 0)[1] != 17:
        raise TypeError
except (ImportError, TypeError, AttributeError):
    _scan = _encode = _encode_any = None

_BLANK = " \t\n\r"


def loads(text: str) -> Any:
    """What a JSON text says; as json.loads. Raises ValueError, RecursionError."""
    if _scan is None:
        return json.loads(text)
    start = len(text) - len(text.lstrip(_BLANK))
    try:
        found, end = _scan(text, start)
    except (StopIteration, SystemError):
        # What is wrong with it, json says; without that module loaded the scanner cannot even do so (SystemError).
        return json.loads(text)
    if text[end:].strip(_BLANK):
        raise ValueError("something follows its end")
    return found


def dumps(what: Any, anything: bool = False) -> str:
    """
    The JSON text of something, in ASCII and one line; as json.dumps.

    anything: what JSON does not know is written as its str(). Raises TypeError, ValueError.
    """
    if _encode is None:
        return json.dumps(what, default=str if anything else None)
    return "".join((_encode_any if anything else _encode)(what, 0))
