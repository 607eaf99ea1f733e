"""Trains the phases of a recipe on one rank, one after the other.

recipe, tokenizers of the run -> a Phase -> ufork.train: open_session, train_phase
                                         -> RUN/phases/NAME/weights, complete with the tokenizers
"""

import logging
import os
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from pipelines.check_recipe import check_recipe
from pipelines.doctor.banner import log_banner
from pipelines.launch.ranks import process_context
from pipelines.launch.stop_signals import StopRequest, handled
from pipelines.recipe import Recipe
from pipelines.start import check_start_tokenizer, start_config
from pipelines.terminal import log_to_terminal
from ufork.checkpoint.folder import CheckpointFolder
from ufork.checkpoint.state import read_state
from ufork.data.text_tokenizer import TextTokenizer
from ufork.errors import CheckpointError, ConfigError
from ufork.infer.config import DrawConfig
from ufork.infer.model import save_trained
from ufork.model.config import Dimensions
from ufork.model.weights import WEIGHTS_NAME, WeightsConfig
from ufork.parallel.nvidia_devices import uses_cuda
from ufork.parallel.rank_environment import RankEnvironment
from ufork.parallel.transport.stage_world import World, join_world
from ufork.report.grid import grid_of
from ufork.train.inference_model import inference_model
from ufork.train.initial_model import InitialModel, Weights
from ufork.train.loop import DrawGrid, Hooks, train_phase
from ufork.train.probes.alignment import alignment_probe
from ufork.train.probes.gradient_conflict import gradient_conflict_probe
from ufork.train.probes.probe import Probe
from ufork.train.session import Phase, open_session
from ufork.vision.codec import ImageCodec
from ufork.vocabulary import Task

log = logging.getLogger(__name__)


