"""Classes of real failures, by the files and logs that they leave, independent of ufork's wording."""

import random
from collections import Counter

import pytest

from pipelines.launch.local_ranks import RankFailedError
from pipelines.status.failure_class import FailureClass, diagnose
from pipelines.status.failure_record import read_records, record_of, write_record
from ufork.config import Config
from ufork.data.shards.manifest import Manifest
from ufork.data.shards.storage import open_storage
from ufork.data.skipped_samples import SkippedSamples
from ufork.errors import (
    CheckpointError,
    ClusterError,
    ConfigError,
    DeviceMemoryError,
    InputError,
    LoaderError,
    MachineError,
    NonFiniteError,
    PeerError,
    SampleError,
    ShardError,
    StoppedError,
    StorageError,
    TokenizerError,
    UforkError,
    WorkerError,
)

KEY_ERROR = """Traceback (most recent call last):
  File "ufork/train/loop.py", line 244, in step
    width = sizes["width"]
KeyError: 'width'"""
GLOO_TIME_OUT = """Traceback (most recent call last):
  File "torch/distributed/distributed_c10d.py", line 3252, in all_reduce
    work.wait()
RuntimeError: [gloo/transport/tcp/unbound_buffer.cc:129] Timed out waiting 3000ms for send operation to complete"""
GLOO_WORDS = GLOO_TIME_OUT.rpartition("RuntimeError: ")[2]
NO_MEMORY = "RuntimeError: [enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 4000000000000000 bytes. Error code 12 (Cannot allocate memory)"  # noqa: E501
DEVICE_MEMORY = """torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.32 GiB. GPU 0 has a total capacity of 79.11 GiB of which 1.20 GiB is free."""  # noqa: E501
OOM_KILL = """slurmstepd: error: Detected 1 oom_kill event in StepId=17.0. Some of the step tasks have been OOM Killed.
srun: error: n2: task 3: Out Of Memory"""
WATCHDOG = """[rank0]:[E ProcessGroupNCCL.cpp:616] [Rank 0] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=12, OpType=ALLREDUCE, NumelIn=1, NumelOut=1, Timeout(ms)=600000) ran for 600012 milliseconds before timing out."""  # noqa: E501
REMOTE = """torch.distributed.DistBackendError: NCCL error in: ProcessGroupNCCL.cpp:1970, remote process exited or there was a network error, NCCL version 2.21.5
ncclRemoteError: A call failed possibly due to a network error or a remote process exiting prematurely."""  # noqa: E501
NCCL_SYSTEM = """torch.distributed.DistBackendError: NCCL error in: ProcessGroupNCCL.cpp:94, unhandled system error, NCCL version 2.27.5
ncclSystemError: System call (e.g. socket, malloc) or external library call failed or device error."""  # noqa: E501
NCCL_DUPLICATE = """torch.distributed.DistBackendError: NCCL error in: ProcessGroupNCCL.cpp:94, invalid usage, NCCL version 2.27.5
Duplicate GPU detected : rank 1 and rank 0 both on CUDA device 3b000"""  # noqa: E501
CLOSED = "[gloo/transport/tcp/pair.cc:537] Connection closed by peer [127.0.0.1]:24316"
DISK = "OSError: [Errno 28] No space left on device: 'runs/demo/phases/all/checkpoints/state.part'"


@pytest.mark.parametrize(
    ("exit_code", "log", "failure"),
    [
        (1, KEY_ERROR, FailureClass.CODE),
        (1, GLOO_TIME_OUT, FailureClass.TIME_OUT),
        (1, WATCHDOG, FailureClass.TIME_OUT),
        (1, NO_MEMORY, FailureClass.OUT_OF_MEMORY),
        (1, DEVICE_MEMORY, FailureClass.OUT_OF_MEMORY),
        (137, OOM_KILL, FailureClass.OUT_OF_MEMORY),
        (137, "", FailureClass.OUT_OF_MEMORY),
        (-9, "", FailureClass.OUT_OF_MEMORY),
        (
            0x8F,
            "slurmstepd: error: *** JOB 17 ON n1 CANCELLED AT 2026-11-25T03:00:00 DUE TO TIME LIMIT ***",
            "time-out",
        ),
        (1, "NVRM: Xid (PCI:0000:3b:00): 79, pid=1234, GPU has fallen off the bus.", FailureClass.NODE),
        (1, "RuntimeError: CUDA error: uncorrectable ECC error encountered", FailureClass.NODE),
        (1, "srun: error: Node failure on n2", FailureClass.NODE),
        (1, "Failed to initialize NVML: Driver/library version mismatch", FailureClass.NODE),
        (1, "torch.AcceleratorError: CUDA error: no kernel image is available for execution", FailureClass.NODE),
        (1, "torch.AcceleratorError: CUDA error: device-side assert triggered", FailureClass.CODE),
        (1, NCCL_SYSTEM, FailureClass.NODE),
        (1, NCCL_DUPLICATE, FailureClass.CONFIGURATION),
        (1, REMOTE, FailureClass.NODE),
        (1, DISK, FailureClass.STORAGE),
        (1, "ufork train: anything", FailureClass.OTHER),
        (75, "", FailureClass.STOPPED),
        (2, "", FailureClass.CONFIGURATION),
        (143, "", FailureClass.STOPPED),
        (139, "", FailureClass.OTHER),
        (None, "", FailureClass.OTHER),
        (255, "", FailureClass.OTHER),
    ],
)
def test_class_of_the_output_of_other_programs(exit_code, log, failure):
    found = diagnose(exit_code, log.splitlines())
    assert found.failure == failure, found
    assert found.line and found.advice


