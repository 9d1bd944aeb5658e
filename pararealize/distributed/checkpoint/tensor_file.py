"""Tensors by name -> one safetensors file with the digest of each; and back, checked, also from what torch.save wrote.

The digests stand in the file's metadata, so that any reader of safetensors can still open it. A file of another program
has none: what changed in its values since then cannot be known. A file of ``torch.save`` has checksums of its own.
"""

import contextlib
import hashlib
import json
import os
import re
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from pararealize.errors import CheckpointError
from pararealize.files import open_file
from pararealize.manifest import tensors_digest

__all__ = ["ENTRY", "TensorFile", "file_fact", "open_tensors", "write_tensors"]

# The entry of the metadata, JSON: digests of the tensors by name, and what else the writer says of them. It is one,
# since safetensors writes several in any order. Where a flipped bit has changed its name, its beginning tells.
ENTRY, BEGIN = "pararealize.sha256", '{"pararealize": 2'
_SAMPLES = 256  # places in a file
ZIP = b"PK\x03\x04"
PICKLE = re.compile(rb"\x80[\x02-\x05]")
OLDEST = bytes.fromhex(
    "6cfc9c46f9206aa85019"
)  # in files of torch.save that are a row of pickles, as all were before 1.6
TYPES = {
    "BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8, "I16": torch.int16, "I32": torch.int32,
    "I64": torch.int64, "F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64,
    "C64": torch.complex64,
}  # fmt: skip
DAMAGED = "it is damaged, take another copy of it, or an earlier one"


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorFile:
    """Tensors of an open file.

    Attributes:
        forms: by name, a tensor on the meta device of the same shape and type.
        facts: what else the writer said of them, see :func:`write_tensors`; ``None`` where nothing is known.
        tensor: reads the tensor of a name, and raises a :class:`~pararealize.errors.CheckpointError` where it is not
            what was written.
    """

    forms: Mapping[str, torch.Tensor]
    facts: Any
    tensor: Callable[[str], torch.Tensor]


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor], facts: Any = None) -> None:
    """Write a safetensors file.

    Args:
        path: of the file.
        tensors: by name.
        facts: what else is known of them, as JSON knows it.

    Raises:
        OSError, SafetensorError: it cannot be written.
    """
    digests = {name: tensors_digest({name: tensor}) for name, tensor in sorted(tensors.items())}
    content = {"pararealize": 2, "facts": facts, "facts' sha256": _digest(facts), "sha256": digests}
    save_file(dict(tensors), str(path), metadata={ENTRY: json.dumps(content)})


