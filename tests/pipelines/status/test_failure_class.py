"""What real failures print, and the class that each is given."""

from collections import Counter

import pytest

from pipelines.status.failure_class import Failure, diagnose
from ufork.config import Config
from ufork.data.shards.manifest import Manifest
from ufork.data.shards.storage import open_storage
from ufork.data.skipped_samples import SkippedSamples
from ufork.errors import ConfigError, LoaderError, SampleError, ShardError, UforkError

KEY_ERROR = """ufork train: rank 1: KeyError: 'width'
Traceback (most recent call last):
  File "pipelines/launch/local_ranks.py", line 244, in _be_rank
    message = pickle.dumps((function(address, *args),))
KeyError: 'width'"""
GLOO_TIME_OUT = """Traceback (most recent call last):
  File "torch/distributed/distributed_c10d.py", line 3252, in all_reduce
    work.wait()
RuntimeError: [gloo/transport/tcp/unbound_buffer.cc:129] Timed out waiting 3000ms for send operation to complete"""
NO_MEMORY = """ufork train: rank 0: RuntimeError: [enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 4000000000000000 bytes. Error code 12 (Cannot allocate memory)"""  # noqa: E501
DEVICE_MEMORY = """torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.32 GiB. GPU 0 has a total capacity of 79.11 GiB of which 1.20 GiB is free."""  # noqa: E501
OOM_KILL = """slurmstepd: error: Detected 1 oom_kill event in StepId=17.0. Some of the step tasks have been OOM Killed.
srun: error: n2: task 3: Out Of Memory"""
WATCHDOG = """[rank0]:[E ProcessGroupNCCL.cpp:616] [Rank 0] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=12, OpType=ALLREDUCE, NumelIn=1, NumelOut=1, Timeout(ms)=600000) ran for 600012 milliseconds before timing out."""  # noqa: E501
REMOTE = """torch.distributed.DistBackendError: NCCL error in: ProcessGroupNCCL.cpp:1970, remote process exited or there was a network error, NCCL version 2.21.5
ncclRemoteError: A call failed possibly due to a network error or a remote process exiting prematurely."""  # noqa: E501
LOST_PEER = "ufork train: rank 0 of 2 (whole dp0 tp0) waited for a sum over the job; a rank died, hung or raised, see its log ([gloo/transport/tcp/pair.cc:537] Connection closed by peer [127.0.0.1]:24316)"  # noqa: E501
SHARD = "ufork train: rank 1: codes/tiny/train/understanding-00000.tar: cannot be read (No such file or directory); prepare the data again, or bring the file back"  # noqa: E501
DAMAGED = "ufork train: understanding: no sample of the mixture can be used: its JSON cannot be read: Expecting value: line 1 column 1 (char 0)"  # noqa: E501
SKIPPED = "sample skipped: tiny-7: its JSON cannot be read: Expecting value (later ones like it are only counted)"
DISK = "ufork train: the checkpoint after step 12 could not be written (whole/dp0-tp0.safetensors: [Errno 28] No space left on device); more than train.checkpoint.max_failed=3 failed: free space, and run the same command again"  # noqa: E501