def train_on_rank(rank_env: RankEnvironment, recipe: Recipe, names: list[str], *, trace: bool = False) -> None:
    """Trains the phases `names` in turn; each starts from the weights of the recipe's phase before it.

    With `trace`, one step of each phase is traced into the phase's folder.

    Raises:
        UforkError: a tokenizer, shard, weight file or folder is at fault, losses are not finite, or a rank is gone.
    """
    log_to_terminal()
    logging.getLogger().setLevel(logging.INFO if rank_env.rank == 0 else logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")  # of DeepSpeed's calls
    warnings.filterwarnings("ignore", message=".*CUDA_DEVICE_MAX_CONNECTIONS")  # megatron-core; see ranks.CUDA_QUEUES
    run = recipe.run_folder
    if rank_env.rank == 0:
        run.record(recipe.model_dump(mode="json"), ("text", "model", "data", "layout", "train", "phases"))
        log_banner(run.path, has_gpu=uses_cuda(os.environ))
        _warn_of_unnamed_phases(recipe)
    tokenizer, codec = TextTokenizer.load(run.text_tokenizer), ImageCodec.load(run.vision_tokenizer)
    check_recipe(recipe, rank_env.world_size, _dimensions(recipe, tokenizer, codec))
    if recipe.model.start is not None:
        check_start_tokenizer(Path(recipe.model.start), tokenizer)
    phases = [phase_of(recipe, name, tokenizer, codec) for name in names]
    _require_same_order(phases)
    timeout_seconds = max(phase.train.timeout_seconds for phase in phases)
    asked_to_stop = StopRequest()
    with (
        handled(asked_to_stop.receive),
        join_world(rank_env, recipe.layout, timeout_seconds=timeout_seconds) as world,
    ):
        followed = world.from_rank_0("followed", _followed(phases) if world.rank == 0 else None)
        for name, later in followed.items():
            log.info("phase %s: not trained further, since %s has started from its weights", name, later)
        remaining = [phase for phase in phases if phase.name not in followed]
        _require_weights(remaining[0])
        for phase in remaining:
            if world.rank in phase.layout_of(world.size).present_ranks:
                hooks = Hooks(
                    asked_to_stop=asked_to_stop,
                    draw_grid=_drawing(recipe, phase, codec, world),
                    probes=_probes(phase, codec, world),
                    trace_folder=phase.folder.path if trace else None,
                )
                _train(phase, world, hooks, codec, recipe.evaluate.draw)
            world.wait_until_finished(phase.name)  # the next phase reads the weights that the leader has written


def phase_of(recipe: Recipe, name: str, tokenizer: TextTokenizer, codec: ImageCodec) -> Phase:
    """Returns the recipe's phase `name` as configs, with the tokenizers of the run."""
    number = list(recipe.phases).index(name)
    start = Path(recipe.model.start) if recipe.model.start is not None else None
    previous = recipe.run_folder.phase(list(recipe.phases)[number - 1]).weights if number else start
    return Phase(
        name=name,
        initial=InitialModel(
            config=WeightsConfig(model=recipe.model.sizes, dimensions=_dimensions(recipe, tokenizer, codec)),
            codebook_KE=codec.codebook,
            seed=recipe.run.seed,
            folder=previous,
        ),
        train=recipe.phases[name].train,
        data=recipe.phases[name].data,
        layout=recipe.layout,
        tokenizer=tokenizer,
        run=recipe.run_folder,
        data_seed=recipe.run.seed + number,  # each phase reads the samples in another order
        run_config=recipe.model_dump(mode="json"),
    )


def _dimensions(recipe: Recipe, tokenizer: TextTokenizer, codec: ImageCodec) -> Dimensions:
    codebook_size, code_width = codec.codebook.shape
    start = recipe.model.start
    return Dimensions(
        # an embedding that exists may have more rows than its tokenizer needs
        vocab_size=tokenizer.padded_size if start is None else start_config(Path(start)).dimensions.vocab_size,
        codebook_size=codebook_size,
        code_width=code_width,
        codes_per_position=codec.codes_per_position,
    )


def _warn_of_unnamed_phases(recipe: Recipe) -> None:
    names = [phase.path.name for phase in recipe.run_folder.phases()]
    if unnamed := [name for name in names if name not in recipe.phases]:
        log.warning(
            "%s has phases that the recipe does not name: %s; a phase whose name has changed starts over, unless its"
            " folder is renamed, too",
            recipe.run_folder.path,
            ", ".join(unnamed),
        )


def _require_same_order(phases: Sequence[Phase]) -> None:
    """Checks, before any phase trains, that each has the number that it had when its checkpoints were written."""
    for phase in phases:
        checkpoints = CheckpointFolder(phase.folder.checkpoints)
        steps = checkpoints.steps()
        if not steps or phase.train.resume == "never":
            continue
        with suppress(CheckpointError):  # damaged, which is handled when the phase is resumed
            seed = read_state(checkpoints.at(steps[-1])).stream.seed
            if seed != phase.data_seed:
                raise ConfigError(
                    f"phases.{phase.name}: run.seed plus the phase's number was {seed} in its checkpoints, is"
                    f" {phase.data_seed}, which decides the order of samples; restore the seed and the order of the"
                    f" phases, or start it over with phases.{phase.name}.train.resume=never"
                )


def _followed(phases: Sequence[Phase]) -> dict[str, str]:
    """Returns the phases whose weights a later one has started from, with its name.

    If they were trained further, by a larger train.steps or since their checkpoints are gone, the later one would have
    lost what it started from.
    """
    found = {}
    for number, phase in enumerate(phases):
        resumed = [
            later.name
            for later in phases[number + 1 :]
            if later.train.resume != "never" and CheckpointFolder(later.folder.checkpoints).steps()
        ]
        if resumed and phase.train.resume != "never" and (phase.folder.weights / WEIGHTS_NAME).is_file():
            found[phase.name] = resumed[0]
    return found


def _require_weights(phase: Phase) -> None:
    folder = phase.initial.folder
    if folder and not (folder / WEIGHTS_NAME).is_file():
        raise CheckpointError(
            f"phase {phase.name} starts from the weights of the phase before it, and {folder} has no {WEIGHTS_NAME};"
            f" train {folder.parent.name} first (--phase {folder.parent.name})"
        )


def _train(phase: Phase, world: World, hooks: Hooks, codec: ImageCodec, draw: DrawConfig) -> None:
    with open_session(phase, world, context=process_context(("ufork.data.stream",))) as session:
        weights = train_phase(session, hooks)
    if session.stage.bridge.is_leader:
        folder = phase.folder.weights
        save_trained(folder, weights, phase.initial.config, phase.tokenizer, codec, draw)
        log.info("weights: %s", folder)
        world.report_finished(phase.name)


def _probes(phase: Phase, codec: ImageCodec, world: World) -> list[Probe]:
    wanted = (gradient_conflict_probe(phase, world), alignment_probe(phase, codec, world))
    return [probe for probe in wanted if probe]


def _drawing(recipe: Recipe, phase: Phase, codec: ImageCodec, world: World) -> DrawGrid | None:
    """Returns a function that draws the phase's prompts as one picture (uint8 [rows, columns, 3])."""
    prompts = list(phase.train.drawing_prompts)
    if not prompts or Task.GENERATION not in recipe.model.tasks:
        return None

    def draw(weights: Weights, show_alive: Callable[[], None]) -> np.ndarray:
        model = inference_model(phase, weights, codec, world, after_step=show_alive)
        show_alive()
        return grid_of(model.draw(prompts, recipe.evaluate.draw))

    return draw
