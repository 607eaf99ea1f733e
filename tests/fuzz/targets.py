"""What is fuzzed: by kind, how a valid input is written, which of its files are mutated, and how it is read.

    Target.write(folder) -> valid files -> one of them mutated -> Target.read(folder) -> a result, or a UforkError

A reader may skip entries if it counts them, and refuse a file with a UforkError. Whatever else it raises is a fault,
also the assertions below. Where a checksum or another file says what the content was, a result must be the same as
unmutated.
"""

import base64
import io
import json
import re
import shutil
import tarfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as arrow
import torch
import yaml
from PIL import Image
from pyarrow import parquet
from safetensors.torch import save_file

from data_prep.inputs import caption_table, conversations, foreign_tars, hugging_face, image_folder
from data_prep.inputs.config import open_input
from data_prep.sharding.config import ShardConfig
from data_prep.sharding.run import shard
from data_prep.sharding.verify import verify_shards
from pipelines.ablation import suite
from pipelines.check_recipe import check_recipe
from pipelines.recipe import read_recipe
from pipelines.serve.api import Api
from pipelines.serve.config import ServeConfig
from pipelines.serve.pictures import Pictures
from pipelines.status.run_status import read_status
from pipelines.status.status_page import as_values, render
from tests.analysis.ablation.trials import measured
from tests.checkpoint.saved import sign
from tests.fuzz.mutations import Mutation, json_lines, json_text, safetensors, tar
from tests.golden_files import GOLDEN, write_vila_u
from tests.infer.test_engine import with_tokenizers
from tests.parallel.engine.test_state_files import write_shards
from tests.pipelines.status.test_run_status import add_events, make_run
from tests.tiny import CODEC_SIZES, DIMENSIONS, tiny_config, tiny_model, tiny_tokenizer, write_codes_source
from tests.tiny_run import RECIPE
from ufork.analysis.ablation.tables import ablation_tables
from ufork.analysis.ablation.trial_result import load_results
from ufork.checkpoint.state import STATE_FILE, CheckpointState, RunMetadata, TrainState, record_of, verify, write_state
from ufork.convert import qwen, unifork, vila_u
from ufork.convert.config import BranchingConfig
from ufork.convert.qwen import QwenConfig, qwen_shapes
from ufork.data.prompts import encode_sample
from ufork.data.shards.sequential_source import SequentialSource
from ufork.data.shards.source import ShardSource
from ufork.data.stream_state import StreamState
from ufork.errors import SampleError, ShardError, UforkError
from ufork.eval.pictures import write_picture
from ufork.eval.scenes.detector import Detector, DetectorNetwork, DetectorWords
from ufork.hugging_face.model_card import model_card
from ufork.infer.config import AnswerConfig, DrawConfig
from ufork.infer.engine import Engine
from ufork.infer.model import TrainedModel, save_trained
from ufork.model.weights import WeightsConfig
from ufork.parallel.engine.state_files import StateFiles
from ufork.report.run_report import write_report
from ufork.vision.autoencoder import RQVAE
from ufork.vision.codec import ImageCodec
from ufork.vision.config import VisionConfig
from ufork.vision.images import decode_image, decode_whole
from ufork.vocabulary import Task

READERS = (caption_table, conversations, foreign_tars, hugging_face, image_folder)
"""Imported here, once, and not in each process that is forked."""


