"""Makes the two tokenizers of a run from its shards, and encodes the images of the shards.

texts of shards/*/train  -> byte-level BPE -> tokenizer/text
images of shards/*/train -> fit            -> tokenizer/vision, evaluated on images of shards/*/heldout; or a given one
shards/SOURCE/SPLIT      -> codec          -> codes/SOURCE/SPLIT
"""

import hashlib
import json
import logging
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np

from pipelines.recipe import Recipe
from ufork.data.prompts import generation_prompt, question_prompt
from ufork.data.shards.manifest import Manifest
from ufork.data.shards.source import ShardSource
from ufork.data.text_tokenizer import TextTokenizer
from ufork.errors import SampleError, ShardError
from ufork.files import storage_errors, write_whole
from ufork.infer.model import TEXT_FOLDER
from ufork.run_folder import RunFolder
from ufork.vocabulary import Task

NUM_HELDOUT_IMAGES = 512
"""Number of held-out images on which the image tokenizer is evaluated."""
FIT_REPORT = "fit.json"
"""File in the folder of the image tokenizer: how long fitting took, and how well it reconstructs images."""

log = logging.getLogger(__name__)


def make_text_tokenizer(recipe: Recipe) -> None:
    """Trains the text tokenizer on the texts that training will read, or copies one.

    It is the one in `text.folder`, or that of the weights in `model.start`.

    Raises:
        ShardError: the shards are missing or damaged.
        TokenizerError: the folder contains no tokenizer.
        StorageError: the run's folder cannot be written.
    """
    if recipe.text.folder is not None:
        tokenizer = TextTokenizer.load(Path(recipe.text.folder))
    elif recipe.model.start is not None:
        tokenizer = TextTokenizer.load(Path(recipe.model.start) / TEXT_FOLDER)
    else:
        tokenizer = TextTokenizer.train(_texts(recipe.run_folder), vocab_size=recipe.text.vocab_size)
    tokenizer.save(recipe.run_folder.text_tokenizer)
    log.info("text tokenizer: %d tokens, %s", tokenizer.size, recipe.run_folder.text_tokenizer)


def make_image_tokenizer(recipe: Recipe) -> None:
    """Fits the image tokenizer, or copies the one in `vision.folder`.

    Raises:
        ShardError: the shards are missing or damaged.
        TokenizerError: `vision.folder` contains no tokenizer.
        StorageError: the run's folder cannot be written.
    """
    if recipe.vision.folder is None:
        _fit_image_tokenizer(recipe)
    else:
        _copy_image_tokenizer(Path(recipe.vision.folder), recipe.run_folder.vision_tokenizer)


def _copy_image_tokenizer(origin: Path, target: Path) -> None:
    from ufork.vision.codec import ImageCodec

    codec = ImageCodec.load(origin)
    with storage_errors(target):
        (target / FIT_REPORT).unlink(missing_ok=True)  # of a tokenizer fitted before
    codec.save(target)
    log.info("image tokenizer: %s, copied from %s to %s", codec.config.kind, origin, target)


def _fit_image_tokenizer(recipe: Recipe) -> None:
    """Fits the tokenizer, evaluates it on held-out images and saves it. One fitted on the same data is kept."""
    from ufork.vision.codec import ImageCodec
    from ufork.vision.fit import fit

    folder, config = recipe.run_folder, recipe.vision
    origin = _origin_of_fit(recipe)
    if _fitted_on(folder.vision_tokenizer) == origin:
        log.info("image tokenizer: already fitted on the same data, kept, %s", folder.vision_tokenizer)
        return
    images = _endless_images(folder, config.fit.batch_images, config.image_px, recipe.run.seed)
    heldout = _heldout_images(folder, config.image_px, recipe.run.seed)
    model, report = fit(images, heldout, config, seed=recipe.run.seed, log=_log_fitting)
    ImageCodec(model).save(folder.vision_tokenizer)
    write_whole(
        folder.vision_tokenizer / FIT_REPORT, json.dumps({**asdict(report), "fitted_on": origin}, indent=1) + "\n"
    )
    log.info(
        "image tokenizer: %.1f dB on %d held-out images, %.0f%% of the codes used, %d steps in %.0f s, %s",
        report.psnr_db,
        len(heldout),
        100 * report.codes_used_share,
        report.steps,
        report.seconds,
        folder.vision_tokenizer,
    )


