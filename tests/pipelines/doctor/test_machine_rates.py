"""Profiles made from measured rates; the measurements of a GPU run on the CPU here, with the same code."""

import pytest
import torch

from pipelines.doctor.device_rates import attention_rate, launch_seconds, model_product_rate
from pipelines.doctor.machine_rates import cuda_profile, measure_machine, ranks_for
from tests.planning.test_planner import tiny_workload
from ufork.planning.machine import PROFILES

RATES = {
    "peak": 7.5e14,
    "product": 6e14,
    "attention": 1.4e14,
    "copied": 2.9e12,
    "launch_seconds": 5e-6,
    "memory_bytes": 85e9,
    "devices": 8,
    "native_bf16": 1.0,
}


def test_one_gpu_takes_the_links_of_its_datasheet():
    profile = cuda_profile("NVIDIA A100-SXM4-80GB", RATES)
    assert profile.node_gb_per_s == PROFILES["a100"].node_gb_per_s
    assert profile.flops_per_s("bf16") == profile.flops_per_s("fp32") == pytest.approx(6e14)
    assert profile.element_bytes_per_s == pytest.approx(2.9e12)
    assert profile.kernels.launch_us == pytest.approx(5)


def test_a_rank_says_why_torch_finds_no_gpu():
    assert [ranks_for(num_gpus) for num_gpus in (0, 1, 2, 8)] == [1, 1, 2, 2]


def test_links_between_two_gpus_are_measured():
    links = {"sent": 3e11, "transfer_seconds": 1e-5, "summed": 2e11, "sum_seconds": 3e-5}
    profile = cuda_profile("NVIDIA H100 80GB HBM3", RATES | links)
    assert (profile.node_gb_per_s, profile.collective_gb_per_s) == (pytest.approx(300), pytest.approx(200))
    assert profile.network_gb_per_s == PROFILES["h100"].network_gb_per_s


@pytest.mark.parametrize(
    "measure",
    [
        lambda device: model_product_rate(tiny_workload(), device),
        lambda device: attention_rate(tiny_workload(segment_tokens=16), device),
        launch_seconds,
    ],
)
def test_rates_of_a_device_are_positive(measure):
    assert measure(torch.device("cpu")) > 0


@pytest.mark.slow
def test_two_ranks_measure_a_cpu():
    machine = measure_machine(tiny_workload())
    assert machine.name == "measured" and machine.kernels is None
    assert 0 < machine.network_gb_per_s and 0 < machine.collective_latency_us < 1e6


@pytest.mark.gpu
def test_a_gpu_is_measured():
    from pipelines.doctor.device_rates import device_rates

    rates = device_rates(tiny_workload(segment_tokens=64), torch.device("cuda"))
    assert 0 < rates["product"] and 1e12 < rates["peak"] < 1e16 and 1e11 < rates["copied"] < 1e14
    assert 1e-7 < rates["launch_seconds"] < 1e-3 and rates["attention"] > 0
