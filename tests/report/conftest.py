"""Reports are made of evaluations, which need the scenes that the tests of evaluation share."""

from tests.eval.conftest import detector, detector_folder, sources

__all__ = ["detector", "detector_folder", "sources"]
