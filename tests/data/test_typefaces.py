"""Fonts: those with letters are found, those of symbols are not, and every mask shows a character of its own."""

from pathlib import Path

import pytest
import torch

from pararealize.data import typefaces
from pararealize.errors import DataError


@pytest.fixture(scope="module")
def faces() -> typefaces.Typefaces:
    return typefaces.render(typefaces.find_fonts())


def test_fonts_of_symbols_are_left_out(faces):
    assert {"DejaVuSans.ttf", "cmr10.ttf", "STIXGeneral.ttf"} <= set(faces.names)
    assert not {"cmsy10.ttf", "cmex10.ttf", "STIXNonUni.ttf", "LastResortHE-Regular.ttf"} & set(faces.names)
    assert list(faces.names) == sorted(faces.names)


def test_the_system_adds_fonts():
    own, all_ = ([path.name for path in typefaces.find_fonts(system=system)] for system in (False, True))
    assert set(own) <= set(all_)
    assert len(all_) == len(set(all_))


def test_masks_are_different_characters_of_one_height(faces):
    assert faces.masks.shape == (len(faces.names), 62, typefaces.SIDE, typefaces.SIDE)
    for masks in faces.masks:
        assert len(masks.flatten(1).unique(dim=0)) == 62
        rows = (masks[typefaces.CHARACTERS.index("H")].amax(1) > 127).nonzero()
        assert abs(int(rows[-1] - rows[0]) + 1 - typefaces.CAPITAL) <= 1
    # nothing is cut off at the margin
    assert faces.masks[..., 0].max() == faces.masks[..., -1].max() == 0
    assert faces.masks[..., 0, :].max() == faces.masks[..., -1, :].max() == 0


def test_an_e_is_an_e_in_every_font(faces):
    """Against the same characters of another font: the nearest of the 62 is the right one for nearly all."""
    flat = faces.masks.flatten(2).float()
    flat = flat / flat.norm(dim=2, keepdim=True)
    reference = flat[faces.names.index("DejaVuSerif.ttf")]
    upright = [
        number for number, name in enumerate(faces.names) if not any(s in name for s in ("Obl", "Ita", "cmmi", "cmti"))
    ]
    for number in upright:
        right = (flat[number] @ reference.T).argmax(1) == torch.arange(62)
        assert right.double().mean() > 0.6, faces.names[number]


def test_a_file_that_is_no_font(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import matplotlib as mpl

    folder = tmp_path / "fonts" / "ttf"
    folder.mkdir(parents=True)
    (folder / "broken.ttf").write_bytes(b"not a font")
    monkeypatch.setattr(mpl, "get_data_path", lambda: str(tmp_path))
    with pytest.raises(DataError, match="none of matplotlib's fonts is there"):
        typefaces.find_fonts()
