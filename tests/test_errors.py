"""What is quoted of another library's error, and what the operating system refuses as an error for users."""

import errno

import pytest

from ufork.errors import FailureClass, first_line, system_error


def test_an_error_is_quoted_by_its_first_line_or_by_its_type():
    assert first_line(RuntimeError("CUDA error: out of memory\nCompile with TORCH_USE_CUDA_DSA")) == (
        "CUDA error: out of memory"
    )
    assert first_line(AssertionError()) == "AssertionError" and first_line("") == "no message"


@pytest.mark.parametrize(
    ("error", "failure", "words"),
    [
        (
            OSError(errno.EIO, "Input/output error", "a.tar"),
            "storage",
            "a.tar: Input/output error; run the same command",
        ),
        (RuntimeError("Symlink loop from 'a'"), "storage", "'a': a link that leads to itself; choose another path"),
        (OSError(errno.EDQUOT, "Disk quota exceeded", b"a"), "storage", "a: Disk quota exceeded; free space there, or"),
        (OSError(errno.EMFILE, "Too many open files", "a"), "storage", r"raise the limit of open files \(ulimit -n\)"),
        (BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable"), "storage", r"\(ulimit -u, -v\)"),
        (OSError(errno.ENOENT, "No such file or directory"), "storage", "the current folder: No such file"),
        (
            OSError(errno.ENOENT, "No usable temporary directory found in ['/tmp']"),
            "storage",
            "^No usable temp.* found",
        ),
        (MemoryError(), "out of memory", r"too little memory \(MemoryError\); free memory"),
        (RuntimeError("std::bad_alloc"), "out of memory", r"too little memory \(std::bad_alloc\)"),
        (RuntimeError("can't start new thread"), "node", "can't start new thread; raise the limits of threads"),
        (RuntimeError("unable to open file <a> in read-only mode: I/O"), "storage", "unable to open file <a>"),
    ],
)
def test_what_the_system_refuses_is_an_error_with_a_remedy(error, failure, words):
    known = system_error(error)
    assert known and known.failure is FailureClass(failure)
    with pytest.raises(type(known), match=words):
        raise known


@pytest.mark.parametrize("bug", [KeyError("x"), RuntimeError("shapes differ"), OSError("of a library")])
def test_a_bug_is_none_of_them(bug):
    assert system_error(bug) is None
