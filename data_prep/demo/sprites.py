"""The vocabulary of scenes (kinds, tints, backgrounds), and painting them.

    Twemoji PNG  --resize, tint, blend-->  patch of pixels, cached  --paste-->  canvas  -->  PNG bytes

The pixels of a scene depend only on its background and placed objects. Sprites never overlap, and a sprite that is
blended with its plain background is opaque, so a scene is painted by copying patches.
"""

import struct
import zlib
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from pydantic import Field, PositiveInt, model_validator

from data_prep.demo.twemoji import blend, load_premultiplied, png_folder
from ufork.config import Config

NATURAL = "natural"
"""Colour of a sprite that is not tinted."""

WHITE = "white"
"""The background of a scene that names none."""


@dataclass(frozen=True)
class Kind:
    """A kind of object in scenes."""

    name: str
    plural: str
    hexcode: str


# Configs use the first `num_kinds`. The order makes the silhouettes, patterns and natural colours of the first kinds as
# different as possible.
KINDS = (
    Kind("dog", "dogs", "1f436"),
    Kind("bus", "buses", "1f68c"),
    Kind("tree", "trees", "1f333"),
    Kind("apple", "apples", "1f34e"),
    Kind("cat", "cats", "1f431"),
    Kind("umbrella", "umbrellas", "2602"),
    Kind("house", "houses", "1f3e0"),
    Kind("butterfly", "butterflies", "1f98b"),
    Kind("rocket", "rockets", "1f680"),
    Kind("penguin", "penguins", "1f427"),
    Kind("mushroom", "mushrooms", "1f344"),
    Kind("fish", "fish", "1f420"),
    Kind("clock", "clocks", "23f0"),
    Kind("ball", "balls", "26bd"),
    Kind("flower", "flowers", "1f33b"),
    Kind("elephant", "elephants", "1f418"),
)

TINTS = {
    "red": (225, 25, 30),
    "blue": (30, 70, 235),
    "green": (25, 155, 40),
    "yellow": (250, 205, 0),
    "purple": (150, 40, 190),
    "orange": (255, 120, 0),
}
"""Saturated RGB colours, far from all backgrounds and from each other."""

BACKGROUNDS = {WHITE: (255, 255, 255), "blue": (190, 222, 255), "pink": (255, 205, 225), "green": (205, 240, 200)}
"""Pale RGB colours, so that every tint stands out."""


class SpriteConfig(Config):
    """Vocabulary and geometry of scenes."""

    num_kinds: int = Field(default=16, ge=4, le=len(KINDS))
    """Number of kinds, the first of `KINDS`."""
    num_tints: int = Field(default=5, ge=2, le=len(TINTS))
    """Number of tints, the first of `TINTS`."""
    num_backgrounds: int = Field(default=4, ge=2, le=len(BACKGROUNDS))
    """Number of backgrounds, the first of `BACKGROUNDS`, which starts with white."""
    canvas_px: int = Field(default=64, ge=1, le=4096)
    """Height and width of a scene."""
    sprite_px: PositiveInt = 24
    """Height and width of a sprite."""
    position_step_px: PositiveInt = 8
    """Sprites are placed at multiples of this, which should be the image tokenizer's patch size: a sprite is then cut
    into the same patches everywhere, so equal objects have equal codes, which a small model can learn to draw."""

    @model_validator(mode="after")
    def _two_fit_beside_each_other(self) -> "SpriteConfig":
        if self.canvas_px < 2 * self.sprite_px:
            raise ValueError(f"two sprites of {self.sprite_px} px do not fit into canvas_px={self.canvas_px}")
        if self.cells_px[-1] < self.sprite_px:
            raise ValueError(f"position_step_px={self.position_step_px} leaves no position for a second sprite")
        return self

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """The kinds that are used."""
        return KINDS[: self.num_kinds]

    @property
    def kind_names(self) -> tuple[str, ...]:
        """Names of the kinds in the singular."""
        return tuple(kind.name for kind in self.kinds)

    @property
    def tints(self) -> tuple[str, ...]:
        """Names of the tints, without `NATURAL`."""
        return tuple(TINTS)[: self.num_tints]

    @property
    def backgrounds(self) -> tuple[str, ...]:
        """Names of the backgrounds."""
        return tuple(BACKGROUNDS)[: self.num_backgrounds]

    @property
    def cells_px(self) -> tuple[int, ...]:
        """Allowed positions of a sprite's left or top edge."""
        return tuple(range(0, self.canvas_px - self.sprite_px + 1, self.position_step_px))


