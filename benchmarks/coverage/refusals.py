"""A typed error of a row -> the sentence that says why it is right to refuse here, if somebody has said it."""

from __future__ import annotations

__all__ = ["REASONS", "reason"]

# what the error says -> why
REASONS = {
    "depends on train()/eval(), as auxiliary heads make it": (
        "Its outputs are other ones in train mode than in eval mode, and a graph has one structure; without its "
        "auxiliary heads it converts."
    ),
    "random numbers are read by several parts": (
        "One dropout mask is read by all layers: segments on several devices would each draw another, and the network "
        "would be another one."
    ),
}


def reason(error: str) -> str:
    """Why, or an empty text."""
    return next((why for fragment, why in REASONS.items() if fragment in error), "")
