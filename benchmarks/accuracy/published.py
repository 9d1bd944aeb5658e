"""Error rates that others publish for the same test images, to stand beside ours; the sources are named."""

from __future__ import annotations

__all__ = ["PUBLISHED", "PUBLISHED_HEAD"]

PUBLISHED_HEAD = ("network", "training", "error, %", "source")
_LIST = "list of the set's authors (github.com/zalandoresearch/fashion-mnist, README)"
_ERASING = "Zhong et al., *Random erasing data augmentation* (2020); github.com/zhunzhong07/Random-Erasing, README"

PUBLISHED: dict[str, tuple[tuple[str, str, str, str], ...]] = {
    "fashion_mnist": (
        ("ResNet-56, widths 16, 32, 64", "28×28, 300 epochs, crops and flips", "4.4", _ERASING),
        ("WRN-28-10, 36 million parameters", "28×28, 300 epochs, crops and flips", "4.0", _ERASING),
        ("two convolutions, under 100,000 parameters", "28×28, no augmentation", "7.5", _LIST),
        ("MLP 256-128-64", "28×28, no augmentation", "10.0", _LIST),
        ("VGG-16, 26 million parameters", "28×28, no augmentation", "6.5", _LIST),
        ("ResNet-18", "28×28, flips, shifts, rotations", "5.1", _LIST),
        ("WRN-40-4, 8.9 million parameters", "28×28, crops and flips", "3.3", _LIST),
        ("people, without training in fashion", "1000 of the test images", "16.5", _LIST),
    ),
}
