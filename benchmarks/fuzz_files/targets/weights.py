"""Files of weights, of ``save_state``, of another program and of ``torch.save``: loaded into a network."""

from __future__ import annotations

import tempfile
import zipfile
from pathlib import Path
from random import Random

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from pararealize.distributed.checkpoint import load_state, save_state
from pararealize.errors import PararealizeError

from ..mutations import mutated
from ..trial import Trial
from .folders import change_header, change_place, change_tensors

__all__ = ["Weights", "network", "same"]


def network(seed: int) -> nn.Module:
    """Linear maps, a batch norm, and three types of numbers."""
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 4).bfloat16(), nn.Linear(4, 4))
    net.register_buffer("mask", torch.tensor([True, False]))
    net.register_buffer("none", torch.empty(0, 3))
    net.register_parameter("phase", nn.Parameter(torch.randn(2, 3, dtype=torch.float64)))
    return net


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    """Whether two state dicts hold the same bits."""
    return a.keys() == b.keys() and all(
        a[name].dtype == b[name].dtype and torch.equal(_bits(a[name]), _bits(b[name])) for name in a
    )


def _bits(value: torch.Tensor) -> torch.Tensor:
    bits = value.detach().contiguous().flatten().view(torch.uint8)
    return bits.ne(0) if value.dtype == torch.bool else bits  # any byte but 0 is true, and a copy of it is 1


class Weights:
    """One file each; another program's has no digests, so that a value that was changed in it is what it says."""

    def __init__(self) -> None:
        net = network(0)
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            save_state(net, folder / "ours.safetensors")
            save_file(net.state_dict(), folder / "other.safetensors")
            torch.save(net.state_dict(), folder / "torch.pt")
            self.contents = {path.name: path.read_bytes() for path in folder.iterdir()}

    def __call__(self, random: Random, folder: Path) -> Trial:
        name = random.choice(("ours.safetensors", "ours.safetensors", "other.safetensors", "torch.pt", "torch.pt"))
        path = folder / name
        path.write_bytes(self.contents[name])
        sealed = False
        way = random.random()
        if way < 0.1:
            change = change_place(path, random)
        elif way < 0.15:
            path, change = Path(random.choice((f"{path}\0", f"{folder}/{'z' * 300}", f"{path}/x", f"{folder}"))), "path"
        elif way < 0.6 and name == "torch.pt":
            sealed, change = True, _entry(path, random)
        elif way < 0.6:
            change = random.choice((change_tensors, change_header))(path, random) or "nothing"
        else:
            content, change = mutated(self.contents[name], random)
            path.write_bytes(content)
        strict = random.random() < 0.7

        def attempt() -> str:
            net, before = network(1), network(1).state_dict()
            try:
                load_state(net, path, strict=strict)
            except PararealizeError:
                if not same(net.state_dict(), before):
                    return "an error, and the network has changed"
                raise
            if sealed:
                return ""
            expected = network(0).state_dict()
            if name == "other.safetensors":
                stored = load_file(path)
                expected = before | {key: stored[key].to(before[key].dtype) for key in before if key in stored}
            if not strict and name == "torch.pt" and same(net.state_dict(), before):
                return ""
            return "" if same(net.state_dict(), expected) else "other weights than the file says"

        return Trial(change=f"{name}: {change}", attempt=attempt)


def _entry(path: Path, random: Random) -> str:
    """Change an entry of a zip file, and give it the checksum that fits."""
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    name = random.choice([*entries, *[name for name in entries if name.endswith("data.pkl")] * 3])
    mutation = mutated(entries[name] or b"x", random)
    compression = random.choice((zipfile.ZIP_STORED, zipfile.ZIP_STORED, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
    path.unlink()
    with zipfile.ZipFile(path, "w", compression) as archive:
        for entry, content in entries.items():
            archive.writestr(entry, mutation.content if entry == name else content)
    return f"sealed: {name}: {mutation.change}"
