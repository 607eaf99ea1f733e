"""What collections can be read, and how each is configured.

    {"kind": "captions", "path": ...}  ->  InputConfig  --open_input-->  Input

Only the reader of the kind that is named is imported, and with it the packages that it needs.
"""

import importlib
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from data_prep.inputs.record import Input
from ufork.config import Config
from ufork.errors import InputError

MEBIBYTE = 2**20


class CollectionConfig(Config):
    """What every collection has."""

    path: Path
    """The collection: a file, a folder, or a pattern such as `data/part-*.parquet`, as its kind says."""
    max_image_mb: PositiveFloat = 64
    """Larger image files are left out, before they are read."""
    max_text_chars: PositiveInt = 100_000
    """Entries with a longer text are left out: broken files more often than long texts."""

    @property
    def max_image_bytes(self) -> int:
        """`max_image_mb` in bytes."""
        return int(self.max_image_mb * MEBIBYTE)


class ImageFilesConfig(CollectionConfig):
    """Of collections whose images are files of their own."""

    follow_links: bool = False
    """Symlinks that lead out of the folder of images are followed; only for folders whose maker you trust."""


class ImageFolderConfig(ImageFilesConfig):
    """Images in folders that are named after what they show, as ImageNet's; `path` is the folder of folders."""

    kind: Literal["images"] = "images"
    """Names this kind."""
    class_names: Path | None = None
    """What the folders' names mean: lines as `n01440764 tench, Tinca tinca`, of which the first name counts, or JSON
    `{folder: name}`. Without it a folder's own name is taken, underscores as spaces."""


class ConversationsConfig(ImageFilesConfig):
    """Questions and answers as LLaVA's or ShareGPT's; `path` is a JSON or JSONL file, a folder or pattern of such."""

    kind: Literal["conversations"] = "conversations"
    """Names this kind."""
    images: Path | None = None
    """The folder that the entries' image paths start from; null where no entry has an image."""


class CaptionsConfig(ImageFilesConfig):
    """A table of images and captions; `path` is a parquet, CSV, TSV or JSONL file, a folder or pattern of such."""

    kind: Literal["captions"] = "captions"
    """Names this kind."""
    images: Path | None = None
    """The folder that the paths in the image column start from; null where the images are in the table."""
    image_column: str = "image"
    """Paths of images; in parquet also their files, as bytes or as Hugging Face's {bytes, path}."""
    caption_column: str = "caption"
    """A text, or a list of texts."""
    captions: Literal["first", "all"] = "first"
    """What becomes of a list: one entry with its first caption, or an entry for each."""
    id_column: str | None = None
    """The collection's own ids; they are made part of the entries' ids."""
    licence_column: str | None = None
    """The licence of each image."""
    column_names: tuple[str, ...] | None = None
    """Of a CSV or TSV file whose first line is an entry already, as in Conceptual Captions."""
    max_row_group_mb: PositiveFloat = 1024
    """Images in parquet are read a row group at a time; files with larger ones are refused."""


class TarsConfig(CollectionConfig):
    """Tars of images with texts beside them, as img2dataset makes; `path` is a tar, a folder or pattern of such."""

    kind: Literal["tars"] = "tars"
    """Names this kind."""
    caption_key: str = "caption"
    """Where a member KEY.json has the caption; a member KEY.txt comes before it."""
    licence_key: str = "license"
    """Where a member KEY.json has the image's licence."""
    class_names: Path | None = None
    """What a member KEY.cls means: lines of names, the first of class 0, or JSON, a list or `{number: name}`."""


class HuggingFaceConfig(CollectionConfig):
    """A dataset that `datasets` saved with `save_to_disk`; `path` is its folder."""

    kind: Literal["huggingface"] = "huggingface"
    """Names this kind."""
    split: str | None = None
    """Which of the saved splits, as `train`; null where there is only one."""
    image_column: str | None = "image"
    """Images, as `datasets.Image` or bytes; null for text alone."""
    caption_column: str | None = None
    """A text, or a list of texts of which the first counts."""
    label_column: str | None = None
    """A class: `datasets.ClassLabel`, or words."""
    conversations_column: str | None = None
    """Messages as in LLaVA's `conversations` or as in `messages`."""
    id_column: str | None = None
    """The dataset's own ids; they are made part of the entries' ids."""
    licence_column: str | None = None
    """The licence of each entry."""


InputConfig = Annotated[
    ImageFolderConfig | ConversationsConfig | CaptionsConfig | TarsConfig | HuggingFaceConfig,
    Field(discriminator="kind"),
]
"""Any of the collections, by its `kind`."""

_READERS = {
    "images": ("image_folder", "ImageFolder"),
    "conversations": ("conversations", "Conversations"),
    "captions": ("caption_table", "CaptionTable"),
    "tars": ("foreign_tars", "ForeignTars"),
    "huggingface": ("hugging_face", "HuggingFaceDataset"),
}


def open_input(config: InputConfig) -> Input:
    """The reader of the collection that `config` names.

    Raises:
        InputError: the collection is not there, or the reader needs a package that is not installed.
    """
    module, name = _READERS[config.kind]
    try:
        return getattr(importlib.import_module(f"data_prep.inputs.{module}"), name)(config)
    except ModuleNotFoundError as error:
        raise InputError(
            f"input.kind {config.kind!r} needs the package {error.name}, which is not installed; "
            "run `pip install ufork[prep]`"
        ) from None