def file_fact(path: str | os.PathLike[str]) -> tuple[str, str]:
    """A digest of a file's size, beginning, end, and some bytes in between; and the same in words, with its name.

    The digests of a file of :func:`write_tensors` stand in its beginning, the checksums of one of ``torch.save`` at its
    end.
    """
    digest = hashlib.sha256()
    with _damage(path), open_file(path, follow=True) as file:
        size = os.fstat(file.fileno()).st_size
        digest.update(f"{size}".encode())
        for place, count in (
            (0, 1 << 20),
            *((i * size // _SAMPLES, 64) for i in range(_SAMPLES)),
            (max(0, size - (1 << 20)), 1 << 20),
        ):
            file.seek(place)
            digest.update(file.read(count))
    return digest.hexdigest(), f"{os.fspath(path)!r} (digest {digest.hexdigest()[:8]})"


@contextlib.contextmanager
def open_tensors(path: str | os.PathLike[str]) -> Iterator[TensorFile]:
    """The tensors of a file of safetensors or of ``torch.save``; nothing is unpickled but tensors.

    Raises:
        CheckpointError: it is no such file, it is damaged, or there is more in it than tensors by name.
    """
    with contextlib.ExitStack() as stack:
        with _damage(path):
            with open_file(path, follow=True) as file:
                begin = file.read(64)
            if PICKLE.match(begin):
                written = "of the format that torch.save had before PyTorch 1.6, without checksums"
                raise CheckpointError(
                    f"{os.fspath(path)!r} is {written if OLDEST in begin else 'a pickle, and no file of torch.save'}; "
                    "load it with torch.load(..., weights_only=True), or in the program that wrote it, and pass the "
                    "state dict or save it anew"
                )
            opened = _of_torch(path) if begin.startswith(ZIP) else _of_safetensors(path, stack)
        yield opened


@contextlib.contextmanager
def _damage(path: str | os.PathLike[str]) -> Iterator[None]:
    """Whatever a reader says of a file that is not what it should be, as an error of the checkpoint."""
    try:
        yield
    except CheckpointError:
        raise
    except OSError as error:
        raise CheckpointError(
            f"{os.fspath(path)!r} cannot be read: {ascii(error.strerror or str(error))[1:-1]}; name a file of "
            "save_state, or use load_sharded for a folder"
        ) from error
    except Exception as error:  # unpicklers and parsers of foreign bytes raise what they meet with
        raise CheckpointError(
            f"{os.fspath(path)!r} cannot be read as a safetensors file or one of torch.save: "
            f"{type(error).__name__}: {ascii(str(error))[1:300]}; {DAMAGED}"
        ) from error


def _of_safetensors(path: str | os.PathLike[str], stack: contextlib.ExitStack) -> TensorFile:
    file = stack.enter_context(safe_open(os.fspath(path), framework="pt"))
    forms = {name: _form(file, name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    metadata: dict[str, str] = file.metadata() or {}
    digests = facts = None
    if (name := next((name for name, text in metadata.items() if text.startswith(BEGIN)), ENTRY)) != ENTRY:
        raise CheckpointError(f"{os.fspath(path)!r} has digests under another name, {name!a}; {DAMAGED}")
    if (text := metadata.get(ENTRY)) is not None:
        content = json.loads(text)
        if text.startswith(BEGIN):
            digests, facts = content["sha256"], content["facts"]
            if content["facts' sha256"] != _digest(facts):
                raise CheckpointError(f"{os.fspath(path)!r} says other things than were written into it; {DAMAGED}")
        else:  # of an earlier version
            digests = content
        if not isinstance(digests, dict) or digests.keys() != forms.keys():
            raise CheckpointError(f"{os.fspath(path)!r} has other tensors than were written into it; {DAMAGED}")

    def tensor(name: str) -> torch.Tensor:
        with _damage(path):
            value: torch.Tensor = file.get_tensor(name)
            if digests is not None and tensors_digest({name: value}) != digests[name]:
                raise CheckpointError(
                    f"{os.fspath(path)!r} is damaged: the tensor {name!a} is not what was written; take another "
                    "copy of it, or an earlier one"
                )
        return value

    return TensorFile(forms=forms, facts=facts, tensor=tensor)


def _digest(facts: Any) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _form(file: Any, name: str) -> torch.Tensor:
    part = file.get_slice(name)
    dtype = TYPES.get(part.get_dtype()) or file.get_tensor(name).dtype
    return torch.empty(part.get_shape(), dtype=dtype, device="meta")


def _of_torch(path: str | os.PathLike[str]) -> TensorFile:
    """torch.load does not look at the checksums of a file (PyTorch compiles its reader of zip files without them)."""
    with open_file(path, follow=True) as file:
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
                raise ValueError("torch.save compresses nothing, and this is compressed")
            if len({entry.filename for entry in entries}) != len(entries):
                raise ValueError("two of its entries have one name")
            if sum(entry.file_size for entry in entries) > os.fstat(file.fileno()).st_size:
                raise ValueError("its entries overlap")
            if (damaged := archive.testzip()) is not None:
                raise ValueError(f"the checksum of its entry {damaged} is wrong")
        file.seek(0)
        with warnings.catch_warnings():  # of sparse tensors, which are refused below
            warnings.simplefilter("ignore")
            try:
                value = torch.load(file, map_location="cpu", weights_only=True)
            except Exception as error:  # of an intact file: unpicklers raise what they meet with
                raise CheckpointError(
                    f"{os.fspath(path)!r} is a file of torch.save with more in it than tensors by name, such as a "
                    f"whole module, or another archive ({type(error).__name__}: {ascii(_first_line(error))[1:-1]}); "
                    "save model.state_dict() in the program that wrote it"
                ) from error
    if not isinstance(value, dict) or not all(isinstance(name, str) for name in value):
        raise CheckpointError(f"{os.fspath(path)!r} holds a {type(value).__name__}, and no tensors by name")
    strangers = [name for name, tensor in value.items() if not _is_plain(tensor)]
    if strangers:
        listed = ", ".join(ascii(name)[:80] for name in strangers[:3])
        raise CheckpointError(
            f"{os.fspath(path)!r} holds more than tensors with values ({len(strangers)} others: {listed}); load it "
            "with torch.load(..., weights_only=True), and pass the state dict in it"
        )
    forms = {name: torch.empty(tensor.shape, dtype=tensor.dtype, device="meta") for name, tensor in value.items()}
    return TensorFile(forms=forms, facts=None, tensor=value.__getitem__)


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0][:200]


def _is_plain(value: object) -> bool:
    """Whether it is a dense tensor in memory."""
    return (
        isinstance(value, torch.Tensor)
        and value.layout is torch.strided
        and value.device.type == "cpu"
        and not value.is_quantized
        and not value.is_nested
    )
