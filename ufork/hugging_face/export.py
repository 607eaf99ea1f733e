"""Writes a folder that Hugging Face's transformers loads, from a run or a folder of its weights.

    RUN/phases/NAME/weights -> config.json, model*.safetensors, tokenizer, processor, generation defaults, code,
                               README.md

The whole model, or the generation branch alone, is a `UniForkForConditionalGeneration` whose code lies in the folder.
The understanding branch alone is a plain Qwen2 or Qwen3 model for text (`qwen.py`), without images and without code.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ufork import __version__
from ufork.convert.planned_file import PlannedTensor, copy_of
from ufork.convert.tensor_folder import TensorFolder, TensorSize
from ufork.data.config import DataConfig
from ufork.data.text_tokenizer import TextTokenizer
from ufork.errors import CheckpointError
from ufork.files import require_empty, whole_folder, write_whole
from ufork.hugging_face.bundle import bundle
from ufork.hugging_face.model_card import model_card
from ufork.hugging_face.qwen import qwen_config, qwen_names
from ufork.hugging_face.registration import AUTO_CLASSES
from ufork.hugging_face.shards import write_shards
from ufork.infer.config import AnswerConfig, DrawConfig
from ufork.infer.model import TEXT_FOLDER, VISION_FOLDER, load_draw_config
from ufork.model.weights import WEIGHTS_NAME, WeightsConfig, check_weights
from ufork.report.run_record import read_run
from ufork.run_folder import RunFolder, trained_seq_len
from ufork.vision.codec import ImageCodec, config_text
from ufork.vocabulary import PADDING, SPECIAL_TOKENS, TURN_END, Task

MODEL_CODE, PROCESSOR_CODE = "modeling_unifork", "processing_unifork"
MODEL_CLASS, CONFIG_CLASS = "UniForkForConditionalGeneration", "UniForkConfig"
PAD_TOKEN = SPECIAL_TOKENS[0]
CHAT_TEMPLATE = Path(__file__).parent / "templates" / "chat_template.jinja"


@dataclass(frozen=True, kw_only=True)
class TrainedFolder:
    """What a folder of exported weights holds."""

    path: Path
    tensors: TensorFolder
    config: WeightsConfig
    tokenizer: TextTokenizer
    codec: ImageCodec
    draw: DrawConfig

    @classmethod
    def load(cls, path: Path) -> "TrainedFolder":
        """Reads a folder that `save_trained` wrote; the weights are read one by one when they are written.

        Raises:
            CheckpointError: weights are missing or damaged.
            TokenizerError: a tokenizer is missing or damaged.
            ConfigError: the file of the sampling is damaged.
        """
        return cls(
            path=path,
            config=check_weights(path),  # first: it says what is missing
            tensors=TensorFolder.open(path / WEIGHTS_NAME),
            tokenizer=TextTokenizer.load(path / TEXT_FOLDER),
            codec=ImageCodec.load(path / VISION_FOLDER),
            draw=load_draw_config(path),
        )


def find_weights(source: Path, phase: str | None = None) -> Path:
    """Returns the folder of weights of the phase `phase` of a run, by default that of its last one with weights.

    `source` may also be a folder of weights itself.

    Raises:
        CheckpointError: there are no weights.
    """
    if phase is None and (source / "config.json").is_file():
        return source
    run = RunFolder(source)
    trained = {folder.path.name: folder.weights for folder in run.phases() if folder.weights.is_dir()}
    names = [record.name for record in read_run(source).phases] if phase is None else [phase]
    found = [trained[name] for name in names if name in trained]
    if not found:
        raise CheckpointError(
            f"{source}: no weights of {'any phase' if phase is None else f'phase {phase!r}'}; phases that have them:"
            f" {', '.join(trained) or 'none'}."
            " Give the folder of a run that has finished a phase, or a folder of weights"
        )
    return found[-1]


def export(source: Path, to: Path, *, phase: str | None = None, task: Task | None = None) -> None:
    """Writes `to`, which must be empty or missing, whole or not at all.

    Args:
        source: folder of a run, or of weights.
        to: folder to write.
        phase: phase of the run; its last one by default.
        task: the only branch to export; all of them by default.

    Raises:
        CheckpointError: there are no weights, they have no branch for `task`, or it is no plain text model.
        StorageError: `to` is not empty, or cannot be written.
        TokenizerError: a tokenizer is missing or damaged.
    """
    trained = TrainedFolder.load(find_weights(source, phase))
    if task is not None and task not in trained.config.model.tasks:
        raise CheckpointError(f"{trained.path}: the model has no {task} branch, only {trained.config.model.tasks}")
    require_empty(to)
    if task is Task.UNDERSTANDING:
        seq_len = trained_seq_len(trained.path) or DataConfig().seq_len
        config = qwen_config(trained.config, _token_ids(trained.tokenizer), seq_len=seq_len)
        plan = _copies(trained.tensors, qwen_names(trained.tensors.sizes, trained.config.model))
    else:
        tasks = trained.config.model.tasks if task is None else (task,)
        config, plan = _unifork_config(trained, tasks), _unifork_plan(trained, tasks)
    with whole_folder(to) as draft:
        write_shards(draft, plan)
        if task is not Task.UNDERSTANDING:
            _write_processor(draft, trained)
            _write_code(draft)
        _write_json(draft / "config.json", config)
        _write_json(draft / "generation_config.json", _generation_defaults(trained.tokenizer))
        _write_tokenizer(draft, trained.tokenizer)
        write_whole(draft / "README.md", model_card(trained.path, config=config, task=task, plan=plan))


def _copies(tensors: TensorFolder, names: Mapping[str, str]) -> dict[str, PlannedTensor]:
    """Plans copies of the weights that `names` names in the export, and of no others."""
    return {new: copy_of(tensors, name) for name, new in names.items()}


def _unifork_plan(trained: TrainedFolder, tasks: tuple[Task, ...]) -> dict[str, PlannedTensor]:
    left_out = tuple(f"{place}.{task}." for task in Task if task not in tasks for place in ("branches", "first_stacks"))
    names = [name for name in trained.tensors.sizes if not any(part in name for part in left_out)]
    tokenizer = {
        f"image_tokenizer.{name}": PlannedTensor(TensorSize.of(tensor), tensor.detach)
        for name, tensor in trained.codec.model.state_dict().items()
    }
    return {**_copies(trained.tensors, {name: f"model.{name}" for name in names}), **tokenizer}


def _unifork_config(trained: TrainedFolder, tasks: tuple[Task, ...]) -> dict[str, Any]:
    model, codec = trained.config.model, trained.codec
    return {
        "model_type": "unifork",
        "architectures": [MODEL_CLASS],
        "auto_map": {
            "AutoConfig": f"{MODEL_CODE}.{CONFIG_CLASS}",
            **{auto_class: f"{MODEL_CODE}.{MODEL_CLASS}" for auto_class in AUTO_CLASSES},
        },
        "dtype": "float32",
        **_token_ids(trained.tokenizer),
        "image_token_id": trained.tokenizer.id_of(PADDING),
        "vocab_size": trained.config.dimensions.vocab_size,
        "num_hidden_layers": max(model.path_layers(task) for task in tasks),
        **model.model_dump(mode="json"),
        "head_dim": model.head_dim,  # configs on disk may omit it
        "tasks": list(tasks),
        "image_tokenizer": {"kind": codec.config.kind, **json.loads(config_text(codec.config))},
        "drawing": trained.draw.model_dump(mode="json"),
        "ufork_version": __version__,
    }


def _token_ids(tokenizer: TextTokenizer) -> dict[str, int]:
    return {"eos_token_id": tokenizer.turn_end_id, "pad_token_id": tokenizer.id_of(PAD_TOKEN)}


def _generation_defaults(tokenizer: TextTokenizer) -> dict[str, Any]:
    """Answers are greedy, as ufork's."""
    return {"do_sample": False, "max_new_tokens": AnswerConfig().max_tokens, **_token_ids(tokenizer)}


