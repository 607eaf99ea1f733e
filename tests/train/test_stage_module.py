"""Forward and backward passes of a stage read nothing from the device: on a GPU each read waits for all queued kernels.

Where there is no GPU, a device of torch's fake tensors stands in: they have no values, so that reading one raises, and
they refuse to mix with tensors of the CPU. torch runs autograd only on devices that its build supports, so the device
is one that is registered in Python, in a process of its own.
"""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

from tests.tiny import DIMENSIONS, packed_sequence, tiny_config, tiny_model
from ufork.model.kernels import LayerKernels, choose_kernels, use_kernels
from ufork.model.layers.attention_kernels import AttentionKernel, sdpa_attention, varlen_attention
from ufork.model.layers.cross_entropy import ChunkKernels, add_chunk, elementwise_chunk_error
from ufork.model.layers.depth_attention import elementwise_depth_attention
from ufork.model.layers.normalization import fused_rms_norm
from ufork.model.unifork import UniFork
from ufork.train.config import TrainConfig
from ufork.train.optimization.parameter_groups import freeze_except
from ufork.train.stage_module import StageModule
from ufork.train.trainable import PREFIXES
from ufork.vocabulary import PackedSequence, Task

FAKE_DEVICE = "pretended"
TEXTS = st.lists(st.lists(st.integers(0, 9), min_size=2, max_size=6), min_size=1, max_size=4)

CUDA_KERNELS = LayerKernels(
    rms_norm=fused_rms_norm,
    depth_attention=elementwise_depth_attention,
    chunks=ChunkKernels(add=add_chunk, error=elementwise_chunk_error),
)
"""What runs on a GPU, before a compiler sees it."""


def register_fake_device() -> None:
    """Registers the device in this process, with what torch.utils.checkpoint asks of it."""
    from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

    module = _DummyBackendModule()
    module.get_amp_supported_dtype = lambda: [torch.bfloat16]
    _setup_privateuseone_for_python_backend(FAKE_DEVICE, backend_module=module)


@pytest.fixture(scope="module")
def child():
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context, initializer=register_fake_device) as executor:
        yield executor


def fake_stage(kernel: AttentionKernel, config: TrainConfig) -> StageModule:
    torch.set_default_dtype(torch.bfloat16)
    with torch.device(FAKE_DEVICE):
        module = StageModule(UniFork(tiny_config(), DIMENSIONS, kernel), config)
    use_kernels(module.model, CUDA_KERNELS)
    module.model.set_recompute(config.activation_checkpointing)
    freeze_except(module, config.trainable)
    return module


def train_on(module: StageModule, sequence: PackedSequence, device: str) -> list[str]:
    """Returns the names of the parameters that got a gradient."""
    term, _ = module(sequence.to(device), 100.0)
    if term.requires_grad:
        term.backward()
    return [name for name, parameter in module.named_parameters() if parameter.grad is not None]


def fake_passes(kernel: AttentionKernel, config: TrainConfig, max_examples: int) -> None:
    with FakeTensorMode() as mode:
        module = fake_stage(kernel, config)

    @settings(max_examples=max_examples, deadline=None, derandomize=True)
    @given(task=st.sampled_from(Task), texts=TEXTS, images=st.booleans(), room=st.integers(0, 20))
    def check(task, texts, images, room):
        length = sum(len(text) + 6 * images for text in texts)
        sequence = faked(packed_sequence(task, texts=texts, images=images, seq_len=length + room), mode)
        with mode, torch.autograd.set_multithreading_enabled(False):  # the mode holds for one thread
            assert train_on(module, sequence, FAKE_DEVICE) or config.trainable != "all"

    check()


def faked(sequence: PackedSequence, mode: FakeTensorMode) -> PackedSequence:
    fake = {name: mode.from_tensor(x) for name, x in vars(sequence).items() if isinstance(x, torch.Tensor)}
    return PackedSequence(**{**vars(sequence), **fake})


@pytest.mark.slow
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("kernel", [varlen_attention, sdpa_attention])
def test_no_packed_sequence_is_read(child, kernel, recompute):
    config = TrainConfig(activation_checkpointing=recompute, loss_weighting="uncertainty")
    child.submit(fake_passes, kernel, config, 30).result(timeout=300)


@pytest.mark.slow
@pytest.mark.parametrize("group", PREFIXES)
def test_a_phase_that_trains_one_group_reads_nothing(child, group):
    config = TrainConfig(trainable=(group,), loss_weighting="uncertainty")
    child.submit(fake_passes, varlen_attention, config, 10).result(timeout=300)


def read_something(name: str) -> str:
    register = {
        "item": lambda x: float(x.sum()),
        "nonzero": lambda x: x.nonzero(),
        "mask": lambda x: x[x > 0],
        "mixed devices": lambda x: x + torch.ones(3),
    }
    with FakeTensorMode():
        try:
            register[name](torch.ones(3, device=FAKE_DEVICE))
        except Exception as error:
            return type(error).__name__
    return ""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("item", "DataDependentOutputException"),
        ("nonzero", "DynamicOutputShapeException"),
        ("mask", "DynamicOutputShapeException"),
        ("mixed devices", "FakeTensorDeviceMismatchError"),
    ],
)
def test_the_fake_device_notices_reads(child, name, error):
    assert child.submit(read_something, name).result(timeout=120) == error


@pytest.mark.gpu
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("task", Task)
def test_a_gpu_is_never_waited_for(task, recompute):
    model = tiny_model().to("cuda", torch.bfloat16)
    model.kernel = varlen_attention
    use_kernels(model, choose_kernels(torch.device("cuda")))
    module = StageModule(model, TrainConfig(activation_checkpointing=recompute)).to("cuda")
    module.model.set_recompute(recompute)
    train_on(module, packed_sequence(task, texts=[[5, 6, 7], [8, 9]]), "cuda")  # compiles and allocates
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        train_on(module, packed_sequence(task, texts=[[5, 6], [8, 9, 10]]), "cuda")
    finally:
        torch.cuda.set_sync_debug_mode("default")
