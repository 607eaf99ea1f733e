"""Compares drawing through an exported model with ufork's own: `python -m benchmarks.export.drawing`.

Random weights of a preset are exported, and loaded by transformers and by ufork in one process. Both draw the same
prompts in turn, on one thread, and the time is that of the CPU: what else the machine does counts little, and for both
alike. The last line is one JSON object: the median seconds of each, and the median of the ratios of neighbouring
drawings.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import AutoModel, AutoProcessor

from benchmarks.workloads.presets import PRESETS, Preset
from ufork.data.text_tokenizer import TextTokenizer
from ufork.hugging_face.export import export
from ufork.infer.config import DrawConfig
from ufork.infer.model import TrainedModel, save_trained
from ufork.model.initialization import initialize
from ufork.model.unifork import UniFork
from ufork.model.weights import WeightsConfig
from ufork.vision.autoencoder import RQVAE
from ufork.vision.codec import ImageCodec
from ufork.vision.config import RqvaeConfig

PROMPT = "a red dog left of a cat"
IMAGE_PX, PATCH_PX = 128, 16  # 64 positions


def main() -> None:
    """Measures one batch size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", choices=PRESETS, default="default", help="model (benchmarks/workloads/presets.py)")
    parser.add_argument("--batch", type=int, default=1, help="drawings at a time")
    parser.add_argument("--pairs", type=int, default=9, help="drawings of either model")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        weights, exported = Path(folder, "weights"), Path(folder, "exported")
        save_random(weights, PRESETS[arguments.preset])
        export(weights, exported)
        own, prompts = TrainedModel.load(weights), [PROMPT] * arguments.batch
        model, processor = AutoModel.from_pretrained(exported), AutoProcessor.from_pretrained(exported)
    assert (model.draw(prompts, processor).numpy() == own.draw(prompts)).all()
    pairs = [
        (seconds(lambda: model.draw(prompts, processor)), seconds(lambda: own.draw(prompts)))
        for _ in range(arguments.pairs)
    ]
    figures = {
        "exported_s": round(statistics.median(pair[0] for pair in pairs), 4),
        "own_s": round(statistics.median(pair[1] for pair in pairs), 4),
        "ratio": round(statistics.median(exported / own for exported, own in pairs), 3),
    }
    print(json.dumps({"preset": arguments.preset, "batch": arguments.batch} | figures))


def save_random(folder: Path, preset: Preset) -> None:
    """Writes random weights of the preset, with tokenizers that fit."""
    model = UniFork(preset.model, preset.dimensions)
    initialize(model, 0)
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
    sizes = preset.dimensions.model_dump(exclude={"vocab_size"})
    codec = ImageCodec(RQVAE(RqvaeConfig(image_px=IMAGE_PX, patch_px=PATCH_PX, **sizes)))
    config = WeightsConfig(model=preset.model, dimensions=preset.dimensions)
    save_trained(folder, weights, config, TextTokenizer.train([PROMPT], vocab_size=300), codec, DrawConfig())


def seconds(run: Callable[[], object]) -> float:
    """Returns the CPU time that `run` takes."""
    started = time.process_time()
    run()
    return time.process_time() - started


if __name__ == "__main__":
    main()