@dataclass(frozen=True)
class Placed:
    """One sprite placed in a scene."""

    kind: str
    colour: str
    """A tint or NATURAL."""
    x: int
    """Left edge in px."""
    y: int
    """Top edge in px."""


class SpriteSheet:
    """Paints scenes; blended sprites are cached."""

    def __init__(self, config: SpriteConfig) -> None:
        """Loads no images yet: sprites are read on first use."""
        self._config = config
        self._hexcodes = {kind.name: kind.hexcode for kind in config.kinds}
        self._natural: dict[str, np.ndarray] = {}
        self._blended: dict[tuple[str, str, str], np.ndarray] = {}

    def paint(self, background: str, objects: Iterable[Placed]) -> np.ndarray:
        """Paints a scene; returns uint8 [canvas_px, canvas_px, 3]."""
        canvas = np.empty((self._config.canvas_px, self._config.canvas_px, 3), np.uint8)
        canvas[:] = BACKGROUNDS[background]
        size = self._config.sprite_px
        for placed in objects:
            patch = self.sprite(placed.kind, placed.colour, background)
            canvas[placed.y : placed.y + size, placed.x : placed.x + size] = patch
        return canvas

    def sprite(self, kind: str, colour: str, background: str) -> np.ndarray:
        """Returns one sprite on a background, uint8 [sprite_px, sprite_px, 3]."""
        key = (kind, colour, background)
        if key not in self._blended:
            if kind not in self._natural:
                path = png_folder() / f"{self._hexcodes[kind]}.png"
                self._natural[kind] = load_premultiplied(path, self._config.sprite_px)
            sprite = self._natural[kind]
            if colour != NATURAL:
                sprite = _tinted(sprite, TINTS[colour])
            self._blended[key] = blend(sprite, BACKGROUNDS[background])
        return self._blended[key]


def _tinted(premultiplied: np.ndarray, tint: tuple[int, int, int]) -> np.ndarray:
    """Tints a sprite by its contrast-stretched luminance: flat sprites get the tint, patterns stay visible."""
    alpha = premultiplied[..., 3]
    luminance = premultiplied[..., :3] @ np.array([0.299, 0.587, 0.114], np.float32) / np.maximum(alpha, 1e-3)
    solid = luminance[alpha > 0.5]
    low, middle, high = np.percentile(solid, [2, 50, 98])
    shade = 1 + 0.75 * (luminance - middle) / max(high - low, 0.4)
    colour = np.array(tint, np.float32) / 255
    # Dark pixels become darker but keep the tint; light pixels become slightly whiter.
    dark = colour * np.clip(shade, 0.4, 1)[..., None]
    light = (1 - colour) * np.clip(shade - 1, 0, 0.35)[..., None]
    return np.concatenate([(dark + light) * alpha[..., None], alpha[..., None]], axis=-1).astype(np.float32)


def encode_png(pixels: np.ndarray) -> bytes:
    """Encodes uint8 [H, W, 3] as a PNG, without line filters and with the fastest compression."""
    height, width, _ = pixels.shape
    lines = np.zeros((height, 1 + width * 3), np.uint8)  # each line starts with its filter type: 0, none
    lines[:, 1:] = pixels.reshape(height, -1)
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)  # 8 bits, RGB, no interlacing
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(lines.tobytes(), 1)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )
