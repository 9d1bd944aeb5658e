"""How fast a device is, published or measured, and what a network takes on it: seconds and bytes without the device.

device        DeviceProfile: peak rates, memory, launches and links of a device; a JSON file, and back
catalogue     a name, or a file, -> DeviceProfile; the published figures
roofline      operations, DeviceProfile, batch -> seconds: the larger of computing and moving memory, and launches
machine       this machine -> DeviceProfile, measured
ranks         the ranks of a process group -> Link, measured
"""

from .catalogue import PROFILES, device_profile
from .device import DeviceProfile, HostCosts, Link, Peaks
from .machine import measure_device
from .ranks import measure_link
from .roofline import Roofline

__all__ = [
    "PROFILES",
    "DeviceProfile",
    "HostCosts",
    "Link",
    "Peaks",
    "Roofline",
    "device_profile",
    "measure_device",
    "measure_link",
]
