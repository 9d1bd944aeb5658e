"""A name, or a file, -> DeviceProfile; the figures that makers of devices published.

Peaks are dense, without sparsity; bandwidths of links are of one direction. They are upper limits: no program reaches
them, so that times are lower limits, and ratios of times are worth more than times. What no maker publishes is assumed:
launches of 7 µs where Python starts each operation and 2.5 µs in a captured graph (what ResNet-1001 takes a kernel),
messages of 10 µs over NVLink, 20 µs over PCIe and 50 µs over Ethernet of 100 Gbit/s; a loss of five launches. Sums over
devices go on beside computing, and hosts take no time besides: both are queued ahead of a GPU.

==========  ============================================================================================
h100        NVIDIA H100 Tensor Core GPU datasheet, SXM, 80 GB HBM3
h200        NVIDIA H200 Tensor Core GPU datasheet, SXM, 141 GB HBM3e
a100        NVIDIA A100 Tensor Core GPU datasheet, SXM, 80 GB HBM2e
rtx4090     NVIDIA Ada GPU architecture whitepaper, appendix A (float16 and bfloat16 with float32 sums)
p40         NVIDIA Tesla P40 datasheet; float16 and float64 by its 1:64 and 1:32 of float32 (Pascal)
titan-rtx   NVIDIA Turing GPU architecture whitepaper, Titan RTX product page; NVLink bridge of 100 GB/s
cpu         one core of 3 GHz with two 256-bit multiply-add units (32 operations a cycle in float32), one channel of
            DDR4-3200; messages as gloo has them between two processes of a machine
==========  ============================================================================================
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from pararealize.argument_types import typed_arguments
from pararealize.errors import ProfileError

from .device import DeviceProfile, Link, Peaks

__all__ = ["PROFILES", "device_profile"]

TERA, GIGA = 1e12, 1e9
LAUNCH, LAUNCH_CAPTURED = 7e-6, 2.5e-6  # assumed of all GPUs
LOSS_KERNELS = 5  # of a cross-entropy: two forward, its seed and two backward
ETHERNET = Link(name="ethernet", latency=50e-6, bandwidth=12.5 * GIGA)


def _pcie(bandwidth: float) -> Link:
    return Link(name="pcie", latency=20e-6, bandwidth=bandwidth * GIGA)


def _nvlink(bandwidth: float) -> Link:
    return Link(name="nvlink", latency=10e-6, bandwidth=bandwidth * GIGA)


def _gpu(
    name: str, source: str, peaks: Peaks, *, bandwidth: float, memory: float, links: tuple[Link, ...]
) -> DeviceProfile:
    return DeviceProfile(
        name=name,
        source=f"{source}; launches and latencies assumed",
        peaks=peaks,
        bandwidth=bandwidth * GIGA,
        memory=memory * GIGA,
        launch=LAUNCH,
        launch_captured=LAUNCH_CAPTURED,
        step=LOSS_KERNELS * LAUNCH,
        links=(*links, ETHERNET),
    )


_HOPPER = Peaks(
    float64=34 * TERA, float32=67 * TERA, tf32=494.7 * TERA, bfloat16=989.4 * TERA, float16=989.4 * TERA
)  # fmt: skip
_ROWS = (
    _gpu("h100", "NVIDIA H100 datasheet, SXM", _HOPPER, bandwidth=3350, memory=80, links=(_nvlink(450), _pcie(64))),
    _gpu("h200", "NVIDIA H200 datasheet, SXM", _HOPPER, bandwidth=4800, memory=141, links=(_nvlink(450), _pcie(64))),
    _gpu(
        "a100",
        "NVIDIA A100 datasheet, SXM, 80 GB",
        Peaks(float64=9.7 * TERA, float32=19.5 * TERA, tf32=156 * TERA, bfloat16=312 * TERA, float16=312 * TERA),
        bandwidth=2039,
        memory=80,
        links=(_nvlink(300), _pcie(32)),
    ),
    _gpu(
        "rtx4090",
        "NVIDIA Ada GPU architecture whitepaper",
        Peaks(float64=1.29 * TERA, float32=82.6 * TERA, tf32=82.6 * TERA, bfloat16=165.2 * TERA, float16=165.2 * TERA),
        bandwidth=1008,
        memory=24,
        links=(_pcie(32),),
    ),
    _gpu(
        "p40",
        "NVIDIA Tesla P40 datasheet",
        Peaks(float64=0.367 * TERA, float32=11.76 * TERA, float16=0.184 * TERA),
        bandwidth=346,
        memory=24,
        links=(_pcie(16),),
    ),
    _gpu(
        "titan-rtx",
        "NVIDIA Turing GPU architecture whitepaper",
        Peaks(float64=0.51 * TERA, float32=16.3 * TERA, float16=65.2 * TERA),
        bandwidth=672,
        memory=24,
        links=(_pcie(16), _nvlink(50)),
    ),
    DeviceProfile(
        name="cpu",
        source="one AVX2 core of 3 GHz, one channel of DDR4-3200; dispatch and gloo's messages as measured on one",
        peaks=Peaks(float64=48 * GIGA, float32=96 * GIGA),
        bandwidth=25.6 * GIGA,
        memory=16 * GIGA,
        launch=10e-6,
        launch_captured=10e-6,
        step=100e-6,
        links=(Link(name="gloo", latency=500e-6, bandwidth=0.5 * GIGA), ETHERNET),
    ),
)
PROFILES: Mapping[str, DeviceProfile] = MappingProxyType({profile.name: profile for profile in _ROWS})


@typed_arguments(ProfileError)
def device_profile(device: str | Path | DeviceProfile) -> DeviceProfile:
    """The profile of a device.

    Args:
        device: one of ``PROFILES``; a JSON file that ``pararealize profile`` wrote; or a profile, which is given back.

    Raises:
        ProfileError: there is no such profile, and no such file; says which names come close. Or the file is of
            another version, or contradicts itself.

    Example:
        >>> device_profile("h100").link().name
        'nvlink'
        >>> device_profile("h10")
        Traceback (most recent call last):
            ...
        pararealize.errors.ProfileError: no device profile 'h10' (did you mean 'h100'?); pass one of ...
    """
    if isinstance(device, DeviceProfile):
        return device
    text = os.fspath(device)
    if text in PROFILES:
        return PROFILES[text]
    if isinstance(device, Path) or text.endswith(".json") or os.sep in text:
        return DeviceProfile.load(text)
    close = difflib.get_close_matches(text.lower(), PROFILES, n=1)
    meant = f" (did you mean {close[0]!r}?)" if close else ""
    raise ProfileError(
        f"no device profile {text!r}{meant}; pass one of {', '.join(PROFILES)}, or a .json file that pararealize "
        "profile wrote"
    )
