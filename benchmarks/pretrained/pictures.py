"""Folders of pictures -> square crops of them, training and held out by picture: a picture's crops are on one side."""

from __future__ import annotations

import hashlib
import random
import re
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from pararealize.files import whole_file

__all__ = ["crops", "is_held_out", "paths"]

ENDS = (".jpg", ".jpeg", ".png")
DRAWN = re.compile(r"cartoon|alphabets|symbols|screenshot|logo|phantom|chessboard", re.IGNORECASE)  # no pictures
HELD_OUT = 4  # one picture in so many
SCALES = (0.5, 1.0)  # side of a crop, of the picture's shorter side


def paths(folders: Sequence[Path]) -> list[Path]:
    """The pictures of folders, in the order of their names; drawings, letters and charts are left out."""
    found = (path for folder in folders for path in sorted(folder.rglob("*")) if path.suffix.lower() in ENDS)
    return [path for path in found if path.is_file() and not path.is_symlink() and not DRAWN.search(str(path))]


def is_held_out(path: Path) -> bool:
    """By the name of the picture's folder and file, whatever its size and where the folder is."""
    name = "/".join(part for part in path.parts[-4:] if not re.search(r"\d+x\d+|images", part))
    return int(hashlib.sha256(name.encode()).hexdigest(), 16) % HELD_OUT == 0


def crops(folders: Sequence[Path], out: Path, *, held_out: bool, count: int, side: int) -> Tensor:
    """Crops ``(count or fewer, 3, side, side)`` as bytes, the same in every run, kept in a file."""
    path = out / f"pictures-{'held-out' if held_out else 'training'}-{count}-{side}.safetensors"
    if not path.exists():
        chosen = [picture for picture in paths(folders) if is_held_out(picture) == held_out]
        images = torch.stack(list(_crops(chosen, count, side)))
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as part:
            save_file({"images": images}, part)
    return load_file(path)["images"]


def _crops(pictures: list[Path], count: int, side: int) -> Iterator[Tensor]:
    from PIL import Image, ImageOps
    from torchvision.transforms.functional import pil_to_tensor

    chance = random.Random(0)
    pictures = list(pictures)
    chance.shuffle(pictures)
    for i in range(min(count, 8 * len(pictures))):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(pictures[i % len(pictures)]) as file:
                file.draft("RGB", (4 * side, 4 * side))
                whole = file.convert("RGBA")
        white = Image.new("RGBA", whole.size, "white")
        picture = Image.alpha_composite(white, whole).convert("RGB")
        short = min(picture.size)
        length = max(1, round(short * (1.0 if i < len(pictures) else chance.uniform(*SCALES))))
        left, top = (chance.randint(0, extent - length) for extent in picture.size)
        crop = picture.crop((left, top, left + length, top + length)).resize((side, side), Image.Resampling.BICUBIC)
        yield pil_to_tensor(ImageOps.mirror(crop) if chance.random() < 0.5 else crop)
