"""The kinds of collections that can be read, and their configuration.

    {"kind": "captions", "path": ...}  ->  InputConfig  --open_input-->  Input

Only the reader of the configured kind is imported, with the packages that it needs.
"""

import importlib
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt, field_validator

from data_prep.inputs.record import Input
from ufork.config import Config
from ufork.errors import InputError

MEBIBYTE = 2**20


class CollectionConfig(Config):
    """Settings of every collection."""

    path: Path
    """The collection: a file, a folder, or a pattern such as `data/part-*.parquet`, depending on its kind."""
    max_image_mb: PositiveFloat = 64
    """Size in MiB of the largest image file that is used; larger ones are skipped without reading them."""
    max_text_chars: PositiveInt = 100_000
    """Length of the longest text that is used. Entries with a longer one are skipped: they are mostly broken files."""

    @property
    def max_image_bytes(self) -> int:
        """`max_image_mb` in bytes."""
        return int(self.max_image_mb * MEBIBYTE)


class ImageFilesConfig(CollectionConfig):
    """Settings of collections whose images are separate files."""

    follow_links: bool = False
    """Follows symlinks that lead out of the image folder. Set it only for folders that you trust."""


class ImageFolderConfig(ImageFilesConfig):
    """Images in class folders, as in ImageNet; `path` is the folder that contains the class folders."""

    kind: Literal["images"] = "images"
    """Selects this kind."""
    class_names: Path | None = None
    """File with the class name of each folder: lines such as `n01440764 tench, Tinca tinca`, of which the first name is
    used, or JSON `{folder: name}`. By default the folder's name is used, with underscores as spaces."""


class ConversationsConfig(ImageFilesConfig):
    """Conversations in the format of LLaVA or ShareGPT; `path` is a JSON or JSONL file, a folder or a pattern."""

    kind: Literal["conversations"] = "conversations"
    """Selects this kind."""
    images: Path | None = None
    """Folder that image paths are relative to; null if no entry has an image."""


class CaptionsConfig(ImageFilesConfig):
    """A table of images and captions; `path` is a parquet, CSV, TSV or JSONL file, a folder or a pattern."""

    kind: Literal["captions"] = "captions"
    """Selects this kind."""
    images: Path | None = None
    """Folder that the paths in the image column are relative to; null if the images are in the table."""
    image_column: str = "image"
    """Column of image paths; in parquet also of image files, as bytes, in base64, as Hugging Face's struct
    {bytes, path}, or as a list of one of these."""
    caption_column: str = "caption"
    """Column of captions: a text, or a list of texts; `caption.en` is the field `en` of objects in the column."""
    label_column: str | None = None
    """Column of classes, by name or number, to be used instead of captions. Numbers without names are used as they
    are."""
    class_names: Path | None = None
    """File with the names of numbered classes: one a line, starting with class 0, or JSON, a list or `{number: name}`.
    Parquet files of Hugging Face contain them."""
    captions: Literal["first", "all"] = "first"
    """Use of a list of captions: "first" makes one entry with the first caption, "all" one entry for each caption."""
    id_column: str | None = None
    """Column of the collection's own ids, which become part of the entries' ids."""
    licence_column: str | None = None
    """Column with the licence of each image."""
    column_names: tuple[str, ...] | None = None
    """Column names of a CSV or TSV file without a header line, such as Conceptual Captions."""
    max_row_group_mb: PositiveFloat = 1024
    """Size in MiB of the largest parquet row group. Images in parquet are read one row group at a time; files with
    larger groups are refused."""


class TarsConfig(CollectionConfig):
    """Tars of images and texts, as img2dataset writes them; `path` is a tar, a folder or a pattern."""

    kind: Literal["tars"] = "tars"
    """Selects this kind."""
    caption_key: str = "caption"
    """Key of the caption in members KEY.json, or `key.field` of an object; used if there is no member KEY.txt."""
    licence_key: str = "license"
    """Key of the image's licence in members KEY.json."""
    extensions: dict[str, Literal["image", "caption", "metadata", "class", "ignored"]] = {}
    """What members of further extensions hold, such as `{input.jpg: image, outputs.txt: caption}` for KEY.input.jpg and
    KEY.outputs.txt. Known are jpg, jpeg, jfif, png and webp; txt (caption), json (metadata), cls, cls.txt (class)."""
    class_names: Path | None = None
    """File with the names of the classes that members KEY.cls refer to: one a line, starting with class 0, or JSON, a
    list or `{number: name}`."""

    @field_validator("extensions")
    @classmethod
    def _in_one_form(cls, extensions: dict[str, str]) -> dict[str, str]:
        return {name.lower().removeprefix("."): holds for name, holds in extensions.items()}


class HuggingFaceConfig(CollectionConfig):
    """A dataset saved with `save_to_disk` of the package `datasets`; `path` is its folder."""

    kind: Literal["huggingface"] = "huggingface"
    """Selects this kind."""
    split: str | None = None
    """Split to read, such as `train`; null if only one was saved."""
    image_column: str | None = "image"
    """Column of images, as `datasets.Image` or bytes; null for text without images."""
    caption_column: str | None = None
    """Column of captions: a text, or a list of texts, of which the first is used; `caption.en` is the field `en` of
    objects in the column."""
    label_column: str | None = None
    """Column of classes: `datasets.ClassLabel`, a text, or numbers, which `class_names` names."""
    class_names: Path | None = None
    """File with the names of the classes in the label column: one a line, starting with class 0, or JSON, a list or
    `{class: name}`. Numbers without names are used as they are."""
    conversations_column: str | None = None
    """Column of conversations: lists of messages, as under `conversations` in LLaVA, under `messages`, or under `texts`
    in The Cauldron, also as JSON text. A column `system` beside it holds system prompts."""
    id_column: str | None = None
    """Column of the dataset's own ids, which become part of the entries' ids."""
    licence_column: str | None = None
    """Column with the licence of each entry."""


InputConfig = Annotated[
    ImageFolderConfig | ConversationsConfig | CaptionsConfig | TarsConfig | HuggingFaceConfig,
    Field(discriminator="kind"),
]
"""The configuration of any kind of collection, selected by `kind`."""

_READERS = {
    "images": ("image_folder", "ImageFolder"),
    "conversations": ("conversations", "Conversations"),
    "captions": ("caption_table", "CaptionTable"),
    "tars": ("foreign_tars", "ForeignTars"),
    "huggingface": ("hugging_face", "HuggingFaceDataset"),
}


def open_input(config: InputConfig) -> Input:
    """Opens the reader of the collection that `config` describes.

    Raises:
        InputError: the collection does not exist, or the reader needs a package that is not installed.
    """
    module, name = _READERS[config.kind]
    try:
        return getattr(importlib.import_module(f"data_prep.inputs.{module}"), name)(config)
    except ModuleNotFoundError as error:
        raise InputError(
            f"input.kind {config.kind!r} needs the package {error.name}, which is not installed; "
            "run `pip install ufork[prep]`"
        ) from None
