"""Configs of exported models, without pydantic: what takes the place of `ufork.config` in their code (`bundle.py`).

ufork has checked the values that it wrote to config.json, and their defaults are the class's.
"""

from collections.abc import Callable
from typing import Any


class Config:
    """Values by name; those that are not given are the defaults of the class."""

    def __init__(self, **values: Any):
        for name, value in values.items():
            default = getattr(type(self), name, None)
            if isinstance(default, Config) and isinstance(value, dict):
                value = type(default)(**value)
            setattr(self, name, value)


def Field(*, default: Any = None, **checks: Any) -> Any:  # noqa: N802 - pydantic's name
    """Returns the default of a field."""
    return default


def model_validator(*, mode: str) -> Callable[[Any], Any]:
    """Returns a decorator that changes nothing: values are not checked again."""
    return lambda method: method


model_serializer = model_validator
