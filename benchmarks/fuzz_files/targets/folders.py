"""A folder of files, a source of random numbers -> the same folder, in which something was changed, in words."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from pararealize.files import remove

from ..mutations import mutated, mutated_json

__all__ = ["change_folder", "change_header", "change_place", "change_tensors"]


def change_folder(folder: Path, others: Sequence[Path], random: Random) -> str:
    """Change one thing in a folder: bytes, values, tensors, names, kinds of files, files of other folders.

    Args:
        folder: with folders and files in it.
        others: folders with files of the same names.
        random: what is changed, and how.
    """
    while True:
        change = random.choice(_CHANGES)
        with contextlib.suppress(ValueError, IndexError, OSError, struct.error, RecursionError, SafetensorError):
            if text := change(folder, others, random):  # not where what is read is damaged already
                return text


def _file(folder: Path, random: Random, end: str = "") -> Path:
    return random.choice(sorted(path for path in folder.rglob(f"*{end}") if path.is_file() and not path.is_symlink()))


def _name(folder: Path, path: Path) -> str:
    return str(path.relative_to(folder))


def _bytes(folder: Path, _others: Sequence[Path], random: Random) -> str:
    path = _file(folder, random)
    content = path.read_bytes()
    is_json = path.suffix == ".json" and random.random() < 0.7
    path.write_bytes((mutation := (mutated_json if is_json else mutated)(content, random)).content)
    return f"{_name(folder, path)}: {mutation.change}"


def _tensors(folder: Path, _others: Sequence[Path], random: Random) -> str:
    path = _file(folder, random, ".safetensors")
    change = random.choice((change_tensors, change_header))(path, random)
    return change and f"{_name(folder, path)}: {change}"


def _swapped(folder: Path, _others: Sequence[Path], random: Random) -> str:
    one = _file(folder, random)
    two = _file(folder, random, random.choice((one.name, one.suffix)))
    if one == two:
        return ""
    content = one.read_bytes()
    one.write_bytes(two.read_bytes())
    two.write_bytes(content)
    return f"{_name(folder, one)} and {_name(folder, two)} are exchanged"


def _copied(folder: Path, others: Sequence[Path], random: Random) -> str:
    """A file or folder of another run, or of another step of this one."""
    places = sorted(path for path in folder.rglob("*") if not path.is_symlink() and (path.is_file() or path.is_dir()))
    target = random.choice(places)
    sources = [path for path in places if path.name == target.name or (path.is_dir() and path.parent == target.parent)]
    sources += [path for other in others for path in other.rglob("*") if path.name == target.name]
    source = random.choice(sources)
    if source == target or source.is_dir() != target.is_dir():
        return ""
    if target.is_dir():
        held = target.with_name(target.name + ".held")
        shutil.copytree(source, held)
        shutil.rmtree(target)
        held.rename(target)
    else:
        target.write_bytes(source.read_bytes())
    whose = "this one's" if source.is_relative_to(folder) else "another one's"
    return f"{_name(folder, target)} is {whose} {source.parent.name}/{source.name}"


def _missing(folder: Path, _others: Sequence[Path], random: Random) -> str:
    path = random.choice(sorted(folder.rglob("*")))
    remove(path)
    return f"{_name(folder, path)} is gone"


def _doubled(folder: Path, _others: Sequence[Path], random: Random) -> str:
    path = _file(folder, random)
    other = path.with_name(
        random.choice((f"{path.stem}-2{path.suffix}", f"x{path.name}", f".{path.name}.part", "a\nb"))
    )
    shutil.copyfile(path, other)
    return f"{_name(folder, path)} is there as {other.name!a} too"


def _renamed(folder: Path, _others: Sequence[Path], random: Random) -> str:
    path = random.choice(sorted(folder.rglob("*")))
    names = (path.name[:-1], path.name.upper(), f"{path.name}0", "step-00000009", "step-00000099", "step-1", "y" * 255)
    other = path.with_name(random.choice(names))
    if other.exists() or not other.name:
        return ""
    path.rename(other)
    return f"{_name(folder, path)} is called {other.name[:40]}"


def _kind(folder: Path, _others: Sequence[Path], random: Random) -> str:
    path = random.choice(sorted(folder.rglob("*")))
    return f"{_name(folder, path)} {change_place(path, random)}"


def change_place(path: Path, random: Random) -> str:
    """Put something else in the place of a file or folder: a link, a FIFO, a socket, a folder."""
    held = path.parent / f".held-{path.name[:50]}"
    kind = random.choice(("link", "FIFO", "socket", "device", "folder", "file", "circle", "nowhere"))
    path.rename(held)
    if kind == "link":
        path.symlink_to(held.name)
    elif kind == "FIFO":
        os.mkfifo(path)
    elif kind == "socket":
        here = Path.cwd()
        os.chdir(path.parent)  # names of sockets are short
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(path.name)
        os.chdir(here)
    elif kind == "folder":
        path.mkdir()
        held.rename(path / held.name)
    elif kind == "file":
        path.write_bytes(b"")
    else:
        path.symlink_to({"device": "/dev/zero", "circle": path.name, "nowhere": "nothing"}[kind])
    return f"is a {kind}" if kind in ("link", "FIFO", "socket", "folder", "file") else f"is a link: {kind}"


def change_tensors(path: Path, random: Random) -> str:
    """Change a tensor of a safetensors file, which stays one, with the metadata that it had; nothing where none can."""
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if not tensors:
        return ""
    name = random.choice(sorted(tensors))
    value, kind = tensors[name], random.choice(("value", "value", "type", "shape", "name", "gone", "more", "other"))
    if kind == "value":
        flat = value.clone().flatten()
        if not flat.numel():
            return ""
        place = random.randrange(flat.numel())
        before = flat[place].clone()
        flat[place] = random.choice((0, 1, float("nan") if value.is_floating_point() else 2))
        if torch.equal(flat[place], before):
            return ""
        tensors[name] = flat.reshape(value.shape)
    elif kind == "type":
        types = [kind for kind in (torch.float64, torch.float16, torch.int64, torch.bool) if kind != value.dtype]
        tensors[name] = value.to(random.choice(types))
    elif kind == "shape":
        tensors[name] = random.choice((value[None], value.flatten()[:1], torch.cat([value.flatten()] * 2)))
        if tensors[name].shape == value.shape:
            return ""
    elif kind == "other":
        alike = [other for other in sorted(tensors) if other != name and tensors[other].shape == value.shape]
        if not alike or torch.equal(tensors[alike[0]], value):
            return ""
        tensors[name], tensors[alike[0]] = tensors[alike[0]], value
    elif kind == "more":
        tensors[random.choice(("x", "a/b/c/d", "optimizer", "random/0/cpu2", "random/0/tpu", "\x1b[2J"))] = (
            value.clone()
        )
    else:
        del tensors[name]
        if kind == "name":
            tensors[random.choice((f"{name}x", name[:-1], ""))] = value
    save_file({name: value.contiguous() for name, value in tensors.items()}, path, metadata=metadata)
    return f"the tensor {name}: another {kind}" if kind not in ("gone", "more") else f"the tensor {name}: {kind}"


def change_header(path: Path, random: Random) -> str:
    """Change the JSON header of a safetensors file: names, types, shapes, offsets."""
    content = path.read_bytes()
    (size,) = struct.unpack("<Q", content[:8])
    if not json.loads(content[8 : 8 + size]):
        return ""
    header, change = mutated_json(content[8 : 8 + size].rstrip(), random)
    path.write_bytes(struct.pack("<Q", len(header)) + header + content[8 + size :])
    return f"header: {change}"


_CHANGES: tuple[Callable[[Path, Sequence[Path], Random], str], ...] = (
    _bytes, _bytes, _bytes, _tensors, _tensors, _swapped, _copied, _missing, _doubled, _renamed, _kind,
)  # fmt: skip
