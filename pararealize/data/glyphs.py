"""A seed and masks of characters -> colour images of letters and digits among strokes, other letters and noise.

Images are made in chunks, each from a seed of its own, so the first images of a large set are a small set. All of a
chunk's arithmetic is batched; nothing is drawn image by image.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from pararealize.random_state import generator

from .cache import cache_folder, recall, store
from .dataset import Split
from .typefaces import CHARACTERS, Typefaces, find_fonts, render

__all__ = ["CLEAN", "CLUTTERED", "PIXELS", "Difficulty", "make", "recall_or_make", "training_fonts"]

VERSION = 1  # of the recipe: another number wherever the same seed gives other images
PIXELS = 32  # of a side
CHUNK = 500  # images that are made at a time
FINE = 2  # pixels of a side that are sampled for one of the image
HELD_OUT = 5  # every fifth font is for test images alone
TRAINING, TEST = 0, 1
FULL = (50_000, 10_000)  # training and test images
PARTS = {"images": TRAINING, "labels": TRAINING, "test_images": TEST, "test_labels": TEST}


@dataclass(frozen=True, slots=True, kw_only=True)
class Difficulty:
    """How far the images are from clean print. Lengths are in sides of the image, of 1, where nothing else is said.

    Attributes:
        turn: the largest angle, in radians, either way.
        slant: the largest shear, either way.
        size: of a letter; at 1 a capital is half the image high.
        scale: the largest logarithm of what the size is multiplied by, either way.
        aspect: the same for the width alone.
        shift: the furthest that a letter is from the middle, along each side.
        bend: the deviation of random displacements of a 4×4 net.
        neighbour: the probability of another letter, on each side.
        near: the nearest that such a letter is.
        far: the furthest.
        stroke: the probability of each stroke, of which one goes under the letter.
        strokes_over: how many may go over it.
        width: the largest half width of a stroke, in pixels.
        contrast: the smallest and the largest difference in luminance, which goes from 0 to 1.
        tint: the deviation of colours from grey.
        rough: the largest deviation of spots in the ground.
        blur: the largest share of a pixel that its four neighbours make up.
        noise: the largest deviation of every pixel.
    """

    turn: float = 0.1
    slant: float = 0.25
    size: float = 1.1
    scale: float = 0.15
    aspect: float = 0.1
    shift: float = 0.125
    bend: float = 0.015
    neighbour: float = 0.4
    near: float = 0.45
    far: float = 0.6
    stroke: float = 0.35
    strokes_over: int = 1
    width: float = 1.2
    contrast: tuple[float, float] = (0.25, 0.9)
    tint: float = 0.12
    rough: float = 0.08
    blur: float = 0.8
    noise: float = 0.08


CLUTTERED = Difficulty()
"""Letters of the data set "glyphs"."""

CLEAN = Difficulty(
    turn=0.05, slant=0.1, size=1.3, scale=0.1, shift=0.06, bend=0.005, neighbour=0, stroke=0, strokes_over=0,
    contrast=(0.5, 0.9), tint=0.06, rough=0.03, blur=0.4, noise=0.03,
)  # fmt: skip
"""Letters of the data set "glyphs:clean": alone, hardly moved, and easy to see."""


def training_fonts(count: int) -> list[int]:
    """Which of ``count`` fonts training images are drawn with; test images are drawn with all of them."""
    return [number for number in range(count) if number % HELD_OUT != HELD_OUT - 1]


def recall_or_make(
    count: tuple[int, int],
    *,
    seed: int = 0,
    system_fonts: bool = False,
    difficulty: Difficulty = CLUTTERED,
    data_dir: str | Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Split[Tensor]:
    """The images out of a file where an earlier call stored them, or made now and stored there.

    Args:
        count: of training and of test images.
        seed: of all images.
        system_fonts: draw also with the system's fonts, which differ between machines, and not with matplotlib's alone.
        difficulty: as in :func:`make`.
        data_dir: the folder of the file; None for the user's cache.
        progress: as in :func:`make`.

    A file serves only where recipe, seed, count and the shapes of all characters agree with the arguments, and where
    its checksum is right; else images are made anew. A whole set of 50,000 + 10,000 also serves smaller counts.

    Raises:
        DataError: the folder cannot be written.
    """
    faces = render(find_fonts(system=system_fonts))
    origin = {
        "recipe": f"glyphs {VERSION} {difficulty}",
        "seed": str(seed),
        "fonts": " ".join(faces.names),
        "shapes": hashlib.sha256(faces.masks.numpy().data).hexdigest(),
    }
    key = hashlib.sha256(repr(origin).encode()).hexdigest()[:12]
    folder = cache_folder() if data_dir is None else Path(data_dir)
    paths = {size: folder / f"glyphs-{key}-{size[0]}+{size[1]}.safetensors" for size in (count, FULL)}
    for size, path in paths.items():
        tensors = recall(path, origin) if size[0] >= count[0] and size[1] >= count[1] else None
        if tensors is not None and set(tensors) == set(PARTS):
            parts = {name: tensors[name][: count[part]] for name, part in PARTS.items()}
            return Split(classes=len(CHARACTERS), **parts)
    split = make(faces, count, seed=seed, difficulty=difficulty, progress=progress)
    store(paths[count], {name: getattr(split, name) for name in PARTS}, origin)
    return split


def make(
    faces: Typefaces,
    count: tuple[int, int],
    *,
    seed: int = 0,
    difficulty: Difficulty = CLUTTERED,
    progress: Callable[[int, int], None] | None = None,
) -> Split[Tensor]:
    """``count`` training and test images, and which characters they show, as places in ``CHARACTERS``.

    Args:
        faces: from :func:`~pararealize.data.typefaces.render`.
        count: of training and of test images.
        difficulty: how far they are from clean print.
        seed: of all random numbers. The first images of a larger count are those of a smaller one.
        progress: called with the number of images made so far and of all.

    Cost: about 0.5 ms an image on one core.
    """
    fonts = {TRAINING: training_fonts(len(faces.names)), TEST: list(range(len(faces.names)))}
    parts: list[tuple[Tensor, Tensor]] = []
    for part, size in enumerate(count):
        images = torch.empty(size, 3, PIXELS, PIXELS, dtype=torch.uint8)
        labels = torch.empty(size, dtype=torch.long)
        for number, start in enumerate(range(0, size, CHUNK)):
            rows = slice(start, min(start + CHUNK, size))
            stream = generator("glyphs", VERSION, seed, part, number)
            chunk, characters = _chunk(faces.masks, torch.tensor(fonts[part]), difficulty, stream)
            images[rows], labels[rows] = chunk[: rows.stop - start], characters[: rows.stop - start]
            if progress is not None:
                progress(sum(count[:part]) + rows.stop, sum(count))
        parts.append((images, labels))
    (images, labels), (test_images, test_labels) = parts
    classes = len(CHARACTERS)
    return Split(classes=classes, images=images, labels=labels, test_images=test_images, test_labels=test_labels)


class _Draws:
    """Random numbers of one chunk, ``(CHUNK, *shape)``: a row for every image.

    What is drawn and in which order is a part of the recipe: another order needs another ``VERSION``.
    """

    def __init__(self, stream: torch.Generator) -> None:
        self.stream = stream

    def uniform(self, low: float, high: float, *shape: int) -> Tensor:
        return torch.rand(CHUNK, *shape, generator=self.stream) * (high - low) + low

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(CHUNK, *shape, generator=self.stream)

    def chance(self, probability: float, *shape: int) -> Tensor:
        return (torch.rand(CHUNK, *shape, generator=self.stream) < probability).float()

    def among(self, values: Tensor, *shape: int) -> Tensor:
        return values[torch.randint(len(values), (CHUNK, *shape), generator=self.stream)]


def _chunk(masks: Tensor, fonts: Tensor, difficulty: Difficulty, stream: torch.Generator) -> tuple[Tensor, Tensor]:
    """``CHUNK`` images and their labels, painted in this order: ground, neighbours, a stroke, the letter, more strokes.

    Blur and noise come last. A chunk is always made whole: a smaller one would draw other numbers.
    """
    draws = _Draws(stream)
    font, labels = draws.among(fonts), draws.among(torch.arange(len(CHARACTERS)))
    grid = _grid(difficulty, draws)
    ground, ink = _colours(difficulty, draws)
    image = _painted(ground, _neighbours(masks, font, grid, difficulty, draws), ink + draws.uniform(-0.1, 0.1, 3, 1, 1))
    image = _painted(image, _stroke(difficulty, draws), ink + draws.uniform(-0.3, 0.3, 3, 1, 1))
    image = _painted(image, _ink(masks[font, labels], grid), ink)
    for _ in range(difficulty.strokes_over):
        image = _painted(image, _stroke(difficulty, draws), ink + draws.uniform(-0.3, 0.3, 3, 1, 1))
    image = _blurred(image, draws.uniform(0.0, difficulty.blur, 1, 1, 1))
    image = image + draws.normal(3, PIXELS, PIXELS) * draws.uniform(0.0, difficulty.noise, 1, 1, 1)
    return (image.clamp(0, 1) * 255).round().byte(), labels


def _painted(image: Tensor, cover: Tensor, colour: Tensor) -> Tensor:
    """``colour`` laid over ``image`` where ``cover``, from 0 to 1, has ink."""
    return image + cover * (colour - image)


def _grid(difficulty: Difficulty, draws: _Draws) -> Tensor:
    """Where in its mask each fine pixel of a letter is looked up: turned, slanted, scaled, moved and bent.

    ``(CHUNK, fine, fine, 2)``, from −1 to 1, x before y, as ``grid_sample`` takes it.
    """
    angle, slant = draws.uniform(-difficulty.turn, difficulty.turn), draws.uniform(-difficulty.slant, difficulty.slant)
    scale = torch.exp(draws.uniform(-difficulty.scale, difficulty.scale)) * difficulty.size
    aspect = torch.exp(draws.uniform(-difficulty.aspect, difficulty.aspect))
    cos, sin = angle.cos(), angle.sin()
    # from the image to the mask: undo the turn, then the slant, then the scales
    x = torch.stack([cos + slant * sin, sin - slant * cos], 1) / (scale * aspect)[:, None]
    y = torch.stack([-sin, cos], 1) / scale[:, None]
    matrix = torch.stack([x, y], 1)
    shift = draws.uniform(-2 * difficulty.shift, 2 * difficulty.shift, 2, 1)
    theta = torch.cat([matrix, -matrix @ shift], 2)
    fine = PIXELS * FINE
    straight = functional.affine_grid(theta, [CHUNK, 1, fine, fine], align_corners=False)
    bends = draws.normal(2, 4, 4) * (2 * difficulty.bend)
    bent = functional.interpolate(bends, (fine, fine), mode="bicubic", align_corners=True)
    return straight + bent.permute(0, 2, 3, 1)


def _ink(masks: Tensor, grid: Tensor) -> Tensor:
    """Masks of bytes ``(CHUNK, side, side)`` sampled at the grid: how much ink is on each pixel, from 0 to 1."""
    fine = functional.grid_sample(masks[:, None].float() / 255, grid, align_corners=False)
    shares: Tensor = functional.avg_pool2d(fine, FINE)
    return shares


def _neighbours(masks: Tensor, font: Tensor, grid: Tensor, difficulty: Difficulty, draws: _Draws) -> Tensor:
    """Other letters of the same font, to the left and to the right, each at times: parts of them are in the image."""
    covers = []
    for side in (-1.0, 1.0):
        characters = draws.among(torch.arange(len(CHARACTERS)))
        aside = draws.uniform(2 * difficulty.near, 2 * difficulty.far) * side
        present = draws.chance(difficulty.neighbour, 1, 1, 1)
        moved = grid + functional.pad(aside[:, None], (0, 1))[:, None, None]
        covers.append(_ink(masks[font, characters], moved) * present)
    return torch.maximum(*covers)


def _colours(difficulty: Difficulty, draws: _Draws) -> tuple[Tensor, Tensor]:
    """A ground ``(CHUNK, 3, 32, 32)`` and an ink ``(CHUNK, 3, 1, 1)`` that is lighter or darker than it."""
    contrast = draws.uniform(*difficulty.contrast, 1)
    darker = draws.uniform(0.0, 1.0, 1) * (1 - contrast)
    swapped = draws.chance(0.5, 1)
    light, tints = darker + contrast, draws.normal(2, 3) * difficulty.tint
    tints = tints - tints.mean(2, keepdim=True)  # so that a tint changes the colour and not the luminance
    ground = darker + swapped * contrast + tints[:, 0]
    ink = light - swapped * contrast + tints[:, 1]
    rough = draws.normal(3, 5, 5) * draws.uniform(0.0, difficulty.rough, 1, 1, 1)
    rough = functional.interpolate(rough, (PIXELS, PIXELS), mode="bicubic", align_corners=True)
    return ground[:, :, None, None] + rough, ink[:, :, None, None]


def _stroke(difficulty: Difficulty, draws: _Draws) -> Tensor:
    """A straight stroke in some of the images: ``(CHUNK, 1, 32, 32)`` from 0 to 1."""
    centres = (torch.arange(PIXELS) + 0.5) / PIXELS
    pixels = torch.stack(torch.meshgrid(centres, centres, indexing="xy"), -1)
    begin, end = draws.uniform(0.0, 1.0, 1, 1, 2), draws.uniform(0.0, 1.0, 1, 1, 2)
    along = end - begin
    place = ((pixels - begin) * along).sum(-1, keepdim=True) / along.square().sum(-1, keepdim=True).clamp_min(1e-6)
    distance = (pixels - begin - place.clamp(0, 1) * along).norm(dim=-1) * PIXELS
    width = draws.uniform(0.4, difficulty.width, 1, 1)
    cover: Tensor = (width + 0.5 - distance).clamp(0, 1) * draws.chance(difficulty.stroke, 1, 1)
    return cover.unsqueeze(1)


def _blurred(image: Tensor, strength: Tensor) -> Tensor:
    """Each pixel mixed with its four neighbours."""
    wide = functional.pad(image, (1, 1, 1, 1), mode="replicate")
    around = wide[:, :, :-2, 1:-1] + wide[:, :, 2:, 1:-1] + wide[:, :, 1:-1, :-2] + wide[:, :, 1:-1, 2:]
    return image + strength * (around / 4 - image)