def raised_by(error):
    """The record of an error that has been raised."""
    try:
        raise error
    except type(error) as caught:
        return record_of(caught, exit_code=getattr(caught, "exit_code", 1), rank=3)


WORDS = "any words, which are free to change"


@pytest.mark.parametrize(
    ("error", "failure"),
    [
        (ConfigError(WORDS), FailureClass.CONFIGURATION),
        (ShardError(WORDS), FailureClass.DATA),
        (SampleError(WORDS), FailureClass.DATA),
        (InputError(WORDS), FailureClass.DATA),
        (TokenizerError(WORDS), FailureClass.DATA),
        (LoaderError(WORDS), FailureClass.DATA),
        (LoaderError(WORDS, process_exit_code=-9), FailureClass.OUT_OF_MEMORY),
        (LoaderError(WORDS, process_exit_code=-7), FailureClass.STORAGE),
        (WorkerError(WORDS, process_exit_code=-9), FailureClass.OUT_OF_MEMORY),
        (CheckpointError(WORDS), FailureClass.CHECKPOINT),
        (StorageError(WORDS), FailureClass.STORAGE),
        (MachineError(WORDS), FailureClass.NODE),
        (ClusterError(WORDS), FailureClass.CLUSTER),
        (NonFiniteError(WORDS), FailureClass.NON_FINITE),
        (PeerError(WORDS), FailureClass.NODE),
        (PeerError(WORDS, cause=CLOSED), FailureClass.NODE),
        (PeerError(WORDS, timed_out=True), FailureClass.TIME_OUT),
        (PeerError(WORDS, cause=GLOO_TIME_OUT), FailureClass.TIME_OUT),
        (StoppedError(WORDS), FailureClass.STOPPED),
        (UforkError(WORDS), FailureClass.OTHER),
        (RankFailedError(1, ShardError(WORDS), WORDS), FailureClass.DATA),
        (RankFailedError(1, KeyError("width"), WORDS), FailureClass.CODE),
        (RankFailedError(1, None, WORDS, process_exit_code=-9), FailureClass.OUT_OF_MEMORY),
        (RankFailedError(1, None, WORDS, process_exit_code=-11), FailureClass.OTHER),
        (KeyError("width"), FailureClass.CODE),
        (MemoryError(), FailureClass.OUT_OF_MEMORY),
        (DeviceMemoryError(WORDS, device="cuda:0"), FailureClass.OUT_OF_MEMORY),
        (RuntimeError(NO_MEMORY), FailureClass.OUT_OF_MEMORY),
        (RuntimeError("CUDA error: uncorrectable ECC error encountered"), FailureClass.NODE),
        (OSError(28, "No space left on device"), FailureClass.STORAGE),
        (RuntimeError(CLOSED), FailureClass.NODE),
    ],
)
def test_class_of_a_recorded_error_does_not_depend_on_its_wording(error, failure, tmp_path):
    write_record(tmp_path / "3.json", raised_by(error))
    records, damaged = read_records([tmp_path / "3.json"])
    assert damaged == []
    found = diagnose(getattr(error, "exit_code", 1), [], records=records)
    assert found.failure == failure, found
    assert found.line and found.advice
    if found.rank is not None:
        assert found.rank == (1 if isinstance(error, RankFailedError) else 3)


def test_advice_about_the_memory_of_gpus_names_the_keys_to_change():
    error = RankFailedError(1, DeviceMemoryError(WORDS, device="cuda:0"), WORDS)
    found = diagnose(1, [], records=[raised_by(error)])
    assert found.rank == 1
    assert all(key in found.advice for key in ("train.activation_checkpointing", "data.seq_len", "layout"))


def at(seconds, error, rank=0):
    return raised_by(error).model_copy(update={"time": float(seconds), "rank": rank})


