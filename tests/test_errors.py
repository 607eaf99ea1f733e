"""What is quoted of another library's error."""

from ufork.errors import first_line


def test_an_error_is_quoted_by_its_first_line_or_by_its_type():
    assert first_line(RuntimeError("CUDA error: out of memory\nCompile with TORCH_USE_CUDA_DSA")) == (
        "CUDA error: out of memory"
    )
    assert first_line(AssertionError()) == "AssertionError" and first_line("") == "no message"
