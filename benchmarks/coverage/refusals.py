"""A typed error of a row -> the sentence that says why it is right to refuse here, if somebody has said it."""

from __future__ import annotations

__all__ = ["REASONS", "reason"]

# what the error says -> why
REASONS = {
    "depends on train()/eval(), as auxiliary heads make it": (
        "Its outputs are other ones in train mode than in eval mode, and a graph has one structure; without its "
        "auxiliary heads it converts."
    ),
    "dropout_probability < self.layerdrop": (
        "In train mode a random number decides whether a layer runs: another network each time, which no graph is; "
        "with layerdrop=0.0 it converts."
    ),
    "block.attention.output.weight.div_": (
        "Its forward divides its own weights, once, when it is first called in eval mode: the model that is called a "
        "second time is another one."
    ),
    "the model does something else in other element types": (
        "Its forward asks for the element type and clamps in half precision alone; converted in that type it converts."
    ),
    "the network reads positions there one by one": (
        "Its series never meet, and its only cut lies where each series is unrolled into a vector: an adapter that "
        "leads there would mix them. With n = 1 it converts."
    ),
    "recorded anew": (
        "At this size its forward is another one, with other blocks (maps are brought to whole patches, or pooled, "
        "only where their sides ask for it): the plan's cuts do not exist there. Converted at that size it converts."
    ),
    "random numbers are read by several parts": (
        "One dropout mask is read by all layers: segments on several devices would each draw another, and the network "
        "would be another one."
    ),
}


def reason(error: str) -> str:
    """Why, or an empty text."""
    return next((why for fragment, why in REASONS.items() if fragment in error), "")
