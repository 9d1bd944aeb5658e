"""A network -> one folder, whole or not there, that says all of it; and back, every file as it was written.

network.json            how the original is built, the example's form, modes, versions; see network_record.py
plan.json               windows, segments, adapters, coarse blocks; of a converted network
weights.safetensors     its state dict, the digest of each tensor in it
buffers.safetensors     tensors that a state dict leaves out, where there are any
original.safetensors    weights of the original that it was made from, where its own were trained further
calibration.json        the report of its calibration, where there is one
manifest.json           of every file its size and SHA-256; and what a command adds: model.py, pictures

No path stands in it, nothing in it is unpickled, and no name in it imports anything. A training run's folder holds one
of these, ``network``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from pydantic import TypeAdapter
from torch import nn

from pararealize import models
from pararealize.argument_types import typed_arguments
from pararealize.distributed.checkpoint.state import check_tensors, save_state
from pararealize.distributed.checkpoint.tensor_file import open_tensors, write_tensors
from pararealize.errors import CheckpointError, ModelError, OutputError
from pararealize.files import kind_of, read_file, whole_folder
from pararealize.manifest import MANIFEST, Manifest, faults_of_files, read_document, read_manifest, write_manifest
from pararealize.plan.plan import Plan
from pararealize.tracing.hooks import hook_of, tensor_hook_of

from .model_source import ModelSource, source_of
from .network_record import SCHEMA, VERSION, Conversion, NetworkRecord, modes_of, versions
from .plain_attributes import named_plain_tensors

__all__ = ["HOLDS", "NETWORK", "Report", "SavedNetwork", "read_folder", "save_model", "write_folder"]

HOLDS = "network"  # what its manifest says that it is
NETWORK = "network"  # the folder's name within that of a training run
RECORD, PLAN, WEIGHTS, BUFFERS = "network.json", "plan.json", "weights.safetensors", "buffers.safetensors"
ORIGINAL, CALIBRATION = "original.safetensors", "calibration.json"
# what a folder may have that its manifest does not list: what systems put into folders, and is no loss where the folder
# is replaced; and what repositories of files have, which is read past and never replaced
BESIDE = frozenset({MANIFEST, "__pycache__"})
OF_SYSTEMS = frozenset({".DS_Store", "Thumbs.db", "desktop.ini"})
OF_REPOSITORIES = frozenset({".git", ".gitattributes", ".cache", "README.md"})
MOST_BYTES = 1 << 26
MOST_NAMES = 4  # that an error lists

_RECORD = TypeAdapter(NetworkRecord)


class Report(Protocol):
    """What is written as JSON, such as a :class:`~pararealize.calibration.report.Calibration`."""

    def to_json(self) -> str:
        """The text."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SavedNetwork:
    """A folder that was read, every file of it compared with its digest.

    Attributes:
        path: of the folder.
        record: what ``network.json`` says.
        plan: of a converted network; ``None`` of an original.
        calibration: the text of its report, where there is one.
        files: names of all files.
    """

    path: Path
    record: NetworkRecord
    plan: Plan | None
    calibration: str | None
    files: tuple[str, ...]

    @property
    def weights(self) -> Path:
        """The file of the state dict."""
        return self.path / WEIGHTS

    @property
    def buffers(self) -> Path | None:
        """The file of the other tensors, where there is one."""
        return self.path / BUFFERS if BUFFERS in self.files else None

    @property
    def original(self) -> Path | None:
        """The file of the original's own weights, where there is one."""
        return self.path / ORIGINAL if ORIGINAL in self.files else None

    def tensor_names(self) -> frozenset[str]:
        """The names of all tensors of the network that the folder has."""
        names: set[str] = set()
        for path in filter(None, (self.weights if self.record.has_weights else None, self.buffers)):
            with open_tensors(path) as file:
                names.update(file.forms)
        return frozenset(names)


# Writing -------------------------------------------------------------------------------------------------------------


@typed_arguments(OutputError, model=ModelError, source=ModelError)
def save_model(
    model: nn.Module, folder: str | os.PathLike[str], *, source: str | None = None, replace: bool = False
) -> Path:
    """Write a model that is not converted into a folder, for :func:`pararealize.load_original`.

    Args:
        model: any module.
        folder: see :meth:`PararealModule.save`.
        source: the name by which :func:`pararealize.models.build` gives it; known where that built it.
        replace: see :meth:`PararealModule.save`.

    Returns:
        The folder.

    Raises:
        OutputError: there is something already, or it cannot be written.
        ModelError: the name is not this model's, or it has hooks, which no file holds.
        CheckpointError: its state is more than tensors.

    Example:
        >>> from tempfile import mkdtemp
        >>> from pararealize import load_original, models
        >>> from pararealize.saving import save_model
        >>> folder = save_model(models.resnet20(), mkdtemp() + "/original")
        >>> type(load_original(folder)).__name__
        'PreActResNet'
    """
    built = models.built_as(model)
    record = record_of(
        model,
        model_source(type(model).__name__, source, None, built, check_tensors(model)),
        Conversion(),
        converted=False,
    )
    return write_folder(folder, record, None, lambda path: write_weights(model, path), replace=replace)