MARKUP = re.compile(r"(?<!\\)<script|(?<!\\)\]\(javascript")
"""What mutations put into texts, unescaped in Markdown."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """One kind of input."""

    write: Callable[[Path], None]
    """Writes valid files into an empty folder."""
    files: Mapping[str, Mutation | None]
    """Files that are mutated, each with the mutation that knows its format."""
    read: Callable[[Path], object]
    """Reads the files as ufork does; raises a UforkError or returns a result."""
    fault: Callable[[Any, Any], str] = lambda valid, found: ""
    """What is wrong with a result, given that of the valid files; empty for a result that may be."""


def differs(valid: object, found: object) -> str:
    """Refuses every other result."""
    return "" if found == valid else "another result, without an error"


# Shards


@dataclass(frozen=True)
class Samples:
    """What training reads of a source."""

    kept: Mapping[str, tuple[bytes, ...]]
    num_skipped: int


def write_source(folder: Path) -> None:
    """Writes a source of both tasks."""
    write_codes_source(folder / "source", num_samples=6)


def read_source(folder: Path) -> Samples:
    """Reads all samples, as training does; checks that those kept and skipped are as many as the manifest says."""

    kept: dict[str, tuple[bytes, ...]] = {}
    num_skipped = 0
    for task in Task:
        source = ShardSource(folder / "source", task)
        samples = source.read(range(len(source)))
        assert len(samples) == len(source) == source.manifest.num_samples(task)
        in_order = SequentialSource(folder / "source", task)
        for number in range(len(in_order)):
            with suppress(UforkError):
                in_order[number]
        for number, sample in enumerate(samples):
            try:
                if isinstance(sample, SampleError):
                    raise sample
                encoded = encode_sample(sample, _tokenizer(), codec=CODEC_SIZES, seq_len=500)
            except SampleError as error:
                assert error.reason and len(str(error)) < 2000
                num_skipped += 1
                continue
            kept[f"{task} {number}"] = (encoded.token_ids_L.tobytes(), encoded.codes_IC.tobytes())
    return Samples(kept, num_skipped)


def read_verified(folder: Path) -> Samples:
    """Reads a source that `ufork shard verify` accepts; raises the first fault that it finds."""

    if faults := verify_shards(folder / "source"):
        raise ShardError(faults[0])
    return read_source(folder)


def invents(valid: Samples, found: Samples) -> str:
    """Refuses samples that are not the valid ones; fewer may be, since the manifest says how many there are."""
    return "" if found.kept.items() <= valid.kept.items() else "other samples, without an error"


@cache
def _tokenizer():
    return tiny_tokenizer()


# Checkpoints

STEP = "step-00000010"
RANK_FILE = f"{STEP}/trunk/dp0-tp0.safetensors"


def write_checkpoint(folder: Path) -> None:
    """Writes a checkpoint of two ranks."""

    path = folder / STEP
    tensors = {"model.weight": torch.arange(12.0).view(4, 3), "model.bias": torch.ones(5)}
    write_shards(path, tensors, {"model.weight": 0}, dp=2, tp=1)
    write_state(
        path,
        CheckpointState(
            train_state=TrainState(step=10),
            run_metadata=RunMetadata(fixed={"model": {"hidden_size": 32}}, layout="colocated", versions={"torch": "2"}),
            stream=StreamState(seed=0, num_lanes=1, step=0, first_sequence={}, sources={}, taken={}),
            files={str(file.relative_to(path)): record_of(file) for file in sorted(path.glob("*/*"))},
        ),
    )


def read_checkpoint(folder: Path) -> object:
    """Reads all of a checkpoint, as resuming does."""

    state = verify(folder / STEP, deep=True)
    with StateFiles(folder / STEP, state.files) as files:
        kinds = sorted(files.kinds())
        names = {kind: sorted(files.names(kind)) for kind in kinds}
        whole = {(kind, name): files.whole(kind, name) for kind in kinds for name in names[kind]}
        tensors = {key: tensor.tolist() for key, tensor in whole.items() if tensor is not None}
        return state.model_dump(mode="json"), files.shapes(), files.optimizer_steps, str(tensors)


def read_forged_checkpoint(folder: Path) -> object:
    """Reads a checkpoint whose checksums fit, as somebody else may have made it."""

    path = folder / STEP
    with suppress(ValueError, TypeError, AttributeError, KeyError, OSError, RecursionError):
        content = json.loads((path / STATE_FILE).read_text())
        for name in content["files"]:
            content["files"][name] = record_of(path / name).model_dump()
        sign(path, content)
    return read_checkpoint(folder)


# Models


def write_weights(folder: Path) -> None:
    """Writes a trained model with its tokenizers."""

    torch.manual_seed(0)
    sizes = DIMENSIONS.model_dump(exclude={"vocab_size"})
    codec = ImageCodec(RQVAE(VisionConfig(image_px=16, patch_px=8, hidden_width=16, **sizes)))
    weights = {name: parameter.detach() for name, parameter in tiny_model().named_parameters()}
    config = WeightsConfig(model=tiny_config(), dimensions=DIMENSIONS)
    save_trained(folder / "weights", weights, config, tiny_tokenizer(), codec, DrawConfig(top_k=4))


def read_weights(folder: Path) -> None:
    """Loads the model, draws and answers."""

    model = TrainedModel.load(folder / "weights")
    images = np.zeros((1, model.image_px, model.image_px, 3), np.uint8)
    if Task.UNDERSTANDING in model.tasks:
        model.answer(images, ["what?"], AnswerConfig(max_tokens=2))
    if Task.GENERATION in model.tasks:
        model.draw(["a dog"])


def write_qwen(folder: Path) -> None:
    """Writes a Qwen3 model as transformers saves it, with an index of its files."""

    sizes = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4, vocab_size=300)
    values = dict(model_type="qwen3", num_key_value_heads=2, head_dim=12, rms_norm_eps=1e-6, rope_theta=1e6, **sizes)
    path = folder / "qwen"
    tiny_tokenizer().save(path)
    (path / "config.json").write_text(json.dumps({**values, "tie_word_embeddings": False}))
    config = WeightsConfig(model=QwenConfig(**values).model(BranchingConfig()), dimensions=DIMENSIONS)
    shapes = qwen_shapes(QwenConfig(**values), config)
    save_file({name: torch.ones(shape) for name, shape in shapes.items()}, path / "model.safetensors")
    index = {"metadata": {}, "weight_map": dict.fromkeys(shapes, "model.safetensors")}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))


def write_tower(folder: Path) -> None:
    """Writes the image tokenizer of the release's authors."""
    write_vila_u(folder)


