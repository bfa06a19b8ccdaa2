"""How busy the GPUs of this process are, as NVML tells: looked at every two seconds in a thread, without any package.

    look = gpus.watch()
    look(True)  # from now on
    look()      # {"seconds": 120.0, "busy": 96.1, "joules": 61200.0, "bytes": 7.1e10}

Where there is no NVML, or it does not tell (parts of a GPU under MIG), there is nothing: {}.
"""

from __future__ import annotations

import ctypes
import os
import threading
import time
from collections.abc import Callable
from typing import Any

EVERY = 2.0


class Rates(ctypes.Structure):
    """nvmlUtilization_t: percent of the last second or so in which a kernel ran, and memory was read or written."""

    _fields_ = (("gpu", ctypes.c_uint), ("memory", ctypes.c_uint))


class Memory(ctypes.Structure):
    """nvmlMemory_t, in bytes."""

    _fields_ = (("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong))


class Watch:
    """Adds up what NVML says of some devices."""

    def __init__(self, nvml: Any, devices: list[ctypes.c_void_p]) -> None:
        self.nvml, self.devices = nvml, devices
        self.lock = threading.Lock()
        self.begin()

    def begin(self) -> None:
        with self.lock:
            self.percent, self.count, self.bytes = 0, 0, 0
            self.since, self.joules = time.monotonic(), self.energy()

    def energy(self) -> float:
        """Joules since the driver was loaded, of all devices; 0 where they do not count (before Volta)."""
        total, one = 0, ctypes.c_ulonglong()
        for device in self.devices:
            if self.nvml.nvmlDeviceGetTotalEnergyConsumption(device, ctypes.byref(one)) == 0:
                total += one.value
        return total / 1000

    def sample(self) -> None:
        rates, memory = Rates(), Memory()
        with self.lock:
            for device in self.devices:
                if self.nvml.nvmlDeviceGetUtilizationRates(device, ctypes.byref(rates)) == 0:
                    self.percent += rates.gpu
                    self.count += 1
                if self.nvml.nvmlDeviceGetMemoryInfo(device, ctypes.byref(memory)) == 0:
                    self.bytes = max(self.bytes, memory.used)

    def look(self, restart: bool = False) -> dict[str, float]:
        """Since it began: GPU-seconds looked at, those of them in which a kernel ran, energy, and the most memory that
        was in use on one device (also by others who share it)."""
        if restart:
            self.begin()
        self.sample()
        with self.lock:
            if not self.count:
                return {}
            seconds = (time.monotonic() - self.since) * len(self.devices)
            told = {"seconds": seconds, "busy": self.percent / self.count / 100 * seconds,
                    "joules": self.energy() - self.joules, "bytes": float(self.bytes)}  # fmt: skip
        return {name: round(value, 3) for name, value in told.items() if value}


def visible(nvml: Any, names: str | None) -> list[ctypes.c_void_p]:
    """Devices by CUDA_VISIBLE_DEVICES (numbers or UUIDs); None: all that there are."""
    found = []
    if names is None:
        count = ctypes.c_uint()
        nvml.nvmlDeviceGetCount_v2(ctypes.byref(count))
        names = ",".join(map(str, range(count.value)))
    for name in names.split(","):
        device = ctypes.c_void_p()
        if name.strip().isdigit():
            failed = nvml.nvmlDeviceGetHandleByIndex_v2(ctypes.c_uint(int(name)), ctypes.byref(device))
        else:
            failed = nvml.nvmlDeviceGetHandleByUUID(name.strip().encode(), ctypes.byref(device))
        if not failed:
            found.append(device)
    return found


def nothing(restart: bool = False) -> dict[str, float]:
    return {}


def watch(nvml: Any = None) -> Callable[..., dict[str, float]]:
    """Begin to look at this process's GPUs. Never raises: a run is worth more than its figures."""
    try:
        nvml = nvml or ctypes.CDLL("libnvidia-ml.so.1")
        devices = visible(nvml, os.environ.get("CUDA_VISIBLE_DEVICES")) if nvml.nvmlInit_v2() == 0 else []
        if not devices:
            return nothing
        here = Watch(nvml, devices)
    except (OSError, AttributeError):  # no driver, or one that is too old
        return nothing

    def go() -> None:
        while True:
            time.sleep(EVERY)
            here.sample()

    threading.Thread(target=go, daemon=True).start()
    return here.look
