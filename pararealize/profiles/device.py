"""DeviceProfile: peak rates by element type, memory, launches and links of a device; a JSON file, and back."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Annotated, ClassVar, TypeAlias

from pydantic import Field, TypeAdapter
from pydantic.dataclasses import dataclass

from pararealize.argument_types import typed_fields
from pararealize.coarse.spec import STRICT
from pararealize.errors import OutputError, ProfileError
from pararealize.files import read_file, whole_file
from pararealize.plan.json_text import parse_json, read_json
from pararealize.plan.transfer import Transfer
from pararealize.table import aligned, count, duration

__all__ = ["VERSION", "DeviceProfile", "HostCosts", "Link", "Peaks"]

VERSION = 2  # 1 had neither host costs nor overlap
MOST_BYTES = 1 << 20  # of a file
# what is above 0, and far from where products of such numbers end
Amount: TypeAlias = Annotated[float, Field(gt=1e-30, le=1e30)]
Seconds: TypeAlias = Annotated[float, Field(ge=0, le=1e30)]
Share: TypeAlias = Annotated[float, Field(ge=0, le=1)]
Name: TypeAlias = Annotated[str, Field(min_length=1, max_length=200)]


@typed_fields(ProfileError)
@dataclass(frozen=True, slots=True, kw_only=True, config=STRICT)
class Peaks:
    """Operations a second by element type, a multiply-add being two; ``None`` where a device has not that type.

    ``tf32`` is what convolutions in float32 run in, as torch has it by default; where it is left out, they run in
    float32.
    """

    float32: Amount
    float64: Amount | None = None
    tf32: Amount | None = None
    bfloat16: Amount | None = None
    float16: Amount | None = None


@typed_fields(ProfileError)
@dataclass(frozen=True, slots=True, kw_only=True, config=STRICT)
class HostCosts:
    """What steps of several ranks take on their hosts besides operations and links: Python, hooks, process groups.

    On a GPU all of it is queued ahead of the device, and hides as long as the host is faster; so published profiles
    have 0. On a CPU the host is the device.

    Attributes:
        message: seconds that a message between segments takes in the place of a message of the link alone: posting it,
            counting it for the watchdog, a backward call that begins at it.
        step: seconds of a parareal step: its announcement, checks of its inputs, the loss for all ranks.
        microbatch: seconds of a stage of a pipeline for each microbatch, both ways.
        copies: seconds of a data-parallel step: its buckets and buffers.
        parameter: seconds besides for each tensor whose gradients copies average: its hook, its place in a bucket.
    """

    message: Seconds = 0.0
    step: Seconds = 0.0
    microbatch: Seconds = 0.0
    copies: Seconds = 0.0
    parameter: Seconds = 0.0


@typed_fields(ProfileError)
@dataclass(frozen=True, slots=True, kw_only=True, config=STRICT)
class Link:
    """What lies between two devices.

    Attributes:
        name: such as ``"nvlink"``.
        latency: seconds of the smallest message.
        bandwidth: bytes a second in one direction.
        reduce_latency: seconds of a round of a collective sum; that of a message when left out.
        reduce_bandwidth: bytes a second in such a round; likewise.
        overlap: the share of a collective sum that goes on beside computing and does not slow it down: 1 where the link
            works by itself, 0 where the cores that compute do the adding and copying, too.
        host: what ranks that this link connects take on their hosts.
    """

    name: Name
    latency: Seconds
    bandwidth: Amount
    reduce_latency: Seconds | None = None
    reduce_bandwidth: Amount | None = None
    overlap: Share = 1.0
    host: HostCosts = HostCosts()

    @property
    def transfer(self) -> Transfer:
        """Of a message."""
        return Transfer(self.latency, self.bandwidth)

    @property
    def message(self) -> Transfer:
        """Of a message between segments, what its ranks' hosts do for it included."""
        return Transfer(self.latency + self.host.message, self.bandwidth)

    @property
    def reduction(self) -> Transfer:
        """Of a round of a collective sum."""
        return Transfer(
            self.latency if self.reduce_latency is None else self.reduce_latency,
            self.bandwidth if self.reduce_bandwidth is None else self.reduce_bandwidth,
        )

    def __str__(self) -> str:
        return f"{self.name} ({duration(self.latency)}, {count(self.bandwidth)}B/s)"