def write_release(folder: Path) -> None:
    """Writes a checkpoint of the release's authors."""
    shutil.copytree(GOLDEN / "ckpt", folder / "release")


SMALL_HEAD = (
    "rq_head={hidden_size: 24, attention_size: 32, num_attention_heads: 4, num_blocks: 1}",
    *("codebook_size=16", "code_width=8", "codes_per_position=3"),
)


def convert(name: str, folder: Path) -> None:
    """Converts the model in `folder`."""

    match name:
        case "qwen":
            qwen.convert(folder / "qwen", folder / "out", SMALL_HEAD)
        case "vila_u":
            vila_u.convert(folder / "vision_tower", folder / "out")
        case _:
            unifork.convert(folder / "release", folder / "out")


# Runs


def write_recipe(folder: Path) -> None:
    """Writes a recipe, and a suite of two arms of it."""
    recipe = {"run": {"name": "one", "folder": "runs"}, **RECIPE}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    (folder / "recipe.json").write_text(json.dumps(recipe))
    arms = {"name": "s", "recipe": "recipe.yaml", "arms": {"a": {}, "b": {"train.steps": 5}}, "seeds": [0, 1]}
    (folder / "suite.json").write_text(json.dumps(arms))


def read_recipes(folder: Path) -> None:
    """Reads the recipes as `ufork train` does before it starts, and writes the one that a run records."""

    for name in ("recipe.yaml", "recipe.json"):
        recipe = read_recipe(folder / name)
        check_recipe(recipe, 1)
        recipe.to_yaml().encode()


def read_suite(folder: Path) -> None:
    """Reads a suite and the recipes of its arms."""

    suite.read_suite(folder / "suite.json")


def write_run(folder: Path) -> None:
    """Writes what a run leaves that its report, its status and its model card show."""

    run = make_run(folder / "run")
    run.versions.write_text(json.dumps({"torch": "2"}))
    run.shards.mkdir()
    (run.shards / "ATTRIBUTION.md").write_text("# Whose\n\n## scenes (CC0)\n\nMade by someone.\n")
    phase = run.phase("all")
    (phase.path / "bubble.json").write_text('{"trunk": 0.25}')
    phase.probes.mkdir()
    phase.probe("gradient_conflict").write_text('{"step": 10, "cosine/all": 0.2}\n')
    phase.skipped_samples.mkdir()
    (phase.skipped_samples / "replica-000.jsonl").write_text('{"id": "a", "reason": "empty"}\n')
    write_picture(np.zeros((8, 8, 3), np.uint8), phase.drawing(10))
    example = {"task": "generation", "group": "left_of", "text": "a dog", "picture": f"scenes/{'0' * 16}-drawing.png"}
    confusion = {"dog": {"dog": 3, "cat": 1}, "cat": {"cat": 2}}
    group = {"score": 0.7, "num_cases": 8, "chance": 0.5, "ceiling": 0.9, "confusion": confusion}
    table = {"task": "understanding", "title": "Answers", "measure": "right", "groups": {"left_of": group}}
    benchmark = {"name": "scenes", "title": "Scenes", "description": "d", "tables": [table], "num_cases": 8}
    benchmark |= {"figures": [{"label": "l", "value": "1"}], "examples": [example], "num_skipped": 1, "skipped": ["s"]}
    run.evaluation.write_text(json.dumps({"version": 2, "checkpoint": "w", "benchmarks": [benchmark], "seconds": 1.0}))
    write_picture(np.zeros((8, 8, 3), np.uint8), run.examples / str(example["picture"]))
    score = {"score": 0.4, "null_mean": 0.1, "null_std": 0.1}
    layer = {"layer": 0, "stage": "input", "scores": dict.fromkeys(("mutual_neighbours", "cka", "probe"), score)}
    model = {"name": "m", "curves": [{"task": "generation", "layers": [layer]}]}
    alignment = {"version": 1, "data": ["d"], "text": "own", "settings": {}, "seconds": 1, "num_pairs": 3}
    run.alignment.mkdir()
    (run.alignment / "alignment.json").write_text(json.dumps({**alignment, "models": [model]}))
    add_events(run, {"event": "submitted", "time": 10}, {"event": "ended", "time": 20, "exit_code": 1})
    failures = run.job_failures(17, 0)
    failures.mkdir(parents=True)
    failure = {"failure": "data", "exception": "ShardError", "message": "m", "exit_code": 1, "rank": 0, "host": "h"}
    (failures / "0.json").write_text(json.dumps({**failure, "time": 20.0}))
    run.job_logs.mkdir(exist_ok=True)
    (run.job_logs / "17-0.log").write_text("== restart 0\nTraceback\nKeyError: 'x'\n")
    write_weights(phase.path)


