"""Whether a machine has NVIDIA devices: by its files, or by a stand-in for the driver's library."""

import shutil
import subprocess

import pytest

from ufork.parallel import nvidia_devices
from ufork.parallel.nvidia_devices import has_cuda_device, uses_cuda


def test_devices_are_found_by_their_files_or_else_by_the_driver(tmp_path, monkeypatch):
    monkeypatch.setattr(nvidia_devices, "DEVICE_FILES", tmp_path)
    monkeypatch.setattr(nvidia_devices, "NVML_LIBRARY", str(tmp_path / "missing.so"))
    assert not has_cuda_device()
    monkeypatch.setattr(nvidia_devices, "_count_by_nvml", lambda: 1)  # WSL2: /dev/dxg only
    assert has_cuda_device()
    assert not uses_cuda({"CUDA_VISIBLE_DEVICES": ""})
    assert uses_cuda({"CUDA_VISIBLE_DEVICES": "0,1"})
    (tmp_path / "nvidia0").touch()
    monkeypatch.setattr(nvidia_devices, "_count_by_nvml", lambda: pytest.fail("may block on a driver that hangs"))
    assert has_cuda_device()


@pytest.mark.skipif(not shutil.which("cc"), reason="needs a C compiler")
@pytest.mark.parametrize(("status", "expected"), [(0, True), (9, False)])  # 9: the driver is not loaded
def test_the_driver_is_asked_through_its_management_library(tmp_path, monkeypatch, status, expected):
    library = tmp_path / "nvml.so"
    source = f"int nvmlInit_v2(void) {{return {status};}} int nvmlShutdown(void) {{return 0;}}"
    source += "int nvmlDeviceGetCount_v2(unsigned *count) {*count = 2; return 0;}"
    subprocess.run(["cc", "-shared", "-x", "c", "-o", library, "-"], input=source, text=True, check=True)
    monkeypatch.setattr(nvidia_devices, "DEVICE_FILES", tmp_path)
    monkeypatch.setattr(nvidia_devices, "NVML_LIBRARY", str(library))
    assert has_cuda_device() is expected
