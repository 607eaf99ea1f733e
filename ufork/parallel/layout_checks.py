"""Checks that a layout suits the model and data it trains: pure, so that they run before any process group exists.

LayoutConfig + ranks + batch sizes -> make_layout: shapes and ranks add up, every replica runs equally many sequences
  + shape of the model             -> a forked model is a Y: no task has layers in the trunk
  + sizes of the model             -> every tp divides what it partitions
  + seq_len, data lanes            -> hidden states and lanes are shared evenly
  + in_flight                      -> the schedule cannot deadlock
-> Layout, or a ConfigError that names the key, both values and the remedy
"""

from collections.abc import Mapping

from ufork.errors import ConfigError
from ufork.model.config import Dimensions, ModelConfig
from ufork.parallel.config import LayoutConfig
from ufork.parallel.layout import Layout, Stage, make_layout
from ufork.parallel.schedule.in_flight import require_progress, sequences_in_flight
from ufork.vocabulary import Task


def checked_layout(
    config: LayoutConfig,
    *,
    num_ranks: int,
    global_batch_size: Mapping[Task, int],
    model: ModelConfig,
    dimensions: Dimensions,
    seq_len: int,
    num_lanes: int,
    trunk_trains: bool = True,
) -> Layout:
    """Returns the layout of one phase after every check that can be made without starting a rank.

    Args:
        config: the recipe's layout.
        num_ranks: ranks of the job.
        global_batch_size: packed sequences per step, by task.
        model: the model's config.
        dimensions: sizes that the tokenizers decide.
        seq_len: tokens of a packed sequence.
        num_lanes: lanes of the data stream.
        trunk_trains: whether anything in the trunk trains; a frozen trunk cannot deadlock.

    Raises:
        ConfigError: the layout does not suit the number of ranks, the model or the data.
    """
    require_forked_model_is_y(config, model)
    layout = make_layout(config, num_ranks=num_ranks, global_batch_size=global_batch_size)
    for stage, shape in layout.shapes.items():
        has_rq_head = stage in (Stage.COLOCATED, Stage.GENERATION) and Task.GENERATION in model.tasks
        require_divisible_sizes(shape.tp, model, dimensions, has_rq_head=has_rq_head)
    require_divisible_seq_len(layout, seq_len)
    require_divisible_lanes(layout, num_lanes)
    if trunk_trains:
        require_progress(layout, sequences_in_flight(config, layout))
    return layout


def require_forked_model_is_y(config: LayoutConfig, model: ModelConfig) -> None:
    """Checks that a forked layout has no layers of single tasks below the shared ones.

    They would be on the trunk's stage, and a task's layers, one group of parameters that trains or does not, on two.

    Raises:
        ConfigError: the layout is forked, and the model has such layers.
    """
    if config.kind == "forked" and model.separate_first_layers:
        raise ConfigError(
            f"layout.kind=forked: model.separate_first_layers={model.separate_first_layers}, but the trunk of a forked"
            " layout has shared layers only; set layout.kind=colocated, or model.separate_first_layers=0"
        )


def require_divisible_sizes(tp: int, model: ModelConfig, dimensions: Dimensions, *, has_rq_head: bool) -> None:
    """Checks that `tp` divides every size that tensor parallelism partitions in a stage.

    Raises:
        ConfigError: it does not divide one of them.
    """
    sizes = {
        "model.num_attention_heads": model.num_attention_heads,
        "model.num_key_value_heads": model.num_key_value_heads,
        "model.intermediate_size": model.intermediate_size,
        "the vocabulary's size": dimensions.vocab_size,
    }
    if has_rq_head:
        sizes["model.rq_head.num_attention_heads"] = model.rq_head.num_attention_heads
        sizes["model.rq_head.hidden_size"] = model.rq_head.hidden_size
        sizes["the codebook's size"] = dimensions.codebook_size
    for name, size in sizes.items():
        if size % tp:
            raise ConfigError(f"layout: tp={tp} does not divide {name}={size}; choose a tp that divides it")


def require_divisible_seq_len(layout: Layout, seq_len: int) -> None:
    """Checks that hidden states can be sent between stages in equally many tokens per rank.

    Raises:
        ConfigError: the largest tp of a forked layout does not divide `seq_len`.
    """
    tp = max(shape.tp for shape in layout.shapes.values())
    if Stage.COLOCATED not in layout.shapes and seq_len % tp:
        raise ConfigError(
            f"data.seq_len={seq_len} is not a multiple of {tp}, the largest tp of the layout, by which hidden states"
            f" are split when they are sent between stages; set data.seq_len={-(-seq_len // tp) * tp} or change the tp"
        )


def require_divisible_lanes(layout: Layout, num_lanes: int) -> None:
    """Checks that the replicas that read data own equally many of its lanes.

    Raises:
        ConfigError: their number does not divide `num_lanes`.
    """
    replicas = layout.shapes[layout.reader].dp
    if num_lanes % replicas:
        raise ConfigError(
            f"data.num_lanes={num_lanes} is not a multiple of the {replicas} data-parallel replicas of the"
            f" {layout.reader} stage, which read the data; set data.num_lanes={-(-num_lanes // replicas) * replicas} or"
            " choose a dp that divides it"
        )
