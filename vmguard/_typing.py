# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The names of `typing` that this package uses, without its cost.

Every start of a guest waits for the hook, and `typing` with what it imports takes as long to load as half of Python
itself. At run time nobody asks what the annotations say. So where `typing` is not loaded already, its forms stand for
nothing here, and a NamedTuple is made without it. Type checkers see the real ones.
"""

import sys

TYPE_CHECKING = False

# Python 3.14 evaluates annotations when they are asked for: the fields of a class are not to be seen in its body.
if TYPE_CHECKING or "typing" in sys.modules or sys.version_info >= (3, 14):
    from typing import (
        Any,
        Callable,
        Dict,
        Iterable,
        Iterator,
        List,
        Mapping,
        NamedTuple,
        Optional,
        Protocol,
        Sequence,
        Set,
        Tuple,
        Type,
        TypeVar,
        Union,
    )
else:
    from _collections import _tuplegetter

    class _Form:
        def __getitem__(self, _):
            return self

    Any = Callable = Dict = Iterable = Iterator = List = Mapping = Optional = Sequence = Set = Tuple = Type = Union = (
        _Form()
    )

    def TypeVar(name):
        return Any

    class Protocol:
        """A class that says what others must have."""

    def _replace(self, **changes):
        made = tuple.__new__(type(self), map(changes.pop, self._fields, self))
        if changes:
            raise ValueError(f"no such fields: {list(changes)}")
        return made

    def _asdict(self):
        return dict(zip(self._fields, self))

    def _getnewargs(self):
        return tuple(self)

    def _repr(self):
        return f"{type(self).__name__}({', '.join(map('{}={!r}'.format, self._fields, self))})"

    class _Maker(type):
        def __new__(cls, name, bases, members):
            if not bases:
                return type.__new__(cls, name, bases, members)
            fields = tuple(members.get("__annotations__", ()))
            defaults = {field: members[field] for field in fields if field in members}
            arguments = ", ".join(f"{field}=_defaults[{field!r}]" if field in defaults else field for field in fields)
            new = eval(
                f"lambda _cls, {arguments}: _new(_cls, ({''.join(field + ', ' for field in fields)}))",
                {"_new": tuple.__new__, "_defaults": defaults},
            )
            for number, field in enumerate(fields):
                members[field] = _tuplegetter(number, "")
            members.update(__new__=new, __slots__=(), _fields=fields, _field_defaults=defaults)
            members.update(_replace=_replace, _asdict=_asdict, __getnewargs__=_getnewargs)
            members.setdefault("__repr__", _repr)
            return type(name, (tuple,), members)

    class NamedTuple(metaclass=_Maker):
        """A tuple whose items have names."""


__all__ = [
    "TYPE_CHECKING",
    "Any",
    "Callable",
    "Dict",
    "Iterable",
    "Iterator",
    "List",
    "Mapping",
    "NamedTuple",
    "Optional",
    "Protocol",
    "Sequence",
    "Set",
    "Tuple",
    "Type",
    "TypeVar",
    "Union",
]
