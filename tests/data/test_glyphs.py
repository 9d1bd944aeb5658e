"""Glyphs: the letters that the labels say, from a seed alone, part of one another, kept and recalled."""

import pytest
import torch

from pararealize.data import catalogue, glyphs, typefaces
from pararealize.data.catalogue import load
from pararealize.data.glyphs import Difficulty


@pytest.fixture(autouse=True)
def _few_make_the_scale(monkeypatch):
    monkeypatch.setattr(catalogue, "SCALED_BY", 20)


PRINT = Difficulty(
    turn=0,
    slant=0,
    scale=0,
    aspect=0,
    size=1,
    shift=0,
    bend=0,
    neighbour=0,
    stroke=0,
    contrast=(1.0, 1.0),
    tint=0,
    rough=0,
    blur=0,
    noise=0,
)


@pytest.fixture(scope="module")
def faces() -> typefaces.Typefaces:
    fonts = {path.name: path for path in typefaces.find_fonts()}
    return typefaces.render([fonts["DejaVuSans.ttf"], fonts["cmr10.ttf"], fonts["STIXGeneral.ttf"]])


def test_without_difficulty_images_are_the_masks(faces):
    """Each image, black on white or white on black, is the half-size mask of its label in one of the fonts."""
    made = glyphs.make(faces, (100, 20), difficulty=PRINT)
    assert made.images.shape == (100, 3, 32, 32)
    assert made.images.dtype == torch.uint8
    half = torch.nn.functional.avg_pool2d(faces.masks.flatten(0, 1)[:, None].float(), 2).view(3, 62, 32, 32)
    for image, label in zip(made.images.float(), made.labels, strict=True):
        assert torch.equal(image[0], image[1])
        assert torch.equal(image[0], image[2])
        errors = [(pixels - half[:, label]).abs().amax((1, 2)).min() for pixels in (image[0], 255 - image[0])]
        assert min(errors) <= 1


def test_turning_and_moving_keep_the_ink(faces):
    """Turned, slanted, moved and bent letters have about as much ink as straight ones, but lie elsewhere."""
    moved = Difficulty(**{name: getattr(PRINT, name) for name in Difficulty.__slots__} | {"turn": 0.5, "shift": 0.1})
    one, other = (glyphs.make(faces, (300, 1), difficulty=difficulty) for difficulty in (PRINT, moved))

    def ink(made):
        images = made.images[:, 0].double() / 255
        ground = images[:, 0, 0]
        return (images - ground[:, None, None]).abs().sum((1, 2))

    assert torch.equal(one.labels, other.labels)
    assert not torch.equal(one.images, other.images)
    assert ((ink(one) - ink(other)).abs() / ink(one)).max() < 0.15


def test_the_first_of_many_are_the_few(faces):
    few, many = glyphs.make(faces, (30, 20)), glyphs.make(faces, (glyphs.CHUNK + 10, 40))
    assert torch.equal(many.images[:30], few.images)
    assert torch.equal(many.labels[:30], few.labels)
    assert torch.equal(many.test_images[:20], few.test_images)
    assert len(many.images.flatten(1).unique(dim=0)) == glyphs.CHUNK + 10  # chunks differ
    assert not torch.equal(many.images[:20], many.test_images[:20])
    assert not torch.equal(glyphs.make(faces, (30, 20), seed=1).images, few.images)


def test_all_characters_come_about_equally_often(faces):
    labels = glyphs.make(faces, (3100, 1)).labels.bincount(minlength=62)
    assert labels.min() > 20
    assert labels.max() < 90