def _write_tokenizer(to: Path, tokenizer: TextTokenizer) -> None:
    tokenizer.save(to)
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": TURN_END,
        "pad_token": PAD_TOKEN,
        "padding_side": "left",
        "clean_up_tokenization_spaces": False,
    }
    _write_json(to / "tokenizer_config.json", config)
    write_whole(to / "chat_template.jinja", CHAT_TEMPLATE.read_text(encoding="utf-8"))


def _write_processor(to: Path, trained: TrainedFolder) -> None:
    processor, image_processor = "UniForkProcessor", "UniForkImageProcessor"
    auto_map = {
        "AutoProcessor": f"{PROCESSOR_CODE}.{processor}",
        "AutoImageProcessor": f"{PROCESSOR_CODE}.{image_processor}",
    }
    shared = {"processor_class": processor, "auto_map": auto_map}
    vision = trained.codec.config
    _write_json(to / "processor_config.json", {**shared, "tokens_per_image": vision.tokens_per_image})
    images = {"image_processor_type": image_processor, "image_px": vision.image_px}
    _write_json(to / "preprocessor_config.json", {**shared, **images})


def _write_code(to: Path) -> None:
    for module, file, what in (("modeling", MODEL_CODE, "model"), ("processing", PROCESSOR_CODE, "processor")):
        title = (
            f"UniFork's {what}, joined by ufork {__version__} from its own modules, whose names stand above their"
            " definitions.\n\nAnnotations are never evaluated, and may name types that are not here.\n"
        )
        write_whole(to / f"{file}.py", bundle(f"ufork.hugging_face.{module}", title=title))


def _write_json(path: Path, content: dict[str, Any]) -> None:
    write_whole(path, json.dumps(content, indent=2) + "\n")
