"""A folder of checkpoints, for the tests of folders and of their state."""

import pytest

from tests.checkpoint.saved import write_checkpoint
from ufork.checkpoint.folder import CheckpointFolder


@pytest.fixture
def folder(tmp_path):
    """Checkpoints after 10, 20 and 30 steps."""
    folder = CheckpointFolder(tmp_path / "checkpoints")
    folder.take()
    for step in (10, 20, 30):
        write_checkpoint(folder, step)
    return folder