def test_some_fonts_are_for_the_test_alone():
    """Masks of another grey for the held-out font show up in test images only."""
    masks = torch.zeros(5, 62, 64, 64, dtype=torch.uint8)
    masks[4, :, 20:44, 20:44] = 255
    faces = typefaces.Typefaces(names=tuple("abcde"), masks=masks)
    made = glyphs.make(faces, (200, 200), difficulty=PRINT)
    assert glyphs.training_fonts(5) == [0, 1, 2, 3]
    assert glyphs.training_fonts(1) == [0]
    flat = (made.images.flatten(1).double().std(1) == 0).double().mean()
    shown = (made.test_images.flatten(1).double().std(1) > 0).double().mean()
    assert flat == 1
    assert 0.1 < shown < 0.3


def test_the_random_state_is_left_alone(faces):
    before = torch.get_rng_state()
    glyphs.make(faces, (1, 1))
    assert torch.equal(torch.get_rng_state(), before)


def test_made_once_and_kept(tmp_path, monkeypatch):
    calls = []
    first = load("glyphs", count=(40, 20), data_dir=tmp_path, progress=lambda *done: calls.append(done))
    assert calls == [(40, 60), (60, 60)]
    assert (first.train_count, first.test_count, first.classes, first.shape) == (40, 20, 62, (3, 32, 32))
    monkeypatch.setattr(glyphs, "make", None)
    again = load("glyphs", count=(40, 20), data_dir=tmp_path)
    assert torch.equal(again.images, first.images)
    assert torch.equal(again.test_labels, first.test_labels)
    with pytest.raises(TypeError):  # another seed or count is another file
        load("glyphs", count=(40, 20), data_dir=tmp_path, data_seed=1)
    with pytest.raises(TypeError):
        load("glyphs", count=(41, 20), data_dir=tmp_path)


def test_the_whole_set_serves_smaller_counts(tmp_path, monkeypatch):
    monkeypatch.setattr(glyphs, "FULL", (60, 30))
    whole = glyphs.recall_or_make((60, 30), data_dir=tmp_path)
    monkeypatch.setattr(glyphs, "make", None)
    part = glyphs.recall_or_make((50, 7), data_dir=tmp_path)
    assert torch.equal(part.images, whole.images[:50])
    assert torch.equal(part.test_labels, whole.test_labels[:7])


def test_clean_letters_are_like_print(faces):
    """The shape that an image resembles most, in any font, is its letter's far more often than among the clutter."""
    shapes = torch.nn.functional.avg_pool2d(faces.masks.flatten(0, 1)[:, None].double(), 4).flatten(1)

    def right(difficulty):
        made = glyphs.make(faces, (300, 1), difficulty=difficulty)
        images = torch.nn.functional.avg_pool2d(made.images.double().mean(1, keepdim=True), 2).flatten(1)
        alike = torch.corrcoef(torch.cat([images, shapes]))[:300, 300:].abs()
        return (alike.argmax(1) % 62 == made.labels).double().mean().item()

    assert right(PRINT) > 0.9
    assert right(glyphs.CLEAN) > 1.5 * right(Difficulty())


def test_clean_is_a_set_of_its_own(tmp_path):
    clean, plain = (load(name, count=(20, 10), data_dir=tmp_path) for name in ("glyphs:clean", "glyphs"))
    assert torch.equal(clean.labels, plain.labels)
    assert not torch.equal(clean.images, plain.images)
    assert torch.equal(load("glyphs:clean", count=(20, 10), data_dir=tmp_path).images, clean.images)


def test_what_a_network_takes(tmp_path, monkeypatch):
    monkeypatch.setattr(catalogue, "SCALED_BY", 64)
    data = load("glyphs", count=(64, 32), data_dir=tmp_path, image_size=16, channels=1, batch_size=32)
    x, labels = next(data.epoch(0))
    assert (x.shape, x.dtype, labels.dtype) == ((32, 1, 16, 16), torch.float32, torch.int64)
    everything = torch.cat([x for x, _ in data.epoch(0)])
    assert everything.mean().item() == pytest.approx(0, abs=1e-5)
    assert everything.std().item() == pytest.approx(1, abs=1e-2)
    assert str(data) == "glyphs: 64 training and 32 test images of 1×16×16, 62 classes, batches of 32"