def _origin_of_fit(recipe: Recipe) -> str:
    """Returns a digest of everything that a fitted image tokenizer depends on."""
    shards = [Manifest.load(path).recipe for path in _source_folders(recipe.run_folder, "train")]
    return hashlib.sha256(f"{shards} {recipe.vision.model_dump_json()} {recipe.run.seed}".encode()).hexdigest()


def _fitted_on(folder: Path) -> str | None:
    try:
        return json.loads((folder / FIT_REPORT).read_text(encoding="utf-8")).get("fitted_on")
    except (OSError, ValueError):
        return None


def encode_all_shards(recipe: Recipe) -> None:
    """Encodes all sources and splits with the run's image tokenizer. Those already encoded with it are kept.

    Raises:
        ShardError: the shards are missing or damaged.
        TokenizerError: the image tokenizer is missing or damaged.
        StorageError: the run's folder cannot be written.
    """
    from data_prep.encode import encode_shards
    from ufork.vision.codec import ImageCodec

    folder = recipe.run_folder
    codec = ImageCodec.load(folder.vision_tokenizer)
    for source in _source_folders(folder, "*"):
        encode_shards(codec, source, folder.codes / source.relative_to(folder.shards))


def _source_folders(folder: RunFolder, split: str) -> list[Path]:
    """Returns the folders of finished sources; `split` may be `*`."""
    found = sorted(path.parent for path in folder.shards.glob(f"*/{split}/manifest.json"))
    if not found:
        raise ShardError(
            f"{folder.shards / '*' / split}: no finished source; run `ufork prepare` first, or `ufork shard` on your"
            " own data"
        )
    return found


def _sources(folder: RunFolder, split: str) -> list[ShardSource]:
    return [ShardSource(path, task) for path in _source_folders(folder, split) for task in Task]


def _texts(folder: RunFolder) -> Iterator[str]:
    """Yields the texts that training will tokenize, with their prompt wording; unusable samples are skipped."""
    skipped: set[str] = set()
    for source in _sources(folder, "train"):
        for number in range(len(source)):
            (sample,) = source.read([number])
            if isinstance(sample, SampleError):
                _log_once(sample, skipped)
                continue
            if sample.prompt:
                yield "".join(generation_prompt(sample.prompt))
            for question, answer in sample.turns:
                yield question_prompt(question)
                yield answer


def _endless_images(folder: RunFolder, batch_images: int, size_px: int, seed: int) -> Iterator[np.ndarray]:
    """Yields batches uint8 [B, size_px, size_px, 3] of training images, sampled uniformly from all of them."""
    images = _random_images(_sources(folder, "train"), size_px, np.random.default_rng(seed))
    while True:
        yield np.stack([next(images) for _ in range(batch_images)])


def _heldout_images(folder: RunFolder, size_px: int, seed: int) -> np.ndarray:
    images = _random_images(_sources(folder, "heldout"), size_px, np.random.default_rng(seed))
    return np.stack([next(images) for _ in range(NUM_HELDOUT_IMAGES)])


def _random_images(sources: list[ShardSource], size_px: int, random: np.random.Generator) -> Iterator[np.ndarray]:
    """Yields images uint8 [size_px, size_px, 3], sampled uniformly; unusable ones are logged once and skipped."""
    from ufork.vision.images import decode_image

    ends = np.cumsum([len(source) for source in sources])
    reported: set[str] = set()
    while True:
        position = int(random.integers(ends[-1]))
        number = int(np.searchsorted(ends, position, side="right"))
        try:
            sample = sources[number][position - int(ends[number]) + len(sources[number])]
            if sample.image is None:
                raise SampleError(f"{sample.id}: has no image")
            yield decode_image(sample.image, size_px=size_px, purpose=Task.GENERATION)
        except SampleError as error:
            _log_once(error, reported)


def _log_once(error: SampleError, reported: set[str]) -> None:
    if str(error) not in reported:
        log.warning("sample skipped: %s", error)
    reported.add(str(error))


def _log_fitting(record: dict[str, float]) -> None:
    log.info("fit %d  loss %.4f  %.1f dB  %.0f s", record["step"], record["loss"], record["psnr_db"], record["seconds"])