def read_run(folder: Path) -> None:
    """Makes the report, the status and the model card: damaged files of a run end none of them."""

    page = write_report(folder / "run").read_text()
    assert "<script" not in page and "<i>" not in page.replace('<i class="', "") and page.count("<html") == 1
    status = read_status(folder / "run", {"PATH": ""})
    assert all(line.isprintable() for line in render(status).splitlines())
    json.dumps(as_values(status))
    config = {"model_type": "unifork", "tasks": ["generation"], "dtype": "float32"}
    card = model_card(folder / "run/phases/all/weights", config=config, task=None, plan={})
    assert not MARKUP.search(card.partition("## Recipe")[0])


RUN_FILES: dict[str, Mutation | None] = {
    "config.yaml": None,
    "versions.json": json_text,
    "shards/ATTRIBUTION.md": None,
    "evaluation.json": json_text,
    "alignment/alignment.json": json_text,
    "slurm/jobs.jsonl": json_lines,
    "slurm/failures/17.0/0.json": json_text,
    "slurm/logs/17-0.log": None,
    "phases/all/metrics.jsonl": json_lines,
    "phases/all/bubble.json": json_text,
    "phases/all/probes/gradient_conflict.jsonl": json_lines,
    "phases/all/skipped_samples/replica-000.jsonl": json_lines,
}


def write_results(folder: Path) -> None:
    """Writes what comparisons are made from: results of trials, and the detector that scores drawings."""
    for seed in (0, 1):
        for arm in ("a", "b"):
            measured(arm, seed).save(folder)
    words = DetectorWords(
        kinds=("dog", "cat"),
        colours=("red",),
        backgrounds=("white",),
        image_px=32,
        spacing_cells=2,
        width=8,
        presence_threshold=0.5,
    )
    torch.manual_seed(0)
    Detector(DetectorNetwork(words), words).save(folder / "detector")


def read_results(folder: Path) -> None:
    """Makes the tables of the results."""
    results = load_results(folder, ["a", "b"], [0, 1])
    page = ablation_tables("s", results, num_trials=4, baselines=["a"])
    assert not MARKUP.search(page)


def read_detector(folder: Path) -> None:
    """Looks for objects with the detector."""
    detector = Detector.load(folder / "detector")
    detector.detect(np.zeros((1, detector.words.image_px, detector.words.image_px, 3), np.uint8))


# Collections


