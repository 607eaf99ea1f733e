"""Converts values of Arrow tables: texts to Python values, and images to bytes after checking their size.

An image has the type `binary`, or Hugging Face's struct {bytes, path}, of which one may be null.
"""

from typing import Any

import pyarrow as pa

from data_prep.inputs.files import TOO_LARGE
from ufork.errors import SampleError

_NOT_UTF8 = "\udcff"


def holds_images(kind: pa.DataType) -> bool:
    """Whether values of type `kind` are image files rather than paths of images."""
    if pa.types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def python_rows(batch: pa.RecordBatch | pa.Table) -> list[dict[str, Any]]:
    """Returns the table rows of `batch` by column. A text that is not valid UTF-8 becomes a lone surrogate."""
    columns = [_python_values(column) for column in batch.columns]
    return [dict(zip(batch.schema.names, row, strict=True)) for row in zip(*columns, strict=True)]


def image_or_path(value: pa.Scalar, *, max_bytes: int, where: str) -> bytes | str:
    """Returns the image file in `value`, or else the path in it.

    Args:
        value: a binary value or a struct {bytes, path}.
        max_bytes: size of the largest image that is accepted.
        where: name of the table row in errors.

    Raises:
        SampleError: the image is too large, or there is neither an image nor a path.
    """
    path = None
    if value.is_valid and pa.types.is_struct(value.type):
        path = _python_value(value["path"]) if value.type.get_field_index("path") >= 0 else None
        value = value["bytes"]
    if value.is_valid:
        size = value.as_buffer().size
        if size > max_bytes:
            raise SampleError(TOO_LARGE, detail=f"{size} bytes", sample=where)
        return value.as_py()
    if isinstance(path, str) and path:
        return path
    raise SampleError("neither an image nor a path in the image column", sample=where)


def _python_values(column: pa.Array | pa.ChunkedArray) -> list[Any]:
    try:
        return column.to_pylist()
    except UnicodeDecodeError:
        return [_python_value(value) for value in column]


def _python_value(value: pa.Scalar) -> Any:
    try:
        return value.as_py()
    except UnicodeDecodeError:
        return _NOT_UTF8
