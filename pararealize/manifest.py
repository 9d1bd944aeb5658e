"""A folder of files -> a manifest of their sizes and digests, written last; and back, what is not as it was written.

manifest.json    what the folder holds, and of each file its size and SHA-256; schema and version

A JSON file -> a value of the form that its schema asks for. Tensors -> a digest of names, types, shapes and bytes.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import torch
from pydantic import ConfigDict, Field, NonNegativeInt, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from .errors import CheckpointError
from .files import check_name, file_digest, kind_of, read_file
from .table import shortened

__all__ = [
    "MANIFEST",
    "STRICT",
    "FileFact",
    "Manifest",
    "differences",
    "faults_of_files",
    "faults_of_schema",
    "read_document",
    "read_manifest",
    "tensors_digest",
    "unique_keys",
    "write_manifest",
]

T = TypeVar("T")

MANIFEST = "manifest.json"
SCHEMA, VERSION = "pararealize.manifest", 1
MOST_BYTES = 1 << 26  # of a JSON file of ours: the largest hold random states and the events of a long run
MOST_FAULTS, MOST_ORIGINS = 4, 3  # that are told
MOST_NEIGHBOURS = 64  # folders in which a file of another one is looked for

# no number for a text, no text for a number; not a number and infinity are values that losses have
STRICT = ConfigDict(strict=True, extra="forbid", allow_inf_nan=True)


Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class FileFact:
    """What a file, or its beginning, has to be.

    Attributes:
        size: in bytes.
        sha256: of them, in hexadecimal.
    """

    size: NonNegativeInt
    sha256: Sha256

    @staticmethod
    def of(path: Path, *, follow: bool = False) -> "FileFact":
        """What a file is now; with ``follow``, the one that a link leads to.

        Raises:
            OSError: it is no file, or cannot be read.
        """
        size, sha256 = file_digest(path, follow=follow)
        return FileFact(size=size, sha256=sha256)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Manifest:
    """What a folder holds.

    Attributes:
        schema: of this file.
        version: of the schema.
        holds: the kind of folder.
        facts: what distinguishes it from others of its kind, such as the step.
        files: by their names, without the manifest itself.
        sha256: of the three above, so that an entry that was lost is told.
    """

    schema: Literal["pararealize.manifest"] = "pararealize.manifest"
    version: Literal[1] = 1
    holds: str
    facts: dict[str, int | str]
    files: dict[str, FileFact]
    sha256: Sha256 = ""


_MANIFEST = TypeAdapter(Manifest)


def write_manifest(
    folder: Path, holds: str, facts: Mapping[str, int | str], files: Mapping[str, FileFact] | None = None
) -> None:
    """Write the manifest of all files that are in a folder.

    Args:
        folder: in which no file changes any more.
        holds: the kind of folder.
        facts: what distinguishes it from others of its kind.
        files: what they are, where somebody has looked already.

    Raises:
        OSError: a file cannot be read, or the manifest not written.
    """
    if files is None:
        files = {name: FileFact.of(folder / name) for name in sorted(entry.name for entry in folder.iterdir())}
    manifest = Manifest(holds=holds, facts=dict(facts), files=dict(files))
    manifest = dataclasses.replace(manifest, sha256=_digest(manifest))
    (folder / MANIFEST).write_bytes(_MANIFEST.dump_json(manifest, indent=1) + b"\n")


def read_manifest(folder: str | os.PathLike[str], holds: str, *, follow: bool = False) -> Manifest:
    """The manifest of a folder; with ``follow``, one that is a link to a file, too.

    Raises:
        CheckpointError: there is none, it is damaged, or it is that of another kind of folder.
    """
    try:
        kind = kind_of(folder, follow=True)
    except OSError as error:
        raise CheckpointError(f"{str(folder)!r} cannot be read: {error.strerror}") from error
    if kind != "folder":
        raise CheckpointError(f"{str(folder)!r} is {'not there' if kind is None else f'a {kind} and no folder'}")
    manifest = read_document(Path(folder) / MANIFEST, _MANIFEST, schema=SCHEMA, version=VERSION, follow=follow)
    if manifest.sha256 != (sha256 := _digest(manifest)):
        raise CheckpointError(
            f"{str(Path(folder) / MANIFEST)!r} is not what was written: the SHA-256 of its entries was "
            f"{manifest.sha256[:12]}… and is {sha256[:12]}…"
        )
    if manifest.holds != holds:
        raise CheckpointError(f"{str(folder)!r} holds {_shown(manifest.holds)} and no {holds}")
    return manifest


def _digest(manifest: Manifest) -> str:
    entries = {name: [fact.size, fact.sha256] for name, fact in manifest.files.items()}
    content = json.dumps([manifest.holds, manifest.facts, entries], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()


def faults_of_files(
    folder: Path, manifest: Manifest, names: Iterable[str] | None = None, *, follow: bool = False
) -> list[str]:
    """What is not as a manifest says, in words; where a file is that of another folder beside this one, that too.

    Args:
        folder: that the manifest is of.
        manifest: what was written.
        names: files that are looked at; all of the manifest's when left out. Each is read once.
        follow: take links for the files that they lead to, whose digests decide.
    """
    faults = []
    for name in manifest.files if names is None else names:
        try:
            if Path(name).name != name:
                raise OSError("this is no name of a file")
            fact = manifest.files[name]
            found = FileFact.of(folder / name, follow=follow)
        except KeyError:
            faults.append(f"{_shown(name)} is not in the manifest")
        except FileNotFoundError:
            faults.append(f"{_shown(name)} is missing")
        except OSError as error:
            faults.append(f"{_shown(name)}: {error.strerror or error}")
        else:
            if found != fact:
                faults.append(
                    f"{_shown(name)} is not what was written: {_difference(fact, found)}{_origin(folder, found)}"
                )
    return faults


def _difference(fact: FileFact, found: FileFact) -> str:
    if found.size != fact.size:
        return f"it had {fact.size} bytes and has {found.size}"
    return f"its SHA-256 was {fact.sha256[:12]}… and is {found.sha256[:12]}…"


def _origin(folder: Path, fact: FileFact) -> str:
    """Of which files beside this one, in this folder or the next ones, the content is; empty where of none."""
    origins = []
    neighbours = [folder]
    with contextlib.suppress(OSError):
        neighbours += sorted(other for other in folder.absolute().parent.iterdir() if other.name != folder.name)
    for other in neighbours[:MOST_NEIGHBOURS]:
        try:
            if kind_of(other / MANIFEST) != "file":
                continue
            manifest = read_document(other / MANIFEST, _MANIFEST, schema=SCHEMA, version=VERSION)
        except (OSError, CheckpointError):
            continue
        place = "" if other == folder else f" of {_shown(other.name)}"
        origins += [f"{_shown(name)}{place}" for name, known in sorted(manifest.files.items()) if known == fact]
    more = f", and {len(origins) - MOST_ORIGINS} more" if len(origins) > MOST_ORIGINS else ""
    return f", which is {', '.join(origins[:MOST_ORIGINS])}{more}" if origins else ""


# JSON files ----------------------------------------------------------------------------------------------------------


def read_document(path: Path, kind: TypeAdapter[T], *, schema: str, version: int, follow: bool = False) -> T:
    """The value that a JSON file holds, of the form that its schema asks for.

    Args:
        path: of the file, which is no link, unless ``follow``.
        kind: of the value.
        schema: that stands in the file.
        version: of the schema.
        follow: take a link for the file that it leads to.

    Raises:
        CheckpointError: it is no such file, cannot be read, is of another version, or has another form.
    """
    where = repr(str(path))
    try:
        text = read_file(check_name(path), most=MOST_BYTES, follow=follow).decode()
        values = json.loads(text, object_pairs_hook=unique_keys)
    except OSError as error:
        raise CheckpointError(f"{where} cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{where} cannot be read: it is not JSON: {error}") from error
    if not isinstance(values, dict) or "schema" not in values or "version" not in values:
        raise CheckpointError(f"{where} cannot be read: there is no schema and no version in it")
    if (values["schema"], values["version"]) != (schema, version) or values["version"] is True:
        raise CheckpointError(
            f"{where} is of schema {_shown(values['schema'])}, version {_shown(values['version'])}, and this is "
            f"{schema!r}, version {version}"
        )
    try:
        return kind.validate_json(text)
    except ValidationError as error:
        raise CheckpointError(f"{where} cannot be read: {faults_of_schema(error)}") from error


def unique_keys(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON, as the hook of ``json.loads``; of one with a key twice, readers take different values.

    Raises:
        ValueError: a key stands twice in it.
    """
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        key = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {_shown(key)} stands twice in one object")
    return values


