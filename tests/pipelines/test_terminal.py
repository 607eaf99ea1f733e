"""Control characters in names and messages do not reach the terminal, and closed streams no other file."""

import logging
import subprocess
import sys

from pipelines.terminal import PrintableFormatter, printable, show


def test_printable_text_is_unchanged():
    assert printable("a dog, été, 犬 ✓") == "a dog, été, 犬 ✓"


def test_control_characters_and_lone_surrogates_are_escaped():
    assert printable("\x1b[2J\r\x07\x9b\u202e\udc80") == "\\x1b[2J\\r\\x07\\x9b\\u202e\\udc80"
    assert printable("a\n\tb\r", keep="\n\t") == "a\n\tb\\r"


def test_log_records_keep_their_lines_only():
    record = logging.LogRecord("ufork", logging.WARNING, "", 0, "sample skipped: %s\nnext", ("\x1b]0;x\x07",), None)
    assert PrintableFormatter("%(message)s").format(record) == "sample skipped: \\x1b]0;x\\x07\nnext"


def test_what_is_shown_keeps_its_lines_only(capsys):
    show("a\x1b[2J\n\tb\udc80")
    assert capsys.readouterr().out == "a\\x1b[2J\n\tb\\udc80\n"


def test_closed_streams_give_their_numbers_to_no_other_file(tmp_path):
    """What libraries print would be written into a checkpoint."""
    program = (
        "import os; from pipelines.terminal import make_streams_safe; make_streams_safe()\n"
        "assert all(map(os.get_inheritable, range(3)))\n"
        "with open('file', 'w') as file:\n    print('printed'); os.system('echo printed; echo printed >&2')\n"
        "    file.write('written')"
    )
    command = f'exec {sys.executable} -c "$PROGRAM" <&- >&- 2>&-'
    environment = {"PROGRAM": program, "PYTHONPATH": ":".join(sys.path)}
    assert subprocess.run(["bash", "-c", command], cwd=tmp_path, env=environment, check=False).returncode == 0
    assert (tmp_path / "file").read_text() == "written"
