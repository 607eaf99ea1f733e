"""Image files, and bodies of requests to `ufork serve`."""

import base64
import json
from contextlib import suppress
from functools import cache, partial
from pathlib import Path

from pipelines.serve.api import Api
from pipelines.serve.config import ServeConfig
from pipelines.serve.pictures import Pictures
from tests.fuzz.mutations import json_text
from tests.fuzz.targets.inputs import picture
from tests.fuzz.targets.target import Target
from tests.infer.test_engine import with_tokenizers
from tests.tiny import tiny_model
from ufork.errors import SampleError, UforkError
from ufork.infer.engine import Engine
from ufork.vision.images import decode_image, decode_whole
from ufork.vocabulary import Task


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


REQUESTS: dict[str, Target] = {
    "image": Target(
        write=write_images, files=dict.fromkeys(["image.png", "image.jpeg", "image.webp"]), read=read_images
    ),
    "request": Target(write=write_bodies, files={"draw.json": json_text, "answer.json": json_text}, read=read_bodies),
}