def model_source(
    class_name: str,
    name: str | None,
    arguments: Mapping[str, Any] | None,
    built: tuple[str, dict[str, Any]] | None,
    tensors: Mapping[str, torch.Tensor],
) -> ModelSource:
    """How an original is built: as the user says, or as it was, where that is known and still true."""
    if name is not None:
        known = built[1] if arguments is None and built is not None and built[0] == name else {}
        return source_of(class_name, name, known if arguments is None else arguments, tensors)
    if arguments is not None:
        raise ModelError(f"arguments={dict(arguments)!r} are there and no model=; name what was called with them")
    if built is not None:
        with contextlib.suppress(ModelError):  # changed since it was built: whoever loads it passes it
            return source_of(class_name, *built, tensors, asked=False)
    return source_of(class_name, None, {}, tensors)


def record_of(net: nn.Module, source: ModelSource, conversion: Conversion, **facts: Any) -> NetworkRecord:
    """What ``network.json`` says of a network as it is now.

    Raises:
        ModelError: it has hooks.
    """
    _check_hooks(net)
    state = check_tensors(net)
    return NetworkRecord(
        model=source,
        conversion=conversion,
        has_weights=not any(tensor.is_meta for tensor in state.values()),
        versions=versions(),
        **modes_of(net),
        **facts,
    )


def _check_hooks(net: nn.Module) -> None:
    modules = net.named_modules()
    hooks = [f"{name or 'the network'} has a {hook}" for name, module in modules if (hook := hook_of(module))]
    hooks += [f"{name} has the hook {hook}" for name, p in net.named_parameters() if (hook := tensor_hook_of(p))]
    if hooks:
        raise ModelError(
            f"no file holds hooks, and {'; '.join(hooks[:MOST_NAMES])}; remove them (handle.remove()) before saving, "
            "and register them on what is loaded"
        )


def write_folder(
    path: str | os.PathLike[str],
    record: NetworkRecord,
    plan: Plan | None,
    write: Callable[[Path], None],
    *,
    calibration: Report | None = None,
    replace: bool = False,
) -> Path:
    """Write a network's folder, which appears whole or not at all.

    Args:
        path: of the folder.
        record: what ``network.json`` says.
        plan: of a converted network.
        write: writes the files with tensors, and others, into the folder that it is given.
        calibration: its report.
        replace: take the place of a network's folder that is there.

    Raises:
        OutputError: there is something already, or it cannot be written.
    """
    path = Path(path)
    check_free(path, replace=replace)
    try:
        with whole_folder(path, replace=replace) as part:
            fill_folder(part, record, plan, write, calibration=calibration)
    except OutputError:
        raise
    except OSError as error:
        raise OutputError(
            f"cannot write the network's folder {str(path)!r}: {error.strerror or error}; what was there before is as "
            "it was; name another folder"
        ) from error
    return path


def fill_folder(
    folder: Path,
    record: NetworkRecord,
    plan: Plan | None,
    write: Callable[[Path], None],
    *,
    calibration: Report | None = None,
) -> None:
    """Write a network's files into a folder that gets its name later; the manifest comes last."""
    text = _RECORD.dump_json(record, indent=1).decode() + "\n"
    (folder / RECORD).write_text(text, encoding="utf-8")
    if plan is not None:
        (folder / PLAN).write_text(plan.to_json(), encoding="utf-8")
    if calibration is not None:
        (folder / CALIBRATION).write_text(calibration.to_json(), encoding="utf-8")
    write(folder)
    write_manifest(folder, HOLDS, {"model": record.model.class_name, "n": 0 if plan is None else plan.n})


def write_weights(net: nn.Module, folder: Path, original: nn.Module | None = None) -> None:
    """Write a network's tensors; those that share memory once, and none of a network on the meta device."""
    state = check_tensors(net)
    if any(tensor.is_meta for tensor in state.values()):
        return
    save_state(net, folder / WEIGHTS, once=True)
    others = {name: buffer for name, buffer in net.named_buffers() if name not in state}
    others |= {name: tensor for name, tensor in named_plain_tensors(net).items() if name not in state}
    if others:
        packed = {name: buffer.detach().cpu().contiguous().clone() for name, buffer in others.items()}
        write_tensors(folder / BUFFERS, packed)
    if original is not None:
        save_state(original, folder / ORIGINAL, once=True)


