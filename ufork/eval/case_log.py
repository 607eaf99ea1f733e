"""The scored cases of a benchmark on disk, by which an interrupted or enlarged evaluation resumes.

batch of ScoredCase -> one JSON line each, appended to FOLDER/cases.jsonl
FOLDER/cases.jsonl whose first line has the same fingerprint -> the cases that need not be asked again

Each line has a checksum: one that was cut, damaged or edited would otherwise become another score.
"""

import json
import logging
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from ufork.eval.record import CaseScore, Example, Record
from ufork.files import Checksum, make_folder, storage_errors, write_whole

logger = logging.getLogger(__name__)


class ScoredCase(Record):
    """One case with its score, and how the report shows it."""

    id: str
    score: CaseScore
    example: Example | None = None


class CaseLog:
    """Scored cases by id; opened on a folder, which is made."""

    def __init__(self, folder: Path, fingerprint: str) -> None:
        """Reads the scored cases of an earlier evaluation with the same fingerprint, and starts over otherwise.

        Args:
            folder: the benchmark's folder.
            fingerprint: text of everything that scores depend on: weights, benchmark, sampling.

        Raises:
            StorageError: the folder cannot be written.
        """
        self.path = make_folder(folder) / "cases.jsonl"
        header = json.dumps({"fingerprint": fingerprint})
        lines = self._lines()
        self.scored: dict[str, ScoredCase] = {}
        if lines and lines[0] == header:
            self.scored = {case.id: case for line in lines[1:] if (case := _parsed(line))}
        if self.scored:
            logger.info("%s: %d cases were scored before", self.path, len(self.scored))
        kept = [header, *map(_line, self.scored.values())]
        write_whole(self.path, "".join(f"{line}\n" for line in kept))

    def append(self, cases: Sequence[ScoredCase]) -> None:
        """Adds scored cases.

        Raises:
            StorageError: the file cannot be written.
        """
        self.scored |= {case.id: case for case in cases}
        with storage_errors(self.path), open(self.path, "a", encoding="utf-8") as file:
            file.writelines(f"{_line(case)}\n" for case in cases)

    def _lines(self) -> list[str]:
        if not self.path.is_file():
            return []
        with storage_errors(self.path):
            return self.path.read_text(encoding="utf-8", errors="replace").splitlines()


def _line(case: ScoredCase) -> str:
    content = case.model_dump_json()
    return f'{{"checksum":"{Checksum(content.encode()).hexdigest()}",{content[1:]}'


def _parsed(line: str) -> ScoredCase | None:
    """Returns the case of a line; None if the line is not as it was written."""
    try:
        case = ScoredCase.model_validate_json(line)
        return case if _line(case) == line else None
    except (ValidationError, UnicodeEncodeError):
        return None
