"""Makes samples from a record: at most one for each task.

    Record, image  ->  generation: its caption, or a prompt with its class name
                   ->  understanding: its turns, or a question that the caption or the class name answers

A hash of the record's id selects the wording, so it is the same on any machine and in any order.
"""

import string
from typing import Any

from pydantic import field_validator
from xxhash import xxh3_64_intdigest

from data_prep.inputs.record import Record
from ufork.config import Config
from ufork.data.shards.sample import Sample, holds_codes, read_codes
from ufork.errors import SampleError
from ufork.vision.image_header import PILLOW_DECODERS, image_format
from ufork.vocabulary import Task

_FIELD = "class_name"


class SamplesConfig(Config):
    """Samples that are made from a record, and their wording."""

    tasks: tuple[Task, ...] = tuple(Task)
    """Tasks to make samples for, where a record has the text and image that the task needs."""
    prompt_templates: tuple[str, ...] = ("{class_name}", "a photo of {class_name}", "a picture of {class_name}")
    """Prompts for records that have a class name but no caption."""
    caption_questions: tuple[str, ...] = ("Describe the picture.", "What does the picture show?")
    """Questions that the caption answers, for records without turns."""
    class_questions: tuple[str, ...] = ("What is in the picture?", "What is this?")
    """Questions that the class name answers, for records without turns and caption."""

    @field_validator("tasks", "prompt_templates", "caption_questions", "class_questions")
    @classmethod
    def _nonempty_and_distinct(cls, values: tuple[str, ...]) -> tuple[str, ...]:
        if not values or len(set(values)) < len(values):
            raise ValueError("expected at least one value, and no value twice")
        return values

    @field_validator("prompt_templates")
    @classmethod
    def _names_the_class(cls, templates: tuple[str, ...]) -> tuple[str, ...]:
        for template in templates:
            fields = [field for _, *field in string.Formatter().parse(template) if field[0] is not None]
            if fields != [[_FIELD, "", None]]:  # a width, as in {class_name:>9999}, would be the memory to take
                raise ValueError(f"expected {{{_FIELD}}} once and no other braces, found {template!r}")
        return templates


class SampleMaker:
    """Makes the samples of one source and split."""

    def __init__(self, config: SamplesConfig, *, source: str, split: str, licence: str) -> None:
        """Prepares the prefixes of the ids.

        Args:
            config: samples to make.
            source: name of the source.
            split: split that the records belong to.
            licence: licence of records that name none.
        """
        self.config, self.source, self.licence = config, source, licence
        self._prefixes = {task: f"{source}-{split}-{task}-" for task in config.tasks}

    def samples(self, record: Record, image: bytes | None) -> list[Sample]:
        """Returns at most one sample per task; none if the record lacks what every task needs.

        Args:
            record: the record's text.
            image: contents of its image file or .npy file of codes; None for a record without an image.

        Raises:
            SampleError: `image` is neither an image of a supported format nor readable codes.
        """
        common: dict[str, Any] = {"source": self.source, "licence": record.licence or self.licence}
        if image is not None:
            common |= _image_fields(record, image)
        if record.class_name:
            common["truth"] = {"class_name": record.class_name}
        texts = {Task.GENERATION: self._generation_text, Task.UNDERSTANDING: self._understanding_text}
        return [
            Sample(id=prefix + record.id, task=task, **common, **text)
            for task, prefix in self._prefixes.items()
            if (text := texts[task](record, image is not None))
        ]

    def _generation_text(self, record: Record, has_image: bool) -> dict[str, Any] | None:
        if not has_image:
            return None
        if record.caption.strip():
            return {"prompt": record.caption}
        if record.class_name:
            return {"prompt": _chosen(self.config.prompt_templates, record).format(class_name=record.class_name)}
        return None

    def _understanding_text(self, record: Record, has_image: bool) -> dict[str, Any] | None:
        if record.turns:
            return {"turns": record.turns}
        if has_image and record.caption.strip():
            return {"turns": ((_chosen(self.config.caption_questions, record), record.caption),)}
        if has_image and record.class_name:
            return {"turns": ((_chosen(self.config.class_questions, record), record.class_name),)}
        return None


def _image_fields(record: Record, data: bytes) -> dict[str, Any]:
    """Returns the fields of a sample for an image file: its bytes and format, or the codes that it holds."""
    if holds_codes(data):
        return {"codes": read_codes(data, record.id)}
    name = image_format(data)
    if name is None:
        formats = ", ".join(PILLOW_DECODERS)
        raise SampleError(f"image is none of {formats}, and no codes (.npy)", sample=record.id)
    return {"image": data, "image_format": name}


def _chosen(templates: tuple[str, ...], record: Record) -> str:
    return templates[xxh3_64_intdigest(record.id.encode()) % len(templates)]
