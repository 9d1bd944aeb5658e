"""A text, perhaps out of a file -> the same text for a terminal, a log or a picture: every character shows, none acts.

Who writes a file chooses its names and notes. Printed as they are, some characters would not be shown but done: ESC
begins commands to a terminal (another title, another colour, text in the clipboard), CR and BS overwrite what stands
there, U+202E turns the line round (https://trojansource.codes). So they are shown as Python writes them in a string.
"""

import re

__all__ = ["visible", "visible_json"]

# C0 but for tab and newline, DEL and C1; what changes the direction of text, joins or hides; line separators of their
# own; halves of UTF-16 pairs, which cannot be written; tags
_ACTING = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ud800-\udfff\ufeff"
    r"\ufff9-\ufffb\U000e0000-\U000e0fff]"
)


def visible(text: str) -> str:
    r"""The text with every character that acts in place of being shown as an escape; newlines and tabs stay.

    Example:
        >>> print(visible("conv\x1b[2J1 \u202egnp.exe"))
        conv\x1b[2J1 \u202egnp.exe
    """
    if text.isascii() and text.isprintable():
        return text
    return _ACTING.sub(lambda match: _escape(match[0]), text)


def visible_json(text: str) -> str:
    r"""The same JSON document without characters that act, which a string may hold as they are or escaped.

    Example:
        >>> print(visible_json('{"name": "a\u202eb"}'))
        {"name": "a\u202eb"}
    """
    return _ACTING.sub(lambda match: "".join(f"\\u{half:04x}" for half in _halves(match[0])), text)


def _halves(character: str) -> list[int]:
    """A character as JSON counts: one or two halves of UTF-16."""
    units = character.encode("utf-16-be", "surrogatepass")
    return [int.from_bytes(units[i : i + 2]) for i in range(0, len(units), 2)]


def _escape(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
