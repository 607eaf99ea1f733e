"""Converts values of Arrow tables: texts to Python values, and images to bytes after checking their size.

An image is a value of any binary type, a text in base64, Hugging Face's struct {bytes, path}, of which one may be null,
or a list of one of these.
"""

from typing import Any

import pyarrow as pa

from data_prep.inputs.base64_images import base64_image, is_base64_image
from data_prep.inputs.files import TOO_LARGE
from ufork.errors import SampleError

_NOT_UTF8 = "\udcff"


def holds_images(kind: pa.DataType) -> bool:
    """Whether values of type `kind` are image files rather than texts, which are paths of images or base64."""
    if is_list(kind) or pa.types.is_dictionary(kind):
        return holds_images(kind.value_type)
    if pa.types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0
    return _is_binary(kind)


def is_list(kind: pa.DataType) -> bool:
    """Whether `kind` is one of Arrow's list types."""
    types = pa.types
    return any(
        test(kind)
        for test in (
            types.is_list, types.is_large_list, types.is_fixed_size_list, types.is_list_view, types.is_large_list_view
        )
    )  # fmt: skip


def python_rows(batch: pa.RecordBatch | pa.Table) -> list[dict[str, Any]]:
    """Returns the table rows of `batch` by column. Texts that are not valid UTF-8 contain lone surrogates then."""
    columns = [_python_values(column) for column in batch.columns]
    return [dict(zip(batch.schema.names, row, strict=True)) for row in zip(*columns, strict=True)]


def image_or_path(value: pa.Scalar, *, max_bytes: int, where: str) -> bytes | str:
    """Returns the image file in `value`, or else the path in it.

    Args:
        value: an image in one of the forms above.
        max_bytes: size of the largest image that is accepted.
        where: name of the table row in errors.

    Raises:
        SampleError: the image is too large, there are several, or there is neither an image nor a path.
    """
    value = _only_item(_decoded(value), where)
    path = None
    if value.is_valid and pa.types.is_struct(value.type):
        path = _python_value(value["path"]) if value.type.get_field_index("path") >= 0 else None
        value = _decoded(value["bytes"])
    if value.is_valid and _is_binary(value.type):
        size = value.as_buffer().size
        if size > max_bytes:
            raise SampleError(TOO_LARGE, detail=f"{size} bytes", sample=where)
        return value.as_py()
    text = _python_value(value)
    if isinstance(text, str) and is_base64_image(text):
        return base64_image(text, max_bytes=max_bytes, where=where)
    path = path or text
    if isinstance(path, str) and path:
        return path
    raise SampleError("neither an image nor a path in the image column", sample=where)


def _decoded(value: pa.Scalar) -> pa.Scalar:
    """Returns the value that a dictionary-encoded one refers to."""
    return value.value if value.is_valid and pa.types.is_dictionary(value.type) else value


def _only_item(value: pa.Scalar, where: str) -> pa.Scalar:
    """Returns the only item of a list; any other value as it is."""
    if not value.is_valid or not is_list(value.type):
        return value
    if len(value.values) != 1:
        raise SampleError("more than one image" if len(value.values) else "no image", sample=where)
    return _decoded(value.values[0])


def _is_binary(kind: pa.DataType) -> bool:
    types = pa.types
    tests = (types.is_binary, types.is_large_binary, types.is_binary_view, types.is_fixed_size_binary)
    return any(test(kind) for test in tests)


def _python_values(column: pa.Array | pa.ChunkedArray) -> list[Any]:
    try:
        values = column.to_pylist()
    except UnicodeDecodeError:
        return [_python_value(value) for value in column]
    if _is_binary(column.type):  # as some programs store texts
        return [value if value is None else value.decode(errors="surrogateescape") for value in values]
    return values


def _python_value(value: pa.Scalar) -> Any:
    try:
        return value.as_py()
    except UnicodeDecodeError:
        return _NOT_UTF8
