"""How many bytes of memory things take that are kept for a request."""

import sys
from typing import Any


def size_of(value: Any) -> int:
    """Of a value in JSON's types, with all that is in it.

    It looks at each part once; app/guard/strict_json.py bounds how many parts a body has.
    """
    size, left = sys.getsizeof(value), [value]
    while left:
        one = left.pop()
        if isinstance(one, dict):
            size += sum(map(sys.getsizeof, one))
            one = one.values()
        elif not isinstance(one, list | tuple):
            continue
        size += sum(map(sys.getsizeof, one))
        left.extend(part for part in one if isinstance(part, dict | list | tuple))
    return size
