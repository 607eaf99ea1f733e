"""Which device and precision a program gets for what it asks, with stand-ins for GPUs; and what is refused."""

import logging

import pytest
import torch

from ufork.errors import ConfigError
from ufork.infer.device import choose_device, choose_dtype, use_device


@pytest.fixture
def gpus(monkeypatch):
    """Makes torch claim GPUs of the compute capabilities given."""

    def claim(*capabilities):
        monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: True)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(capabilities))
        monkeypatch.setattr(torch.cuda, "device_count", lambda: len(capabilities))
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"card {device.index}")
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capabilities[device.index])
        monkeypatch.setattr(torch, "ones", lambda *_, device: torch.zeros(1))

    return claim


def test_the_first_gpu_is_the_default_and_others_have_numbers(gpus, caplog):
    gpus((9, 0), (8, 0))
    caplog.set_level(logging.INFO)
    assert choose_device() == choose_device("cuda") == torch.device("cuda:0")
    assert choose_device("cuda:1") == torch.device("cuda:1") and "device: cuda:1, card 1" in caplog.text
    assert choose_device("cpu") == torch.device("cpu")


def test_without_a_gpu_the_cpu_is_the_default_with_the_reason_logged(gpus, caplog):
    gpus()
    caplog.set_level(logging.INFO)
    assert choose_device() == torch.device("cpu")
    assert "device: cpu (torch" in caplog.text and "finds no NVIDIA GPU that it can use" in caplog.text


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:x", "cuda:-1", "mps", "", "cuda:99999", "CUDA"])
def test_names_of_no_device_are_refused_with_those_that_there_are(name):
    with pytest.raises(ConfigError, match="expected auto, cpu, cuda or cuda:N"):
        choose_device(name)


def test_a_gpu_that_is_not_there_is_refused(gpus):
    gpus((9, 0), (9, 0))
    with pytest.raises(ConfigError, match=r"device cuda:2: this process sees 2 GPU\(s\), cuda:0 to cuda:1"):
        choose_device("cuda:2")
    gpus()
    with pytest.raises(ConfigError, match="device cuda: torch .* finds no NVIDIA GPU"):
        choose_device("cuda")


@pytest.mark.skipif(torch.backends.cuda.is_built(), reason="this torch is a build for CUDA")
def test_a_build_for_cpus_is_named():
    with pytest.raises(ConfigError, match="is a build for CPUs; install a build for CUDA"):
        choose_device("cuda")


def test_a_gpu_that_fails_is_refused_by_name_and_left_by_default(gpus, monkeypatch):
    gpus((5, 0))

    def fail(*_, device):
        raise RuntimeError("CUDA error: no kernel image is available for execution on the device\nand more")

    monkeypatch.setattr(torch, "ones", fail)
    with pytest.raises(ConfigError, match="device cuda:0: CUDA error: no kernel image is available"):
        choose_device("cuda:0")
    assert choose_device() == torch.device("cpu")


def test_precision_is_bf16_on_gpus_that_compute_it_and_fp32_elsewhere(gpus):
    gpus((9, 0), (7, 5))
    new, old, cpu = torch.device("cuda:0"), torch.device("cuda:1"), torch.device("cpu")
    assert choose_dtype(new) == choose_dtype(new, "bf16") == choose_dtype(cpu, "bf16") == torch.bfloat16
    assert choose_dtype(old) == choose_dtype(cpu) == choose_dtype(new, "fp32") == torch.float32
    with pytest.raises(ConfigError, match="compute capability 7.5 and emulates bf16"):
        choose_dtype(old, "bf16")


def test_a_thread_selects_its_gpu_and_no_cpu(monkeypatch):
    selected = []
    monkeypatch.setattr(torch.cuda, "set_device", selected.append)
    use_device(torch.device("cpu"))
    use_device(torch.device("cuda:1"))
    assert selected == [torch.device("cuda:1")]
