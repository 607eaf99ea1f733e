r"""Finds the places that a text keeps for images, in the notations of the common training formats.

"Picture 1: <img>a.jpg</img>\nWhat is it?"  ->  "What is it?", and one image, whose path is a.jpg
"""

import re

from data_prep.inputs.skipped_input import SkippedInput

_IMAGE_MARKER = re.compile(
    r"""(?:(?:Picture|Image)[ ]?-?\d{1,3}:\s*+)?(?:
        \(\s*+<image>\./</image>\s*+\) | <image>\./</image>                                    # MiniCPM-V
        | <(?P<tag>img|image)>(?P<path>[^<>\n]{1,1000}+)</(?P=tag)>                              # Qwen-VL
        | <img>\s*+(?:<ImageHere>|<image>|(?:<IMG_CONTEXT>)*+)\s*+</img>                        # MiniGPT-4, InternVL
        | <im_start>\s*+(?:<image>|(?:<im_patch>)*+)\s*+<im_end>                                # LLaVA 1.0
        | <\|vision_start\|>\s*+(?:<\|image_pad\|>)++\s*+<\|vision_end\|> | (?:<\|image_pad\|>)++   # Qwen2-VL
        | <start_of_image>(?:\s*+(?:<image_soft_token>)++\s*+<end_of_image>)?+ | (?:<image_soft_token>)++    # Gemma 3
        | <\|begin_of_image\|>(?:<\|\w{1,20}\|>)?<\|end_of_image\|>                            # GLM-4V
        | <\|image_start\|>(?:<\|(?!image_end\|)[\w@]{1,20}\|>)*+<\|image_end\|>                # Llama 4, ERNIE
        | <\|media_start\|>image<\|media_content\|>(?:<\|media_pad\|>)*+<\|media_end\|>          # Kimi-VL
        | <fake_token_around_image>\s*+<image>(?:\s*+<fake_token_around_image>)?+              # Idefics
        | <\|image(?:_\d{1,3})?\|>                                                             # Phi-3, Llama 3.2
        | (?-i:\[IMG\](?:\[IMG(?:_BREAK|_END)?\])*+)                                           # Pixtral
        | <image>(?:\s*+</image>)?+ | <im(?:g|age)[ _:]?\d{1,3}> | <ImageHere> | <image_placeholder> | <image_token>
    )""",
    re.IGNORECASE | re.VERBOSE,
)
_OTHER_MARKER = re.compile(
    r"<(?:video|audio|speech|sound|VideoHere|AudioHere)>|<\|(?:video|audio)(?:_\d{1,3}|_pad|_bos)?\|>", re.IGNORECASE
)


def is_image_marker(text: str) -> bool:
    """Whether `text` is nothing but a place for an image."""
    return _IMAGE_MARKER.fullmatch(text) is not None


def take_markers(text: str) -> tuple[str, list[str | None]]:
    """Returns `text` without its image markers, and for each of these the path that it holds.

    Raises:
        SkippedInput: the text has a place for a video or a sound.
    """
    if _OTHER_MARKER.search(text):
        raise SkippedInput("video or audio marker")
    found = list(_IMAGE_MARKER.finditer(text))
    ends = [0, *(match.end() for match in found)]
    starts = [*(match.start() for match in found), len(text)]
    # whitespace around a marker is that of the marker; `\s*` in the pattern would take quadratic time
    pieces = [text[end:start].strip() for end, start in zip(ends, starts, strict=True)] if found else [text]
    return " ".join(pieces), [match["path"] for match in found]