def faults_of_schema(error: ValidationError) -> str:
    """Where a value has not the form that was asked for, in words."""
    faults = [
        f"{_shown('.'.join(map(str, fault['loc'])) or 'the whole')}: {fault['msg']}"
        for fault in error.errors(include_url=False, include_context=False, include_input=False)
    ]
    more = f"; and {len(faults) - MOST_FAULTS} more" if len(faults) > MOST_FAULTS else ""
    return "; ".join(faults[:MOST_FAULTS]) + more


def differences(earlier: Any, now: Any, name: str = "") -> list[str]:
    """Where two values of JSON differ, in words.

    Example:
        >>> differences({"lr": 0.1, "data": {"name": "digits"}}, {"lr": 0.1, "data": {"name": "mnist"}})
        ["data.name: 'digits' there, 'mnist' here"]
    """
    if isinstance(earlier, Mapping) and isinstance(now, Mapping):
        return [
            difference
            for key in dict.fromkeys([*earlier, *now])
            for difference in differences(earlier.get(key), now.get(key), f"{name}.{key}" if name else str(key))
        ]
    if earlier == now:
        return []
    return [f"{_shown(name)}: {shortened(repr(earlier), 200)} there, {shortened(repr(now), 200)} here"]


def _shown(value: Any) -> str:
    """A value of a file in an error: short, and without what would move the cursor of a terminal."""
    return shortened(value if isinstance(value, str) and value.isprintable() and value else ascii(value), 80)


# Tensors -------------------------------------------------------------------------------------------------------------


def tensors_digest(tensors: Mapping[str, torch.Tensor]) -> str:
    """The SHA-256 of names, types, shapes and bytes, in hexadecimal.

    Example:
        >>> one, two = (tensors_digest({"weight": torch.full((2,), value)}) for value in (1.0, 2.0))
        >>> len(one), one == two
        (64, False)
    """
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().resolve_conj().resolve_neg().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