CONSEQUENCES = [PeerError("lost"), PeerError("late", timed_out=True), RuntimeError(CLOSED), RuntimeError(GLOO_WORDS)]
CAUSES = [
    (ShardError("gone"), FailureClass.DATA),
    (KeyError("width"), FailureClass.CODE),
    (StorageError("full"), FailureClass.STORAGE),
    (RuntimeError(DEVICE_MEMORY), FailureClass.OUT_OF_MEMORY),
]


@pytest.mark.parametrize("consequence", CONSEQUENCES, ids=repr)
@pytest.mark.parametrize(("cause", "failure"), CAUSES, ids=lambda each: str(each)[:20])
def test_a_cause_counts_before_its_consequences_on_other_ranks(cause, failure, consequence):
    for cause_time, consequence_time in ((1, 2), (2, 1)):
        records = [at(consequence_time, consequence), at(cause_time, cause, rank=5)]
        random.Random(0).shuffle(records)
        found = diagnose(1, GLOO_TIME_OUT.splitlines(), records=records)
        assert (found.failure, found.rank) == (failure, 5)


def test_the_earliest_of_several_causes_counts():
    records = [at(3, KeyError("x"), rank=0), at(1, ShardError("first"), rank=2), at(2, StorageError("full"), rank=1)]
    assert diagnose(1, [], records=records).rank == 2


@pytest.mark.parametrize(("log", "failure"), [(OOM_KILL, FailureClass.OUT_OF_MEMORY), (KEY_ERROR, FailureClass.CODE)])
def test_a_cause_in_the_logs_counts_before_recorded_consequences(log, failure):
    """A rank that is killed records nothing."""
    assert diagnose(1, log.splitlines(), records=[at(1, each) for each in CONSEQUENCES]).failure == failure


@pytest.mark.parametrize("consequence", [GLOO_TIME_OUT, WATCHDOG, REMOTE])
@pytest.mark.parametrize(
    ("cause", "failure"), [(KEY_ERROR, FailureClass.CODE), (DEVICE_MEMORY, FailureClass.OUT_OF_MEMORY)]
)
def test_a_cause_in_the_logs_counts_before_the_output_of_other_ranks(cause, consequence, failure):
    for log in (f"{cause}\n{consequence}", f"{consequence}\n{cause}"):
        found = diagnose(1, log.splitlines())
        assert found.failure == failure
        assert found.line in cause


@pytest.mark.parametrize(
    ("state", "failure"),
    [
        ("OUT_OF_MEMORY", FailureClass.OUT_OF_MEMORY),
        ("TIMEOUT", FailureClass.TIME_OUT),
        ("NODE_FAIL", FailureClass.NODE),
    ],
)
def test_slurms_state_takes_precedence_over_records_and_logs(state, failure):
    assert diagnose(1, CLOSED.splitlines(), records=[at(1, ShardError("x"))], slurm_state=state).failure == failure
    assert diagnose(1, [], records=[at(1, ShardError("x"))], slurm_state="FAILED").failure == FailureClass.DATA


def test_a_job_that_ended_well_has_no_class():
    assert diagnose(0, KEY_ERROR.splitlines(), records=[at(1, KeyError("x"))]) is None


def test_a_long_message_is_cut_and_any_text_is_recorded(tmp_path):
    write_record(tmp_path / "0.json", raised_by(RuntimeError("x" * 1_000_000)))
    write_record(tmp_path / "1.json", raised_by(ShardError("lone surrogate \udc80, \x00 and \x1b[2J")))
    (records, damaged) = read_records(sorted(tmp_path.glob("*.json")))
    assert damaged == [] and len(records[0].message) < 40_000
    assert len(diagnose(1, [], records=records).line) <= 500


def no_shards(folder):
    Manifest.load(folder)


def shard_is_gone(folder):
    open_storage(folder).size("train-00000.tar")


def too_many_skipped(folder):
    skipped_samples = SkippedSamples(None, replica=0, max_share=0.05)
    skipped_samples.reasons = Counter({"empty": 500})
    skipped_samples.check(1000)


def misspelt(folder):
    Config.from_mapping({"stepz": 3}, origin="one.yaml")


@pytest.mark.parametrize(
    ("fails", "error", "failure"),
    [
        (no_shards, ShardError, FailureClass.DATA),
        (shard_is_gone, ShardError, FailureClass.DATA),
        (too_many_skipped, SampleError, FailureClass.DATA),
        (misspelt, ConfigError, FailureClass.CONFIGURATION),
    ],
)
def test_class_of_errors_as_they_are_raised(fails, error, failure, tmp_path):
    with pytest.raises(error) as raised:
        fails(tmp_path)
    found = diagnose(error.exit_code, [], records=[raised_by(raised.value)])
    assert found.failure == failure
    assert found.line == " ".join(str(raised.value).split())