@pytest.mark.parametrize(
    ("exit_code", "log", "failure"),
    [
        (1, KEY_ERROR, Failure.CODE),
        (1, GLOO_TIME_OUT, Failure.TIME_OUT),
        (1, WATCHDOG, Failure.TIME_OUT),
        (1, NO_MEMORY, Failure.OUT_OF_MEMORY),
        (1, DEVICE_MEMORY, Failure.OUT_OF_MEMORY),
        (137, OOM_KILL, Failure.OUT_OF_MEMORY),
        (137, "", Failure.OUT_OF_MEMORY),
        (-9, "", Failure.OUT_OF_MEMORY),
        (1, "ufork train: rank 1: died by SIGKILL; the machine may have run out of memory", Failure.OUT_OF_MEMORY),
        (
            0x8F,
            "slurmstepd: error: *** JOB 17 ON n1 CANCELLED AT 2026-11-25T03:00:00 DUE TO TIME LIMIT ***",
            "time-out",
        ),
        (1, "NVRM: Xid (PCI:0000:3b:00): 79, pid=1234, GPU has fallen off the bus.", Failure.NODE),
        (1, "RuntimeError: CUDA error: uncorrectable ECC error encountered", Failure.NODE),
        (1, "srun: error: Node failure on n2", Failure.NODE),
        (1, REMOTE, Failure.NODE),
        (1, LOST_PEER, Failure.NODE),
        (1, SHARD, Failure.DATA),
        (1, DAMAGED, Failure.DATA),
        (1, SKIPPED, Failure.OTHER),
        (1, "ufork train: rank 1: died by SIGSEGV", Failure.OTHER),
        (1, DISK, Failure.OTHER),
        (75, "ufork train: stopped by a signal after step 308; the same command goes on from there", Failure.STOPPED),
        (2, "ufork train: one.yaml: 1 value(s) refused\n  train.stepz: unknown key", Failure.CONFIGURATION),
        (143, "", Failure.STOPPED),
        (139, "", Failure.OTHER),
        (None, "", Failure.OTHER),
        (255, "", Failure.OTHER),
    ],
)
def test_class_of_what_was_printed(exit_code, log, failure):
    found = diagnose(exit_code, log.splitlines())
    assert found.failure == failure, found
    assert found.line and found.advice


def test_an_error_of_no_class_is_told_in_its_own_words():
    assert diagnose(1, ["align 1/12", "ufork train: rank 1: died by SIGSEGV", ""]).line.endswith("died by SIGSEGV")


@pytest.mark.parametrize("consequence", [LOST_PEER, GLOO_TIME_OUT, WATCHDOG, REMOTE])
@pytest.mark.parametrize(
    ("cause", "failure"),
    [(SHARD, Failure.DATA), (KEY_ERROR, Failure.CODE), (DEVICE_MEMORY, Failure.OUT_OF_MEMORY), (DISK, Failure.OTHER)],
)
def test_the_cause_is_told_rather_than_what_the_other_ranks_saw_of_it(cause, consequence, failure):
    for log in (f"{cause}\n{consequence}", f"{consequence}\n{cause}"):
        found = diagnose(1, log.splitlines())
        assert found.failure == failure
        assert found.line in cause


@pytest.mark.parametrize(
    ("state", "failure"),
    [("OUT_OF_MEMORY", Failure.OUT_OF_MEMORY), ("TIMEOUT", Failure.TIME_OUT), ("NODE_FAIL", Failure.NODE)],
)
def test_slurms_word_counts_more_than_the_logs(state, failure):
    assert diagnose(1, LOST_PEER.splitlines(), slurm_state=state).failure == failure
    assert diagnose(1, SHARD.splitlines(), slurm_state="FAILED").failure == Failure.DATA


def test_a_job_that_ended_well_has_no_class():
    assert diagnose(0, KEY_ERROR.splitlines()) is None


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


def loader_is_gone(folder):
    raise LoaderError("loader process 0 (pid 7): gone, exit code -11; was it killed for want of memory?")


@pytest.mark.parametrize(
    ("fails", "error", "failure"),
    [
        (no_shards, ShardError, Failure.DATA),
        (shard_is_gone, ShardError, Failure.DATA),
        (too_many_skipped, SampleError, Failure.DATA),
        (loader_is_gone, LoaderError, Failure.DATA),
        (misspelt, ConfigError, Failure.CONFIGURATION),
    ],
)
def test_our_own_errors_are_known_by_what_they_say(fails, error, failure, tmp_path):
    with pytest.raises(error) as raised:
        fails(tmp_path)
    assert isinstance(raised.value, UforkError)
    lines = f"ufork train: rank 3: {raised.value}".splitlines()
    assert diagnose(error.exit_code, lines).failure == failure
