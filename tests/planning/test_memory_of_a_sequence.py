"""The planner's memory of a sequence between its passes, verified against what torch keeps for the backward."""

import pytest
import torch

from ufork.model.config import Dimensions, ModelConfig, RqHeadConfig
from ufork.model.initialization import initialize
from ufork.model.layers.attention import PackedAttention
from ufork.model.unifork import UniFork
from ufork.parallel.config import StageShape
from ufork.parallel.layout import Stage
from ufork.planning.memory import rank_memory
from ufork.planning.workload import Workload
from ufork.vocabulary import Task

CLOSE = 0.15
MODEL = ModelConfig(
    hidden_size=128,
    intermediate_size=320,
    num_attention_heads=4,
    num_key_value_heads=2,
    trunk_layers=4,
    understanding_layers=2,
    generation_layers=2,
    rq_head=RqHeadConfig(hidden_size=64, attention_size=96, num_attention_heads=4, num_blocks=2, dropout=0.0),
)
DIMENSIONS = Dimensions(vocab_size=64, codebook_size=32, code_width=16, codes_per_position=4)
SEQ_LEN = 640  # beyond the lengths at which a CPU keeps the scores of its attention, as no GPU does


def workload(precision: str, *, recompute: bool) -> Workload:
    return Workload(
        model=MODEL,
        dimensions=DIMENSIONS,
        global_batch_size=dict.fromkeys(Task, 1),
        seq_len=SEQ_LEN,
        num_lanes=1,
        precision=precision,
        recompute=recompute,
    )


def model_of(work: Workload) -> UniFork:
    model = UniFork(MODEL, DIMENSIONS)
    initialize(model, 0)
    model.set_recompute(work.recompute)
    return model.to(torch.bfloat16 if work.precision == "bf16" else torch.float32)


def bytes_kept_by(forward, model: UniFork) -> int:
    """Bytes that `forward` keeps for the backward pass, without the model's weights."""
    kept = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        result = forward()
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    assert result.requires_grad
    return sum(storage.nbytes() for pointer, storage in kept.items() if pointer not in weights)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("task", list(Task))
def test_a_sequence_through_the_whole_model(task, precision):
    work = workload(precision, recompute=False)
    only_this = Workload(**{**vars(work), "global_batch_size": {task: 1}})
    planned = rank_memory(only_this, Stage.COLOCATED, StageShape())
    model = model_of(work)
    kept = bytes_kept_by(lambda: model(work.sequence(task)), model)
    assert planned.activations + planned.head == pytest.approx(kept, rel=CLOSE)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("recompute", [False, True])
def test_a_further_sequence_in_flight_in_the_trunk(recompute, precision):
    work = workload(precision, recompute=recompute)
    two, three = (rank_memory(work, Stage.TRUNK, StageShape(), in_flight=sequences).activations for sequences in (2, 3))
    model, sequence = model_of(work), work.sequence(Task.GENERATION)
    kept = bytes_kept_by(lambda: model.trunk(sequence, PackedAttention(sequence, model.kernel)), model)
    assert three - two == pytest.approx(kept, rel=CLOSE)
