"""Builds one rank's stage from the modules of the model that it holds.

modules -> tp shards -> ZeRO-3 engine;  layout -> schedule -> the stage's list of actions
"""

import logging
from dataclasses import replace

import torch

from ufork.errors import ConfigError
from ufork.model.cost import BACKWARD_OVER_FORWARD, nominal_cost
from ufork.model.decoder import DecoderLayer
from ufork.model.kernels import choose_kernels, use_kernels, use_linear
from ufork.model.layers.linear import default_linear
from ufork.model.rq_head import DepthBlock
from ufork.model.unifork import UniFork
from ufork.model.weights import MODEL_PREFIX
from ufork.parallel.config import LayoutConfig
from ufork.parallel.engine.deepspeed_config import Precision, engine_config, naming_keys
from ufork.parallel.engine.stage_modules import stage_flops
from ufork.parallel.engine.tied_embedding import NAMES as TIED_STAGES
from ufork.parallel.engine.tied_embedding import TiedEmbedding
from ufork.parallel.engine.zero import Engine
from ufork.parallel.layout import TASK_OF, Layout, Stage
from ufork.parallel.schedule.actions import Action, Pass, StageTimes
from ufork.parallel.schedule.in_flight import sequences_in_flight
from ufork.parallel.schedule.schedule import make_schedule
from ufork.parallel.tracing.device_clock import clock_of
from ufork.parallel.tracing.trace import Tracer
from ufork.parallel.transport.bridge import Bridge
from ufork.parallel.transport.link import Link, TransferFormat
from ufork.parallel.transport.packed_sequence_format import PackedSequenceFormat
from ufork.parallel.transport.stage_world import World
from ufork.train.config import TrainConfig
from ufork.train.optimization.optimizer import build_optimizer
from ufork.train.optimization.parameter_groups import freeze_except
from ufork.train.stage import TrainingStage
from ufork.train.stage_module import StageModule
from ufork.train.trainable import group_trains, stage_trains
from ufork.vocabulary import Task

log = logging.getLogger(__name__)


def build_stage(
    model: UniFork,
    config: TrainConfig,
    layout_config: LayoutConfig,
    world: World,
    bridge: Bridge,
    *,
    seq_len: int,
) -> TrainingStage:
    """Freezes what the phase does not train, applies tensor parallelism and ZeRO-3, and makes the schedule.

    Args:
        model: modules of the rank's stage (`InitialModel.build`) with whole weights, on the CPU.
        config: how the phase trains.
        layout_config: layout of the job.
        world: groups of this rank.
        bridge: connection to the other ranks in this phase.
        seq_len: tokens of a packed sequence.

    Raises:
        ConfigError: sizes and layout do not fit together.
        PeerError: another rank is gone.
    """
    precision = precision_of(config, world)
    log.info("precision: %s (train.precision is %s, the device %s)", precision, config.precision, world.device.type)
    dtype = dtype_of(config, world)
    sequence_parallel = uses_sequence_parallel(layout_config, world)
    partition_dims = _partition(model, world, sequence_parallel)
    tracer = Tracer(clock_of(world.device))
    transfer_format = TransferFormat(
        sequences=PackedSequenceFormat(seq_len=seq_len, codes_per_position=model.dimensions.codes_per_position),
        hidden_size=model.config.hidden_size,
        dtype=_p2p_dtype(layout_config, dtype),
        trunk_is_sharded=sequence_parallel,
    )
    linear = default_linear(world.device, dtype) if config.linear == "auto" else config.linear
    log.info("linear layers: %s (train.linear is %s)", linear, config.linear)
    use_linear(model, linear)
    use_kernels(model, choose_kernels(world.device, config.kernels))
    module = StageModule(model, config).to(world.device)
    engine = _build_engine(module, config, layout_config, precision, world, partition_dims)
    engine.trace_gathers(tracer)
    return TrainingStage(
        engine=engine,
        world=world,
        bridge=bridge,
        actions=_actions(model, config, layout_config, world, bridge, seq_len),
        sequences=transfer_format.sequences,
        in_flight=sequences_in_flight(layout_config, bridge.layout),
        trunk_trains=stage_trains(Stage.TRUNK, config.trainable),
        reduce_each_backward=layout_config.reduce_each_backward,
        dtype=dtype,
        link=None
        if world.coordinate.stage is Stage.COLOCATED
        else Link(bridge, transfer_format, world.tp_group, tracer),
        tied=_tie(engine, model, config, bridge, world),
        losses={task: module.losses[task] for task in Task if task in module.losses},  # type: ignore[misc]
        balances_gradients=config.balances_gradients,
        tracer=tracer,
    )


def precision_of(config: TrainConfig, world: World) -> Precision:
    """Returns `config.precision`; `auto` is bf16 where all devices of the job compute it natively, otherwise fp32.

    Raises:
        ConfigError: bf16 on GPUs that only emulate it: each operation would run in fp32 and convert its operands.
    """
    if config.precision == "auto":
        return "bf16" if world.native_bf16 else "fp32"
    if config.precision == "bf16" and world.device.type == "cuda" and not world.native_bf16:
        raise ConfigError(
            "train.precision=bf16: not all GPUs of this job compute bf16 natively, which takes compute capability 8.0"
            " (Ampere) or newer; set train.precision=auto to use fp32"
        )
    return config.precision


