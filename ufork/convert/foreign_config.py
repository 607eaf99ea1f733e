"""Configs of other programs' models, from the JSON files that come with the weights."""

from pathlib import Path
from typing import ClassVar, Self

from pydantic import ConfigDict

from ufork.config import Config
from ufork.errors import CheckpointError, ConfigError
from ufork.files import read_object
from ufork.model.weights import CONFIG_NAME


class ForeignConfig(Config):
    """A config of another program; keys that decide neither weights nor results are ignored."""

    model_config = ConfigDict(extra="ignore")
    models: ClassVar[str]
    """What has such a file, for messages."""

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Reads the `config.json` of `folder`.

        Raises:
            CheckpointError: it is missing or damaged, or the model is none that ufork computes.
        """
        path = folder / CONFIG_NAME
        try:
            return cls.from_mapping(read_object(path), origin=str(path))
        except (OSError, ValueError) as error:
            raise CheckpointError(
                f"{path}: cannot be read ({error}); give another folder: only {cls.models} can be converted"
            ) from None
        except ConfigError as error:
            raise CheckpointError(f"{error}\nonly {cls.models} can be converted") from None
