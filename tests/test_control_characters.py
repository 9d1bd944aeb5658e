"""Texts that may go to a terminal: nothing in them acts."""

from __future__ import annotations

import unicodedata

from hypothesis import given
from hypothesis import strategies as st

from pararealize.control_characters import visible


@given(st.text(st.characters() | st.characters(categories=("Cc", "Cf", "Cs", "Zl", "Zp"))))
def test_no_character_acts_and_all_others_stay(text: str) -> None:
    shown = visible(text)
    assert visible(shown) == shown
    shown.encode()
    acting = [c for c in shown if c not in "\n\t" and unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp")]
    assert acting == []
    assert {"\u202e", "\u2066", "\u200b", "\ufeff"}.isdisjoint(shown)
    if all(c.isprintable() or c in "\n\t" for c in text):
        assert shown == text


def test_what_does_not_act_is_left() -> None:
    text = "stage1.0 — 3×3, naïve, 漢字, 👩\u200d👩\u200d👧\n\tx\u00a0y"
    assert visible(text) == text
    assert visible("\x1b]0;title\x07\r\x9b31m\u202e\ud800\U000e0041") == (
        r"\x1b]0;title\x07\r\x9b31m\u202e\ud800\U000e0041".replace(r"\r", r"\x0d")
    )
