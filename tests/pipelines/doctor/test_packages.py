"""Packages that are absent, broken, slow, or an unrelated one of the same name."""

import importlib.metadata

import pytest

from pipelines.doctor import packages
from pipelines.doctor.finding import Mark

NVIDIA = {
    "apex.normalization.fused_layer_norm": "def fused_rms_norm_affine(): ...",
    "apex.optimizers": "class FusedAdam: ...",
    "apex.multi_tensor_apply": "",
    "apex.normalization": "",
    "apex": "",
}
EXTENSIONS = {"fused_layer_norm_cuda": "", "amp_C": ""}


@pytest.mark.parametrize(
    ("installed", "mark", "found"),
    [
        ({}, Mark.ABSENT, "not installed"),
        ({"apex": "from pyramid.session import UnencryptedCookieSessionFactoryConfig"}, Mark.PROBLEM, "web toolkit"),
        (NVIDIA, Mark.PROBLEM, "without its CUDA extensions"),
        (NVIDIA | EXTENSIONS, Mark.OK, "fused_rms_norm_affine, FusedAdam"),
    ],
    ids=["none", "the web toolkit", "Python alone", "whole"],
)
def test_apex_is_recognized_by_its_kernels(machine, installed, mark, found):
    for name, text in installed.items():
        machine.package(name, text)
    finding = packages.apex(machine.around())
    assert (finding.mark, finding.breaks) == (mark, False)
    assert found in finding.found


def test_flash_attention_that_cannot_be_imported_has_the_reason(machine):
    machine.package("flash_attn", "raise ImportError('flash_attn_2_cuda.so: undefined symbol: _ZN3c105ErrorC2')")
    finding = packages.flash_attention(machine.around())
    assert finding.mark is Mark.PROBLEM and "undefined symbol" in finding.found


def test_flash_attention_that_crashes_on_import_does_not_crash_the_doctor(machine):
    machine.package("flash_attn", "import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)")
    finding = packages.flash_attention(machine.around())
    assert finding.mark is Mark.PROBLEM and "SIGSEGV" in finding.found


def test_missing_flash_attention_is_absent_not_a_problem(machine):
    assert packages.flash_attention(machine.around()).mark is Mark.ABSENT


TORCH = {"version": "2.13.0", "cuda": "12.8", "nccl": "2.27.5", "devices": [], "trouble": "driver too old (11040)"}


@pytest.mark.parametrize(
    ("probed", "has_gpu", "mark", "found"),
    [
        ({"devices": ["H100, 80 GB"] * 2}, True, Mark.OK, "NCCL 2.27.5, uses 2 x H100, 80 GB"),
        ({}, True, Mark.PROBLEM, "cannot use the GPUs: driver too old (11040)"),
        ({"cuda": None, "nccl": None}, False, Mark.OK, "built for CPUs, without NCCL"),
    ],
)
def test_torch_that_cannot_use_the_gpus_here_is_a_problem(probed, has_gpu, mark, found):
    finding = packages.torch_finding(TORCH | probed, has_gpu=has_gpu)
    assert finding.mark is mark and found in finding.found


def test_a_build_for_cpus_on_a_machine_with_gpus_has_the_command_that_replaces_it():
    probed = TORCH | {"version": "2.13.0+cpu", "cuda": None, "nccl": None, "trouble": "not compiled with CUDA"}
    finding = packages.torch_finding(probed, has_gpu=True)
    assert finding.mark is Mark.PROBLEM and "built for CPUs" in finding.found
    assert finding.remedy.startswith("pip install --force-reinstall torch==2.13.0 --index-url https://download")


def test_a_required_package_that_cannot_be_imported_breaks_the_run(machine):
    machine.package("simplejpeg", "raise ImportError('libturbojpeg.so.0: cannot open shared object file')")
    finding = packages.simplejpeg(machine.around())
    assert finding.breaks and "cannot open shared object file" in finding.found


def test_a_required_package_that_is_slow_to_import_is_not_broken(machine):
    machine.package("megatron", "import time\ntime.sleep(600)")
    finding = packages.megatron_core(machine.around(timeout_seconds=2))
    assert (finding.mark, finding.breaks) == (Mark.SLOW, False)
    assert "slow to import" in finding.found and "timed out after 2 s" in finding.found


def test_packages_that_some_inputs_need_are_named_if_missing(machine, monkeypatch):
    def version(package):
        if package == "py3langid":
            raise importlib.metadata.PackageNotFoundError(package)
        return "1.0"

    monkeypatch.setattr(packages.metadata, "version", version)
    finding = packages.data_preparation(machine.around())
    assert (finding.mark, finding.found) == (Mark.ABSENT, "no py3langid; pyarrow 1.0, datasets 1.0")
