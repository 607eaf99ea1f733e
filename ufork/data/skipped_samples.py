"""The samples that a rank's stream skipped: listed in a file, counted by reason, limited in number.

    SkippedSample -> a line of FOLDER/replica-00000.jsonl, a warning for each new reason, an error past the limit

A line has the fields task, source, sample, reason and detail. Training does not need the file: one that cannot be
written is an error in the log.
"""

import json
import logging
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from ufork.data.config import SKIPPED_BEFORE_LIMIT
from ufork.data.task_stream import SkippedSample
from ufork.errors import SampleError, StorageError
from ufork.files import make_folder, storage_errors

log = logging.getLogger(__name__)


class SkippedSamples:
    """The skipped samples of one data-parallel replica; one that is read again after a resume is listed again.

    Attributes:
        reasons: number of skipped samples by reason, since the process began.
    """

    def __init__(self, folder: Path | None, *, replica: int, max_share: float):
        """Writes nothing before the first skipped sample.

        Args:
            folder: the file's folder; None for no file.
            replica: number of the replica, for the file's name.
            max_share: share of the samples that may be skipped before `check` raises.
        """
        self.path = folder / f"replica-{replica:05d}.jsonl" if folder else None
        self.reasons: Counter[str] = Counter()
        self._max_share = max_share
        self._is_incomplete = False

    def add(self, skipped: Iterable[SkippedSample]) -> None:
        """Counts skipped samples and lists them in the file."""
        lines = []
        for sample in skipped:
            if not self.reasons[sample.reason]:
                detail = f" ({sample.detail})" if sample.detail else ""
                log.warning(
                    "sample skipped: %r of %s: %s%s; later ones like it are only counted",
                    sample.sample,
                    sample.source,
                    sample.reason,
                    detail,
                )
            self.reasons[sample.reason] += 1
            lines.append(json.dumps(asdict(sample), ensure_ascii=False) + "\n")
        if lines and self.path:
            self._append(self.path, lines)

    def check(self, num_taken: int) -> None:
        """Compares the number of skipped samples with the limit.

        Raises:
            SampleError: too many of `num_taken` samples were skipped.
        """
        skipped = self.reasons.total()
        if skipped >= SKIPPED_BEFORE_LIMIT and skipped > self._max_share * num_taken:
            listed = f"they are listed in {self.path}" if self.path else "no file lists them"
            raise SampleError(
                f"{skipped} of {num_taken} samples were skipped, more than data.max_skipped_share={self._max_share:g}:"
                f" {dict(self.reasons.most_common(5))}; {listed}. Fix the source,"
                " or raise the limit"
            )

    def _append(self, path: Path, lines: list[str]) -> None:
        try:
            make_folder(path.parent)
            with storage_errors(path), open(path, "a", encoding="utf-8", errors="backslashreplace") as file:
                file.writelines(lines)
        except StorageError as error:
            if not self._is_incomplete:
                log.error("%s; training continues, and skipped samples may be missing from this file", error)
            self._is_incomplete = True
