"""The fonts of this machine -> the shapes of the 62 letters and digits in each, as masks of one size.

Fonts of symbols are left out: a font counts only where its own names for the 62 glyphs say that they are those letters
and digits.
"""

import string
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pararealize.errors import DataError

__all__ = ["CHARACTERS", "SIDE", "Typefaces", "find_fonts", "render"]

CHARACTERS = string.digits + string.ascii_uppercase + string.ascii_lowercase
SIDE = 64  # pixels of a mask's side
CAPITAL = 32  # pixels of an H's height, whatever the font
BASELINE = (SIDE + CAPITAL) // 2  # so that an H stands in the middle
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


@dataclass(frozen=True, slots=True, kw_only=True)
class Typefaces:
    """Masks ``(fonts, 62, 64, 64)`` of bytes, 255 where there is ink, and the file's name of every font."""

    names: tuple[str, ...]
    masks: Tensor = field(repr=False)


def find_fonts(*, system: bool = False) -> list[Path]:
    """The fonts with all 62 characters that matplotlib comes with, sorted by name; and the system's, on request.

    Of two files of one name, matplotlib's is taken.
    """
    import matplotlib as mpl
    from matplotlib import font_manager

    fonts = {path.name: path for path in map(Path, font_manager.findSystemFonts())} if system else {}
    fonts |= {path.name: path for path in (Path(mpl.get_data_path()) / "fonts" / "ttf").glob("*.ttf")}
    usable = [fonts[name] for name in sorted(fonts) if _has_all(fonts[name])]
    if not usable:
        raise DataError("none of matplotlib's fonts is there; install matplotlib anew, with its fonts")
    return usable


def _has_all(path: Path) -> bool:
    from matplotlib.ft2font import FT2Font

    try:
        font = FT2Font(str(path))
        charmap = font.get_charmap()
        return all(
            ord(character) in charmap and font.get_glyph_name(charmap[ord(character)]) in _names(character)
            for character in CHARACTERS
        )
    except (RuntimeError, OSError):  # a format that it does not read, or a font without names for its glyphs
        return False


def _names(character: str) -> tuple[str, ...]:
    """The names that fonts have for this character's glyph."""
    word = WORDS[int(character)] if character.isdigit() else character
    return word, f"{word}oldstyle", f"uni{ord(character):04X}"


def render(fonts: list[Path]) -> Typefaces:
    """Draw every character of every font once: capitals equally high, on one line, in the middle of their width."""
    from PIL import Image, ImageDraw, ImageFont

    masks = np.zeros((len(fonts), len(CHARACTERS), SIDE, SIDE), dtype=np.uint8)
    for number, path in enumerate(fonts):
        trial = ImageFont.truetype(path, 200)
        _, top, _, bottom = trial.getbbox("H", anchor="ms")
        font = ImageFont.truetype(path, 200 * CAPITAL / (bottom - top))
        for position, character in enumerate(CHARACTERS):
            image = Image.new("L", (SIDE, SIDE))
            ImageDraw.Draw(image).text((SIDE / 2, BASELINE), character, fill=255, font=font, anchor="ms")
            masks[number, position] = np.asarray(image)
    return Typefaces(names=tuple(path.name for path in fonts), masks=torch.from_numpy(masks))
