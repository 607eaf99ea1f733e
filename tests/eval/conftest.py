"""Fixtures of the tests of evaluation: sources of plain shapes, and a detector fitted on them once."""

import pytest

from tests.eval.scenes import shape_scenes
from ufork.eval.scenes.detector_fit import detector_for


@pytest.fixture(scope="session")
def sources(tmp_path_factory):
    """A folder with `train` and `heldout` scenes of shapes."""
    folder = tmp_path_factory.mktemp("scenes")
    shape_scenes.write_source(folder / "train", 240, seed=0, split="train")
    shape_scenes.write_source(folder / "heldout", 120, seed=1, split="heldout")
    return folder


@pytest.fixture(scope="session")
def detector_folder(tmp_path_factory, sources):
    folder = tmp_path_factory.mktemp("fitted") / "detector"
    detector_for(sources / "train", shape_scenes.SMALL_DETECTOR, folder=folder, seed=3)
    return folder


@pytest.fixture(scope="session")
def detector(sources, detector_folder):
    return detector_for(sources / "train", shape_scenes.SMALL_DETECTOR, folder=detector_folder, seed=3)