def check_free(path: Path, *, replace: bool) -> None:
    """Refuse a path where there is something else than a network's folder that may be replaced.

    Raises:
        OutputError: there is.
    """
    try:
        kind, target = kind_of(path), kind_of(path, follow=True)
        if kind is None:
            return
        is_network = target == "folder" and kind_of(path / MANIFEST) == "file"
        others = []
        if target == "folder" and not is_network:
            others = sorted(entry.name for entry in path.iterdir() if not _is_of_system(entry.name))
    except OSError as error:
        raise OutputError(f"cannot write to {str(path)!r}: {error.strerror}; name another folder") from error
    if not replace:
        raise OutputError(f"{str(path)!r} is there already; name another folder, or pass replace=True")
    if kind == "link" or target != "folder":
        raise OutputError(f"{str(path)!r} is a {kind} and no folder; name another folder")
    if is_network:
        try:
            strangers = _strangers(path, read_manifest(path, HOLDS))
        except CheckpointError as error:
            raise OutputError(f"{error}; it is not replaced, name another folder") from error
        others = strangers
    if others:
        raise OutputError(
            f"{str(path)!r} holds what no network's folder has ({_listed(others)}), so it is not replaced; name "
            "another folder"
        )


# Reading -------------------------------------------------------------------------------------------------------------


def find_folder(path: str | os.PathLike[str]) -> Path | None:
    """The network's folder that a path stands for: itself, or that within a training run's; ``None`` where it is none.

    Raises:
        CheckpointError: the system does not say what is there.
    """
    path = Path(path)
    try:
        for folder in (path, path / NETWORK):
            if kind_of(folder, follow=True) == "folder" and kind_of(folder / MANIFEST) is not None:
                return folder
    except OSError as error:
        raise CheckpointError(f"{str(path)!r} cannot be read: {error.strerror}; name a network's folder") from error
    return None


@typed_arguments(CheckpointError)
def read_folder(path: str | os.PathLike[str]) -> SavedNetwork:
    """What a network's folder holds, once every file is known to be what was written.

    Args:
        path: of the folder, or of a training run's that holds one.

    Raises:
        CheckpointError: it is no such folder; a file of it was changed, is missing, or is foreign to it; or the files
            contradict each other.
    """
    folder = find_folder(path)
    if folder is None:
        remedy = "name a folder that network.save(folder), or convert, calibrate or train with --out, has written"
        if kind_of(Path(path) / "restacking.json") == "file":
            file = str(Path(path) / "model.py")
            remedy = f"restack wrote it, and its model.py builds what it holds: models.build({file + ':load'!r})"
        raise CheckpointError(f"{os.fspath(path)!r} holds no saved network: there is no {MANIFEST} in it; {remedy}")
    with _with_remedy(folder):
        manifest = read_manifest(folder, HOLDS, follow=True)
        if strangers := [name for name in _strangers(folder, manifest) if name not in OF_REPOSITORIES]:
            raise CheckpointError(
                f"{str(folder)!r} holds what was not written with the network ({_listed(strangers)}); move it away"
            )
        if faults := faults_of_files(folder, manifest, follow=True):  # a cache's are links: their digests decide
            raise CheckpointError(f"{str(folder)!r}: {'; '.join(faults[:MOST_NAMES])}")
        record = read_document(folder / RECORD, _RECORD, schema=SCHEMA, version=VERSION, follow=True)
        plan = Plan.from_json(_text(folder / PLAN)) if record.converted else None
        calibration = _text(folder / CALIBRATION) if CALIBRATION in manifest.files else None
        if record.has_weights != (WEIGHTS in manifest.files):
            raise CheckpointError(f"{str(folder)!r} has no {WEIGHTS}, or one that {RECORD} knows nothing of")
    files = tuple(sorted(manifest.files))
    return SavedNetwork(path=folder, record=record, plan=plan, calibration=calibration, files=files)


@contextlib.contextmanager
def _with_remedy(folder: Path) -> Iterator[None]:
    """Say of every fault of a folder what helps."""
    try:
        yield
    except CheckpointError as error:
        raise CheckpointError(f"{error}; put the folder {folder.name!r} back from a copy, or save it anew") from error


def _strangers(folder: Path, manifest: Manifest) -> list[str]:
    names = sorted(entry.name for entry in folder.iterdir())
    return [name for name in names if name not in manifest.files and name not in BESIDE and not _is_of_system(name)]


def _is_of_system(name: str) -> bool:
    """Whether an operating system puts such a file beside others: a folder's view, or a file's attributes."""
    return name in OF_SYSTEMS or name.startswith("._")


def _text(path: Path) -> str:
    try:
        return read_file(path, most=MOST_BYTES, follow=True).decode()
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{str(path)!r} cannot be read: {error}") from error


def _listed(names: list[str]) -> str:
    return ", ".join([*names[:MOST_NAMES], *["…"] * (len(names) > MOST_NAMES)])
