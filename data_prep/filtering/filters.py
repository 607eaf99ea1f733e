"""What is left out of the shards by itself, whatever else the collection holds.

    a record and its image file  ->  length of its text  ->  the image's header  ->  language  ->  the image, decoded
                                 ->  Verdict: why it is dropped, or None, and what was learnt of it

Every check is off or permissive unless the config says otherwise, and the cheap ones come first.
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
"""A text is of another language when that is so many times as likely as each that is wanted. Short ones never are:
"tennis match" is Swedish with 0.09, twice as likely as English."""

_MIN_CONFIDENCE = 0.5
"""A language that is less likely is not named: the text is too short to tell."""

_LANGUAGE_CHARS = 2000
"""More of a text tells nothing new."""

_CHECKED_PX = 32
"""An image is checked as training decodes it, at a size that costs little."""


class FilterConfig(Config):
    """Which records are left out."""

    min_side_px: PositiveInt = 1
    """Images whose shorter side is below are dropped."""
    max_side_px: PositiveInt | None = None
    """Images whose longer side is above are dropped; null allows any."""
    max_aspect: float | None = Field(default=None, ge=1)
    """Images whose long side is more than so many times the short one are dropped; null allows any."""
    check_decode: bool = False
    """Whether each image is decoded to find damage, as training will; otherwise its header is all that is read."""
    min_text_chars: NonNegativeInt = 1
    """Records with less text are dropped. Text is the caption and all questions and answers; a class name is not
    measured, as it becomes a sentence only later."""
    max_text_chars: PositiveInt | None = None
    """Records with more text are dropped; null allows any."""
    languages: tuple[str, ...] | None = Field(default=None, min_length=1)
    """ISO 639 codes, as [en, de]; texts surely of another language are dropped, those too short to tell are kept.
    null keeps all and looks at none; anything else needs the package py3langid."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """On one record."""

    reason: str | None
    """Why it is dropped, in words under which such records are counted together; None for one that is kept."""
    image: ImageHeader | None = None
    """None without an image, or where the header was not reached or cannot be read."""
    language: str | None = None
    """ISO 639 code; None where nobody asked or the text is too short to tell."""


class Filters:
    """Judges records by a config. Build one in each process: the model of languages takes a second or two to load."""

    def __init__(self, config: FilterConfig) -> None:
        """Loads what the config asks for.

        Raises:
            ConfigError: a language is unknown, or the package that tells languages is not installed.
        """
        self._config = config
        self._languages = _load_languages(config.languages) if config.languages else None

    def judge(self, record: Record, image: bytes | None) -> Verdict:
        """Whether a record is kept, by its text and its undecoded image (None where it has none)."""
        facts, language = None, None
        text = _sentences(record)
        reason = None if record.class_name and not text else self._length_reason(len(text))
        if reason is None and image is not None:
            facts, reason = self._image_reason(image)
        if reason is None and self._languages is not None and text:
            language, reason = self._language_reason(text)
        if reason is None and image is not None and self._config.check_decode:
            reason = _damage(image)
        return Verdict(reason=reason, image=facts, language=language)

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
            facts = read_image_header(image)
        except SampleError as error:
            return None, str(error)
        if facts.short_px < config.min_side_px:
            return facts, f"image below {config.min_side_px} px"
        if config.max_side_px is not None and facts.long_px > config.max_side_px:
            return facts, f"image above {config.max_side_px} px"
        if config.max_aspect is not None and facts.aspect > config.max_aspect:
            return facts, f"image longer than {config.max_aspect:g} times its short side"
        return facts, None

    def _language_reason(self, text: str) -> tuple[str | None, str | None]:
        assert self._languages is not None and self._config.languages is not None
        ranks = self._languages.rank(text[:_LANGUAGE_CHARS])
        (likeliest, likelihood), wanted = ranks[0], set(self._config.languages)
        named = likeliest if likelihood >= _MIN_CONFIDENCE else None
        if likelihood > _SURELY_ANOTHER * max(value for language, value in ranks if language in wanted):
            return named, f"language is none of {', '.join(self._config.languages)}"
        return named, None


def text_of(record: Record) -> str:
    """All that is said of a record: its class name, caption, questions and answers."""
    return "\n".join(part for part in (record.class_name, _sentences(record)) if part)


def _sentences(record: Record) -> str:
    lines = [record.caption, *(part for turn in record.turns for part in turn)]
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
            "languages: telling them needs the package py3langid; pip install 'ufork[prep]' brings it"
        ) from None
    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    unknown = sorted(set(languages) - set(identifier.labels))
    if unknown:
        raise ConfigError(f"languages: {unknown} are not known; known are {', '.join(sorted(identifier.labels))}")
    return identifier
