"""`ufork serve` as a program: its arguments, what it prints, and how it ends."""

import json
import signal
import socket
import subprocess
import sys
import urllib.request

import pytest

from pipelines import cli
from tests.infer.test_model import save_trained
from tests.tiny import tiny_config


def test_an_address_that_is_taken_is_an_error_before_the_model_is_read(tmp_path, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert cli.main(["serve", "--checkpoint", str(tmp_path / "no-weights"), "--port", port]) == 2
    assert f"port {port} of 127.0.0.1 is taken by another program; give another --port" in capsys.readouterr().err


def test_an_address_that_others_reach_is_warned_of(tmp_path, caplog):
    assert cli.main(["serve", "--checkpoint", str(tmp_path / "no-weights"), "--host", "0.0.0.0", "--port", "0"]) == 1
    assert "whoever reaches this address can use the model" in caplog.text


@pytest.mark.parametrize(("option", "value"), [("port", "65536"), ("max-images", "0"), ("max-image-mib", "nan")])
def test_values_out_of_range_are_refused_before_the_model_is_read(tmp_path, option, value, capsys):
    assert cli.main(["serve", "--checkpoint", str(tmp_path / "no-weights"), f"--{option}", value]) == 2
    assert option.replace("-", "_") in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_prints_its_address_and_ends_when_asked_to(tmp_path, number):
    save_trained(tmp_path / "weights", tiny_config())
    command = [sys.executable, "-m", "pipelines.cli", "serve", "--checkpoint", tmp_path / "weights", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            url = process.stdout.readline().strip()
            with urllib.request.urlopen(f"{url}api/model", timeout=120) as answer:
                assert json.load(answer)["name"] == str(tmp_path / "weights")
            process.send_signal(number)
            _, complaints = process.communicate(timeout=120)
        finally:
            process.kill()
    assert process.returncode == 0
    assert complaints.endswith("ending\n") and "Traceback" not in complaints
