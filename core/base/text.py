"""Text from files and other machines, made safe to show."""

from __future__ import annotations

import re

# Control characters (a terminal obeys them), marks that reorder or hide text, halves of surrogate
# pairs (they can't be encoded), and the line breaks that `printable` may keep.
_UNSAFE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff]"
)


def printable(text: str, lines: bool = False) -> str:
    r"""Returns text that does nothing but appear: other characters become escapes, as in Python.

    Args:
        text: of any origin.
        lines: whether its line breaks and tabs are layout, and stay.

    Example:
        >>> print(printable("a\x1b[2Jb\n"))
        a\x1b[2Jb\n
    """

    def escaped(match: re.Match[str]) -> str:
        if lines and match[0] in "\n\t":
            return match[0]
        return match[0].encode("unicode_escape", "surrogatepass").decode("ascii")

    return _UNSAFE.sub(escaped, text)