@cache
def picture(form: str) -> bytes:
    """Returns a small image file; with an EXIF orientation where the format has one."""
    file = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = np.random.default_rng(0).integers(0, 256, (9, 14, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, form, exif=exif)
    return file.getvalue()


TALK = {
    "id": "a",
    "image": "a.png",
    "conversations": [{"from": "human", "value": "<image>\nwhat is it?"}, {"from": "gpt", "value": "a dog"}],
}


def write_collection(kind: str, folder: Path) -> None:
    """Writes a small collection of three entries."""

    images = folder / "images"
    (images / "dogs").mkdir(parents=True)
    for name, form in (("a.png", "PNG"), ("b.jpg", "JPEG"), ("c.webp", "WEBP")):
        (images / "dogs" / name).write_bytes(picture(form))
        (images / name).write_bytes(picture(form))
    rows = [{"image": name, "caption": f"a {name}, \u00e9"} for name in ("a.png", "b.jpg", "c.webp")]
    talks = [TALK, {**TALK, "id": "b", "image": "b.jpg"}, {"id": "c", "conversations": TALK["conversations"][:0]}]
    match kind:
        case "tar":
            with tarfile.open(folder / "in.tar", "w", format=tarfile.USTAR_FORMAT) as file:
                for number, form in enumerate(("PNG", "JPEG", "WEBP")):
                    members = {"png" if form == "PNG" else form.lower(): picture(form), "txt": b"a dog"}
                    members["json"] = json.dumps({"caption": "a cat", "license": "CC0"}).encode()
                    for extension, contents in members.items():
                        info = tarfile.TarInfo(f"{number:05d}.{extension}")
                        info.size = len(contents)
                        file.addfile(info, io.BytesIO(contents))
        case "parquet":
            files = [{"bytes": (images / row["image"]).read_bytes(), "path": row["image"]} for row in rows]
            columns = {"image": files, "caption": [row["caption"] for row in rows]}
            parquet.write_table(arrow.table(columns), folder / "in.parquet", row_group_size=2)
        case "csv":
            lines = [f'{row["image"]},"{row["caption"]}"' for row in rows]
            (folder / "in.csv").write_text("\n".join(["image,caption", *lines]) + "\n")
        case "caption lines":
            (folder / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        case "conversations":
            (folder / "in.json").write_text(json.dumps(talks))
        case "conversation lines":
            (folder / "in.jsonl").write_text("".join(json.dumps(talk) + "\n" for talk in talks))
        case "arrow":
            from datasets import Dataset, Features, Value  # seconds to import, and no other kind needs it
            from datasets import Image as ImageColumn

            columns = {"image": [{"bytes": picture("PNG"), "path": None}] * 3, "caption": ["one", "two", "three"]}
            features = Features({"image": ImageColumn(), "caption": Value("string")})
            Dataset.from_dict(columns, features=features).save_to_disk(folder / "in")


COLLECTIONS: dict[str, tuple[dict[str, Mutation | None], dict[str, Any]]] = {
    "tar": ({"in.tar": tar}, {"kind": "tars", "path": "in.tar"}),
    "parquet": ({"in.parquet": None}, {"kind": "captions", "path": "in.parquet"}),
    "csv": ({"in.csv": None}, {"kind": "captions", "path": "in.csv", "images": "images"}),
    "caption lines": ({"in.jsonl": json_lines}, {"kind": "captions", "path": "in.jsonl", "images": "images"}),
    "conversations": ({"in.json": json_text}, {"kind": "conversations", "path": "in.json", "images": "images"}),
    "conversation lines": (
        {"in.jsonl": json_lines},
        {"kind": "conversations", "path": "in.jsonl", "images": "images"},
    ),
    "arrow": (
        {"in/data-00000-of-00001.arrow": None, "in/state.json": json_text, "in/dataset_info.json": json_text},
        {"kind": "huggingface", "path": "in", "caption_column": "caption"},
    ),
    "image folder": ({"images/dogs/a.png": None, "images/dogs/b.jpg": None}, {"kind": "images", "path": "images"}),
}
"""By kind: the files that are mutated, and the configuration of the input."""


def read_collection(config: Mapping[str, Any], folder: Path) -> None:
    """Makes shards, as `ufork shard` does; every entry of the input is kept or counted as skipped."""

    paths = {key: str(folder / config[key]) for key in ("path", "images") if key in config}
    values = {"source": "s", "licence": "CC0", "num_workers": 1, "input": {**config, **paths}}
    shard_config = ShardConfig.from_mapping(values, origin="fuzz")
    num_entries = sum(1 for _ in open_input(shard_config.input).records())
    manifest = shard(shard_config, folder / "out", partial(open_input, shard_config.input))
    num_kept = max(manifest.num_samples(task) for task in Task)
    assert num_kept + sum(manifest.skipped.values()) >= num_entries, (num_entries, num_kept, manifest.skipped)


# Images and requests


def write_images(folder: Path) -> None:
    """Writes an image of each format."""
    for form in ("PNG", "JPEG", "WEBP"):
        (folder / f"image.{form.lower()}").write_bytes(picture(form))


def read_images(folder: Path) -> None:
    """Decodes every image in every way."""

    for path in sorted(folder.glob("image.*")):
        data = path.read_bytes()
        for decode in (
            partial(decode_image, size_px=16, purpose=Task.UNDERSTANDING),
            partial(decode_image, size_px=16, purpose=Task.GENERATION),
            decode_whole,
        ):
            with suppress(SampleError):
                assert decode(data).ndim == 3


def write_bodies(folder: Path) -> None:
    """Writes the bodies of a request of each kind."""

    image = base64.b64encode(picture("PNG")).decode()
    draw = {"prompt": "a dog", "num_images": 2, "sampling": {"seed": 3, "guidance": 2.0, "top_k": 4}}
    answer = {"image": image, "question": "what?", "sampling": {"max_tokens": 3, "temperature": 0.5}}
    for name, body in (("draw", draw), ("answer", answer)):
        (folder / f"{name}.json").write_text(json.dumps(body))


@cache
def _api():

    model = with_tokenizers(tiny_model())
    engine = Engine(model)
    return engine, Api(engine, Pictures(model.codec, max_image_pixels=1e6), ServeConfig(), name="tiny")


def read_bodies(folder: Path) -> None:
    """Starts the requests, and runs those that are accepted to their end."""
    engine, api = _api()
    for name in ("draw", "answer"):
        with suppress(UforkError):
            with getattr(api, name)((folder / f"{name}.json").read_bytes()) as stream:
                while engine.step():
                    pass
                assert all(event is None or json.dumps(event) for event in stream)


TARGETS: dict[str, Target] = {
    "shard": Target(
        write=write_source,
        files={"source/understanding-00000.tar": tar, "source/generation-00000.tar": tar},
        read=read_source,
    ),
    "verified shard": Target(
        write=write_source, files={"source/generation-00000.tar": tar}, read=read_verified, fault=differs
    ),
    "index": Target(
        write=write_source,
        files={"source/understanding-00000.tar.index.json": json_text},
        read=read_source,
        fault=differs,
    ),
    "manifest": Target(write=write_source, files={"source/manifest.json": json_text}, read=read_source, fault=invents),
    "checkpoint": Target(
        write=write_checkpoint,
        files={f"{STEP}/state.json": json_text, RANK_FILE: safetensors},
        read=read_checkpoint,
        fault=differs,
    ),
    "forged checkpoint": Target(
        write=write_checkpoint,
        files={f"{STEP}/state.json": json_text, RANK_FILE: safetensors},
        read=read_forged_checkpoint,
    ),
    "weights": Target(
        write=write_weights,
        files={
            "weights/config.json": json_text,
            "weights/model.safetensors": safetensors,
            "weights/draw.json": json_text,
        },
        read=read_weights,
    ),
    "tokenizers": Target(
        write=write_weights,
        files={
            "weights/text/tokenizer.json": json_text,
            "weights/vision/config.json": json_text,
            "weights/vision/model.safetensors": safetensors,
        },
        read=read_weights,
    ),
    "qwen": Target(
        write=write_qwen,
        files={
            "qwen/config.json": json_text,
            "qwen/model.safetensors": safetensors,
            "qwen/model.safetensors.index.json": json_text,
        },
        read=partial(convert, "qwen"),
    ),
    "vila_u": Target(
        write=write_tower,
        files={"vision_tower/config.json": json_text, "vision_tower/model.safetensors": safetensors},
        read=partial(convert, "vila_u"),
    ),
    "release": Target(
        write=write_release,
        files={"release/config.json": json_text, "release/model.safetensors.index.json": json_text},
        read=partial(convert, "unifork"),
    ),
    "recipe": Target(write=write_recipe, files={"recipe.yaml": None, "recipe.json": json_text}, read=read_recipes),
    "suite": Target(write=write_recipe, files={"suite.json": json_text, "recipe.yaml": None}, read=read_suite),
    "run": Target(
        write=write_run, files={f"run/{name}": structure for name, structure in RUN_FILES.items()}, read=read_run
    ),
    "trial result": Target(write=write_results, files={"a-seed0.json": json_text}, read=read_results),
    "detector": Target(
        write=write_results,
        files={"detector/words.json": json_text, "detector/detector.safetensors": safetensors},
        read=read_detector,
    ),
    "image": Target(
        write=write_images, files=dict.fromkeys(["image.png", "image.jpeg", "image.webp"]), read=read_images
    ),
    "request": Target(write=write_bodies, files={"draw.json": json_text, "answer.json": json_text}, read=read_bodies),
    **{
        kind: Target(write=partial(write_collection, kind), files=files, read=partial(read_collection, config))
        for kind, (files, config) in COLLECTIONS.items()
    },
}
