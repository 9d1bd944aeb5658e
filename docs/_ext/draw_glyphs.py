"""Draws ``_static/glyphs.png``, two images of each of the 62 characters: ``python docs/_ext/draw_glyphs.py``."""

from pathlib import Path

import torch
from PIL import Image

from pararealize.data import glyphs, typefaces

COLUMNS, SAMPLES, ZOOM = 21, 2, 2
OUT = Path(__file__).resolve().parent.parent / "_static" / "glyphs.png"


def main() -> None:
    """The characters in order, 21 a row; below each row the same characters once more."""
    made = glyphs.make(typefaces.render(typefaces.find_fonts()), (2000, 1))
    side, rows = glyphs.PIXELS, -(-made.classes // COLUMNS) * SAMPLES
    sheet = torch.full((rows * side, COLUMNS * side, 3), 255, dtype=torch.uint8)
    for character in range(made.classes):
        row, column = divmod(character, COLUMNS)
        for sample, number in enumerate((made.labels == character).nonzero().flatten()[:SAMPLES].tolist()):
            top, left = (row * SAMPLES + sample) * side, column * side
            sheet[top : top + side, left : left + side] = made.images[number].permute(1, 2, 0)
    image = Image.fromarray(sheet.numpy())
    image.resize((image.width * ZOOM, image.height * ZOOM), Image.Resampling.NEAREST).save(OUT, optimize=True)


if __name__ == "__main__":
    main()
