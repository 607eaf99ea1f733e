"""The samples that a rank's stream left out: named in a file, counted by reason, and not endlessly many.

SkippedSample -> a line of FOLDER/replica-00000.jsonl, a warning for each new reason, an error past the limit
"""

import json
import logging
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from ufork.data.config import SKIPPED_BEFORE_LIMIT
from ufork.data.task_stream import SkippedSample
from ufork.errors import SampleError
from ufork.files import make_folder, storage_errors

log = logging.getLogger(__name__)


class SkippedSamples:
    """Those of one data-parallel replica. A sample that is read again after a resume is named again.

    Attributes:
        reasons: number of samples by why they were left out, since the process began.
    """

    def __init__(self, folder: Path | None, *, replica: int, max_share: float):
        """Nothing is written before there is something to name.

        Args:
            folder: where the file lies; None for no file.
            replica: whose file.
            max_share: of the samples taken, before `check` ends the run.
        """
        self.path = folder / f"replica-{replica:05d}.jsonl" if folder else None
        self.reasons: Counter[str] = Counter()
        self._max_share = max_share

    def add(self, skipped: Iterable[SkippedSample]) -> None:
        """Notes each.

        Raises:
            StorageError: the file cannot be written.
        """
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
        """Holds the number of samples left out against the limit.

        Raises:
            SampleError: there are too many of `num_taken`.
        """
        skipped = self.reasons.total()
        if skipped >= SKIPPED_BEFORE_LIMIT and skipped > self._max_share * num_taken:
            raise SampleError(
                f"{skipped} of {num_taken} samples were skipped, more than data.max_skipped_share={self._max_share:g}:"
                f" {dict(self.reasons.most_common(5))}; they are named in {self.path or 'no file'}. Mend the source,"
                " or raise the limit"
            )

    @staticmethod
    def _append(path: Path, lines: list[str]) -> None:
        make_folder(path.parent)
        with storage_errors(path), open(path, "a", encoding="utf-8", errors="backslashreplace") as file:
            file.writelines(lines)
