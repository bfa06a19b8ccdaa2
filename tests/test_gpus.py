"""What is said of a GPU's use, by a stand-in for NVML that answers as the real one; tests/gpu has that."""

from __future__ import annotations

import time
from typing import Any

import pytest

from hpc.batch import gpus


class Nvml:
    """Two devices: at 40 % and 80 %, 300 W each (energy is counted in mJ). Fills what it is given, returns 0."""

    def __init__(self, start: int = 0, rates: int = 0) -> None:
        self.start, self.rates, self.born = start, rates, time.monotonic()

    def nvmlInit_v2(self) -> int:
        return self.start

    def nvmlDeviceGetCount_v2(self, count: Any) -> int:
        count._obj.value = 2
        return 0

    def nvmlDeviceGetHandleByIndex_v2(self, number: Any, device: Any) -> int:
        device._obj.value = number.value + 1
        return 0 if number.value < 2 else 2

    def nvmlDeviceGetHandleByUUID(self, name: bytes, device: Any) -> int:
        device._obj.value = 2
        return 0 if name == b"GPU-b" else 6

    def nvmlDeviceGetUtilizationRates(self, device: Any, rates: Any) -> int:
        rates._obj.gpu = 40 * device.value
        return self.rates

    def nvmlDeviceGetMemoryInfo(self, device: Any, memory: Any) -> int:
        memory._obj.used = device.value << 30
        return 0

    def nvmlDeviceGetTotalEnergyConsumption(self, device: Any, energy: Any) -> int:
        energy._obj.value = int((time.monotonic() - self.born) * 300_000)
        return 0


@pytest.mark.parametrize(("names", "busy", "devices"), [
    (None, 0.6, 2), ("0", 0.4, 1), ("GPU-b", 0.8, 1), ("0, 1", 0.6, 2), ("1,7", 0.8, 1)])  # fmt: skip
def test_devices_of_a_process(monkeypatch: pytest.MonkeyPatch, names: str | None, busy: float, devices: int) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if names is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", names)
    look = gpus.watch(Nvml())
    look(True)
    time.sleep(0.2)
    told = look()
    assert told["seconds"] == pytest.approx(0.2 * devices, abs=0.1)
    assert told["busy"] / told["seconds"] == pytest.approx(busy, abs=0.01)
    assert told["joules"] / told["seconds"] == pytest.approx(300, rel=0.1)
    assert told["bytes"] == (1 if names == "0" else 2) << 30
    assert look(True)["seconds"] < 0.05, "counted anew"


def test_where_nothing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert gpus.watch(Nvml())() == {}, "no device is ours"
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert gpus.watch(Nvml(start=9))() == {}, "the driver is not loaded"
    assert gpus.watch(Nvml(rates=3))() == {}, "MIG: not supported"


def test_between_looks_it_is_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpus, "EVERY", 0.01)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    seen: list[int] = []

    class Counting(Nvml):
        def nvmlDeviceGetUtilizationRates(self, device: Any, rates: Any) -> int:
            seen.append(device.value)
            return super().nvmlDeviceGetUtilizationRates(device, rates)

    gpus.watch(Counting())
    time.sleep(0.2)
    assert len(seen) > 6
