"""Which devices the package can use."""
from __future__ import annotations

from dataclasses import dataclass

from . import _pmkvq
from ._pmkvq import Device

_GIB = 1 << 30


@dataclass(frozen=True)
class Devices:
    """CUDA devices, and why there is none. `str()` of it is one line for each, or the reason."""

    devices: list[Device]
    problem: str  # "" where there is a device. Else: the package has no CUDA, there is no driver, or no device.
    versions: str  # "CUDA 13.0, driver 13.0"; "" in a package without CUDA.

    def __str__(self) -> str:
        lines = [
            f"{d.id:<7} {d.name}, {d.free_bytes / _GIB:.1f} of {d.total_bytes / _GIB:.1f} GiB free, "
            f"capability {d.capability[0]}.{d.capability[1]}"
            for d in self.devices
        ]
        return "\n".join(lines) if lines else f"no CUDA device: {self.problem}"


def devices() -> Devices:
    """The CUDA devices that `device="cuda:N"` may name. Never raises."""
    versions, problem, found = _pmkvq.list_devices()
    return Devices(found, problem, versions)