def dtype_of(config: TrainConfig, world: World) -> torch.dtype:
    """Returns what the passes compute in; raises as `precision_of`."""
    return torch.bfloat16 if precision_of(config, world) == "bf16" else torch.float32


def nominal_times(layout: Layout, model: UniFork, seq_len: int, *, recompute: bool) -> StageTimes:
    """Returns times of the passes, proportional to their operations, for sequences full of images or of text."""
    seconds = {}
    for task in layout.global_batch_size:
        cost = nominal_cost(model.config, model.dimensions, task, seq_len=seq_len)
        again = replace(cost, head=0)  # only decoder layers are recomputed
        for stage, shape in layout.shapes.items():
            forward, recomputed = (stage_flops(each, stage, task) / shape.tp for each in (cost, again))
            seconds[stage, task, Pass.FORWARD] = forward
            seconds[stage, task, Pass.BACKWARD] = forward * BACKWARD_OVER_FORWARD + recomputed * recompute
    return StageTimes(seconds=seconds)


def uses_sequence_parallel(layout_config: LayoutConfig, world: World) -> bool:
    """Returns whether sequence parallelism is on: in a trunk with tp above 1, on CUDA, unless turned off."""
    wanted = layout_config.sequence_parallel and world.coordinate.stage is Stage.TRUNK and world.tp_group.size() > 1
    if wanted and world.device.type != "cuda":
        log.info(
            "sequence parallelism: off, since megatron-core supports it on CUDA only and this device is %s",
            world.device,
        )
        return False
    return wanted


def _actions(
    model: UniFork, config: TrainConfig, layout_config: LayoutConfig, world: World, bridge: Bridge, seq_len: int
) -> tuple[Action, ...]:
    """Returns this rank's actions; every rank computes the lists of all stages, from the same inputs."""
    times = nominal_times(bridge.layout, model, seq_len, recompute=config.activation_checkpointing)
    in_flight, trunk_trains = (
        sequences_in_flight(layout_config, bridge.layout),
        stage_trains(Stage.TRUNK, config.trainable),
    )
    return make_schedule(bridge.layout, times, in_flight=in_flight, trunk_trains=trunk_trains)[world.coordinate.stage]


def _partition(model: UniFork, world: World, sequence_parallel: bool) -> dict[str, int]:
    if world.tp_group.size() == 1:
        return {}
    from ufork.parallel.engine.tensor_parallel import apply_tensor_parallel  # megatron-core takes seconds to import

    dims = apply_tensor_parallel(model, world.tp_group, sequence_parallel=sequence_parallel)
    return {MODEL_PREFIX + name: dim for name, dim in dims.items()}


def _build_engine(
    module: StageModule,
    config: TrainConfig,
    layout_config: LayoutConfig,
    precision: Precision,
    world: World,
    partition_dims: dict[str, int],
) -> Engine:
    num_trained = freeze_except(module, config.trainable)
    passes_gradients = world.coordinate.stage in TASK_OF and stage_trains(Stage.TRUNK, config.trainable)
    if not num_trained and passes_gradients:
        module.add_anchor()
    module.model.set_recompute(config.activation_checkpointing)
    num_parameters = sum(parameter.numel() for parameter in module.parameters())
    optimizer = build_optimizer(module, config, world.device) if num_trained or passes_gradients else None
    # a setting of DeepSpeed's may be about what its hooks do
    resident = layout_config.keeps_weights(num_parameters, world.dp_group.size()) and not config.deepspeed
    deepspeed_config = engine_config(
        precision,
        max_grad_norm=config.max_grad_norm,
        num_reduced=0 if resident and world.dp_group.size() == 1 else num_parameters,
        extra=config.deepspeed,
    )
    with naming_keys(config.deepspeed):
        return Engine(
            module,
            optimizer,
            deepspeed_config,
            world,
            gathered_whole=(DecoderLayer, DepthBlock),
            partition_dims=partition_dims,
            backward_at_once=world.coordinate.stage is not Stage.TRUNK,
            resident=resident,
        )


def _tie(engine: Engine, model: UniFork, config: TrainConfig, bridge: Bridge, world: World) -> TiedEmbedding | None:
    """Returns the exchange of the tied weight's gradients, needed only if two stages train that weight."""
    stages = bridge.layout.shapes.keys()
    tied = model.config.tie_word_embeddings and group_trains("token_embedding", config.trainable)
    if not tied or not stages >= TIED_STAGES.keys() or world.coordinate.stage not in TIED_STAGES:
        return None
    shape = (model.dimensions.vocab_size, model.config.hidden_size)
    return TiedEmbedding(engine, bridge, world, prefix=MODEL_PREFIX, shape=shape)


def _p2p_dtype(layout_config: LayoutConfig, computed_in: torch.dtype) -> torch.dtype:
    return {"compute": computed_in, "fp32": torch.float32, "bf16": torch.bfloat16}[layout_config.p2p_dtype]