@typed_fields(ProfileError)
@dataclass(frozen=True, slots=True, kw_only=True, config=STRICT)
class DeviceProfile:
    """How fast a device is.

    Attributes:
        version: of this format.
        name: of the device.
        source: where the figures come from.
        peaks: operations a second.
        bandwidth: bytes a second of its memory.
        memory: bytes.
        launch: seconds that every operation costs besides, where Python starts each.
        launch_captured: the same where a graph of them was captured and is replayed.
        step: seconds that a training step takes besides its operations: a loss, and beginning the backward pass.
        links: between such devices; the first is what a plan takes when it is told none.

    Raises:
        ProfileError: a number is out of range, or two links have one name.

    Example:
        >>> from pararealize.profiles import DeviceProfile, Link, Peaks
        >>> profile = DeviceProfile(
        ...     name="mine", source="a guess", peaks=Peaks(float32=1e13), bandwidth=5e11, memory=24e9, launch=5e-6,
        ...     launch_captured=2e-6, links=(Link(name="pcie", latency=2e-5, bandwidth=1.2e10),),
        ... )
        >>> DeviceProfile.from_json(profile.to_json()) == profile, profile.link().name, profile.peak("tf32")
        (True, 'pcie', 10000000000000.0)
    """

    version: int = VERSION
    name: Name
    source: Annotated[str, Field(max_length=2000)]
    peaks: Peaks
    bandwidth: Amount
    memory: Amount
    launch: Seconds
    launch_captured: Seconds
    step: Seconds = 0.0
    links: tuple[Link, ...] = ()

    WIDTH: ClassVar[int] = 100

    def __post_init__(self) -> None:
        if self.version != VERSION:
            raise ValueError(f"version is {self.version}, and this release has {VERSION}")
        names = [link.name for link in self.links]
        if len(set(names)) < len(names):
            raise ValueError(f"two links have one name: {', '.join(names)}")

    def peak(self, kind: str) -> float:
        """Operations a second in an element type.

        Raises:
            ProfileError: the profile says nothing of it.
        """
        value = getattr(self.peaks, kind, None)
        if value is None and kind == "tf32":
            return self.peaks.float32
        if value is None:
            known = [field.name for field in dataclasses.fields(self.peaks) if getattr(self.peaks, field.name)]
            raise ProfileError(
                f"the profile of {self.name} has no peak for {kind}, and for {', '.join(known)}; plan for a model of "
                "another element type, or add the peak to a profile of your own (DeviceProfile.to_json())"
            )
        return float(value)

    def link(self, name: str | None = None) -> Link:
        """The link of that name; the first when left out.

        Raises:
            ProfileError: there is none.
        """
        for link in self.links:
            if name in (None, link.name):
                return link
        names = ", ".join(link.name for link in self.links) or "none"
        raise ProfileError(
            f"the profile of {self.name} has no link {name!r}; it has {names}: name one of them, pass a Link of your "
            "own, or measure with torchrun and pararealize profile"
        )

    def to_json(self) -> str:
        """The profile as JSON text; :meth:`from_json` gives an equal one."""
        return _ADAPTER.dump_json(self, indent=2).decode() + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> DeviceProfile:
        """The profile of a JSON text.

        Raises:
            ProfileError: it is no JSON, of another version, incomplete, or contradicts itself; names every fault.
        """
        data = parse_json(text, "DeviceProfile.to_json()", ProfileError)
        version = data.get("version") if isinstance(data, dict) else None
        if version != VERSION:
            raise ProfileError(
                f"this is no device profile of version {VERSION} (its version is {version!r}); measure one with "
                "pararealize profile, or write one with DeviceProfile.to_json()"
            )
        return read_json(_ADAPTER, text, "device profile", ProfileError)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the profile into a JSON file, which appears when it is complete; one that is there is replaced.

        Raises:
            OutputError: it cannot be written.
        """
        try:
            with whole_file(path) as part:
                part.write_text(self.to_json(), encoding="utf-8")
        except OSError as error:
            raise OutputError(
                f"cannot write the profile {os.fspath(path)!r}: {error.strerror or error}; name a file in a folder "
                "that exists and that you may write to"
            ) from error
        return Path(path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> DeviceProfile:
        """The profile of a JSON file.

        Raises:
            ProfileError: it cannot be read, or see :meth:`from_json`.
        """
        try:
            text = read_file(path, most=MOST_BYTES, follow=True)
        except OSError as error:
            raise ProfileError(
                f"cannot read the profile {os.fspath(path)!r}: {error.strerror or error}; name a file that "
                "pararealize profile wrote"
            ) from error
        return cls.from_json(text)

    def __str__(self) -> str:
        peaks = [(f"{name}, operations/s", value) for name, value in dataclasses.asdict(self.peaks).items() if value]
        rows = [(name, count(value)) for name, value in peaks]
        rows += [("memory, bytes/s", count(self.bandwidth)), ("memory, bytes", count(self.memory))]
        rows += [("launch", duration(self.launch)), ("launch in a graph", duration(self.launch_captured))]
        rows += [("loss of a step", duration(self.step))]
        for link in self.links:
            rows.append((link.name, f"{duration(link.latency)}, {count(link.bandwidth)}B/s"))
            if link.overlap < 1:
                rows.append((f"{link.name}, sums beside computing", f"{100 * link.overlap:.0f} %"))
            host = dataclasses.asdict(link.host).items()
            rows += [(f"{link.name}, host: {name}", duration(value)) for name, value in host if value]
        return "\n".join([f"{self.name}: {self.source}", aligned(rows, "lr")])


_ADAPTER = TypeAdapter(DeviceProfile)
