"""Filters that look at one record at a time.

    a record and its image file  ->  text length  ->  image header  ->  language  ->  decoding the image
                                 ->  FilterResult: the reason to drop the record, or None; image header; language

Checks run cheapest first and stop at the first failure. By default every check is off or lets everything pass.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydantic import Field, NonNegativeInt, PositiveInt

from data_prep.inputs.record import Record
from ufork.config import Config
from ufork.errors import ConfigError, SampleError
from ufork.vision.image_header import ImageHeader, read_image_header
from ufork.vision.images import decode_image
from ufork.vocabulary import Task

if TYPE_CHECKING:
    from py3langid.langid import LanguageIdentifier

_SURELY_ANOTHER = 100
"""A text is dropped when another language is this many times as likely as each wanted one. Short texts never reach it:
"tennis match" is Swedish with probability 0.09, twice as likely as English."""

_MIN_CONFIDENCE = 0.5
"""Lowest probability at which a language is reported; below it the text is too short to identify."""

_LANGUAGE_CHARS = 2000
"""Characters used to identify the language; more do not change the result."""

_CHECKED_PX = 32
"""Side to which `check_decode` decodes an image: as training does, but cheaper."""


class FilterConfig(Config):
    """Settings of the filters; a record is dropped if any of them does not let it pass."""

    min_side_px: PositiveInt = 1
    """Shortest allowed side: images with a shorter one are dropped."""
    max_side_px: PositiveInt | None = None
    """Longest allowed side: images with a longer one are dropped; null for no limit."""
    max_aspect: float | None = Field(default=None, ge=1)
    """Largest allowed ratio of long to short side; null for no limit."""
    check_decode: bool = False
    """Decodes each image as training will, to drop damaged ones; otherwise only its header is read."""
    min_text_chars: NonNegativeInt = 1
    """Records with less text are dropped. Counted are the caption and all dialogue turns, not the class name, which
    becomes a sentence only when samples are made."""
    max_text_chars: PositiveInt | None = None
    """Records with more text are dropped; null for no limit."""
    languages: tuple[str, ...] | None = Field(default=None, min_length=1)
    """ISO 639 codes of the languages to keep, such as [en, de]. Texts that are clearly in another language are dropped;
    texts too short to identify are kept. null identifies no language; any other value needs the package py3langid."""


@dataclass(frozen=True, kw_only=True)
class FilterResult:
    """Result of the filters for one record."""

    reason: str | None
    """Why the record is dropped, worded so that equal reasons can be counted; None if it is kept."""
    header: ImageHeader | None = None
    """Header of the image; None if there is no image, its header cannot be read, or an earlier check failed."""
    language: str | None = None
    """ISO 639 code; None if languages are not filtered, the text is too short, or an earlier check failed."""


class Filters:
    """Checks records against a config. Build one in each process: the language model takes a second or two to load."""

    def __init__(self, config: FilterConfig) -> None:
        """Loads the language model if languages are filtered.

        Raises:
            ConfigError: a language is unknown, or py3langid is not installed.
        """
        self._config = config
        self._languages = _load_languages(config.languages) if config.languages else None

    def check(self, record: Record, image: bytes | None) -> FilterResult:
        """Checks the text and the image file of a record; `image` is None for a record without one."""
        header, language = None, None
        text = _sentences(record)
        reason = None if record.class_name and not text else self._length_reason(len(text))
        if reason is None and image is not None:
            header, reason = self._image_reason(image)
        if reason is None and self._languages is not None and text:
            language, reason = self._language_reason(text)
        if reason is None and image is not None and self._config.check_decode:
            reason = _damage(image)
        return FilterResult(reason=reason, header=header, language=language)

    def _length_reason(self, length: int) -> str | None:
        config = self._config
        if length < config.min_text_chars:
            return "no text" if length == 0 else f"text below {config.min_text_chars} characters"
        if config.max_text_chars is not None and length > config.max_text_chars:
            return f"text above {config.max_text_chars} characters"
        return None

    def _image_reason(self, image: bytes) -> tuple[ImageHeader | None, str | None]:
        config = self._config
        try:
            header = read_image_header(image)
        except SampleError as error:
            return None, str(error)
        if header.short_px < config.min_side_px:
            return header, f"image below {config.min_side_px} px"
        if config.max_side_px is not None and header.long_px > config.max_side_px:
            return header, f"image above {config.max_side_px} px"
        if config.max_aspect is not None and header.aspect > config.max_aspect:
            return header, f"image longer than {config.max_aspect:g} times its short side"
        return header, None

    def _language_reason(self, text: str) -> tuple[str | None, str | None]:
        assert self._languages is not None and self._config.languages is not None
        ranks = self._languages.rank(text[:_LANGUAGE_CHARS])
        (likeliest, likelihood), wanted = ranks[0], set(self._config.languages)
        named = likeliest if likelihood >= _MIN_CONFIDENCE else None
        if likelihood > _SURELY_ANOTHER * max(value for language, value in ranks if language in wanted):
            return named, f"language is none of {', '.join(self._config.languages)}"
        return named, None


def text_of(record: Record) -> str:
    """Class name, caption and dialogue turns of a record, one a line."""
    return "\n".join(text for text in (record.class_name, _sentences(record)) if text)


def _sentences(record: Record) -> str:
    lines = [record.caption, *(text for turn in record.turns for text in turn)]
    return "\n".join(line for line in lines if line)


def _damage(image: bytes) -> str | None:
    try:
        decode_image(image, size_px=_CHECKED_PX, purpose=Task.UNDERSTANDING)
    except SampleError:
        return "image cannot be decoded"
    return None


def _load_languages(languages: tuple[str, ...]) -> "LanguageIdentifier":
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
    except ImportError:
        raise ConfigError(
            "languages: identifying them needs the package py3langid; pip install 'ufork[prep]'"
        ) from None
    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    unknown = sorted(set(languages) - set(identifier.labels))
    if unknown:
        raise ConfigError(
            f"languages: {unknown} are not known; expected some of {', '.join(sorted(identifier.labels))}"
        )
    return identifier
