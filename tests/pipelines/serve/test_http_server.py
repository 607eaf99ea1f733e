"""The API over HTTP: what is drawn and answered, what is refused with which words, and who cannot ask."""

import base64
import io
import json
import socket
import time

import numpy as np
import pytest
from PIL import Image

from pipelines.serve import http_server, streams
from pipelines.serve.config import ServeConfig
from pipelines.serve.http_server import Server
from tests.infer.test_engine import with_tokenizers
from tests.pipelines.serve.served import JSON, png, served, wait_until
from tests.tiny import tiny_config, tiny_model
from ufork.errors import ConfigError
from ufork.infer.config import AnswerConfig, DrawConfig, EngineConfig
from ufork.vision.images import decode_image
from ufork.vocabulary import Task

IMAGE = base64.b64encode(png(24)).decode()
DRAW = {"prompt": "a dog", "num_images": 2, "sampling": {"seed": 3, "guidance": 2.0}}
ASK = {"image": IMAGE, "question": "what is this?", "sampling": {"max_tokens": 6}}


POST = b"POST /api/draw HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"


@pytest.fixture(scope="module")
def model():
    return with_tokenizers(tiny_model())


@pytest.fixture(scope="module")
def server(model):
    with served(model) as server:
        yield server


def pixels(event):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(event["png"]))))


def test_images_are_those_of_their_seeds_and_appear_as_they_are_drawn(model):
    with served(model, computes=False) as server:
        connection = server.send(request("/api/draw", DRAW))
        lines = connection.makefile("rb")
        wait_until(lambda: server.engine.num_waiting == 2)
        server.engine.step()
        while (line := next(lines)) and not line.startswith(b"{"):
            pass
        assert json.loads(line)["positions"] in (1, 2), "a picture comes before the drawing's end"
        while server.engine.step():
            pass
        events = [json.loads(line) for line in lines]
    assert events[-1] == {"event": "end"}
    finished = {event["image"]: event for event in events[:-1] if event["positions"] == event["of_positions"] == 4}
    for image, event in sorted(finished.items()):
        assert event["seed"] == 3 + image
        expected = model.draw(["a dog"], DrawConfig(seed=3 + image, guidance=2.0))[0]
        assert np.array_equal(pixels(event), expected)
    assert len(finished) == 2


def test_answers_stream_and_add_up(model, server):
    *texts, end = server.events("/api/answer", ASK)
    image = decode_image(png(24), size_px=16, purpose=Task.UNDERSTANDING)
    assert end == {"event": "end"}
    assert (
        "".join(event["text"] for event in texts)
        == model.answer(image[None], ["what is this?"], AnswerConfig(max_tokens=6))[0]
    )


def test_what_the_model_can_do_is_described(server):
    status, _, data = server.ask("GET", "/api/model")
    described = json.loads(data)
    assert status == 200 and described["tasks"] == ["understanding", "generation"] and described["image_px"] == 16
    assert described["draw"] == DrawConfig().model_dump(exclude={"batch_prompts"})
    assert described["limits"]["max_images"] == 8


def test_a_model_of_one_task_says_so_and_refuses_the_other():
    model = with_tokenizers(tiny_model(tiny_config(tasks=(Task.GENERATION,))))
    with served(model) as server:
        assert json.loads(server.ask("GET", "/api/model")[2])["tasks"] == ["generation"]
        status, message = server.refusal("/api/answer", ASK)
    assert status == 400 and "no understanding branch" in message


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        ("/api/draw", b"{", "not JSON"),
        ("/api/draw", b"[" * 10_000, "not JSON"),
        ("/api/draw", [], "expected a JSON object, found list"),
        ("/api/draw", {}, "prompt: Field required"),
        ("/api/draw", {"prompt": " "}, "none of them empty"),
        ("/api/draw", {"prompt": "\ud800"}, "not valid Unicode"),
        ("/api/draw", {"prompt": "x" * 20_000}, "at most 10,000 are read"),
        ("/api/draw", {"prompt": "x", "num_images": 9}, "num_images is 9, this server draws at most 8"),
        ("/api/draw", {"prompt": "x", "number": 9}, "number: unknown key; the nearest known one is 'num_images'"),
        ("/api/draw", {"prompt": "x", "sampling": {"guidance": float("nan")}}, "NaN is no number"),
        ("/api/draw", {"prompt": "x", "sampling": {"guidance": 1e308}}, "guidance"),
        ("/api/draw", b'{"prompt": "x", "sampling": {"seed": %s}}' % (b"9" * 5000), "not JSON"),
        ("/api/draw", b'{"prompt": "x", "num_images": 1, "prompt": "y"}', "a key twice"),
        ("/api/draw", b'{"prompt": [%s0]}' % (b"[]," * 20_000), "more than 20,000 commas and brackets"),
        ("/api/draw", {"prompt": "x", "num_images": 2, "sampling": {"seed": 2**63 - 1}}, "seed"),
        ("/api/answer", {**ASK, "image": "?"}, "in base64"),
        ("/api/answer", {**ASK, "image": base64.b64encode(b"<svg>").decode()}, "image is none of"),
        ("/api/answer", {**ASK, "image": base64.b64encode(png(24)[:90]).decode()}, "cannot be decoded"),
        ("/api/answer", {**ASK, "image": ""}, "empty file"),
        ("/api/answer", {**ASK, "sampling": {"max_tokens": 600}}, "this engine allows 512"),
    ],
)
def test_bodies_at_fault_are_refused_with_the_reason(server, path, body, message):
    status, found = server.refusal(path, body)
    assert status == 400 and message in found


def test_a_full_queue_refuses_all_images_of_a_prompt_and_takes_requests_again(model):
    with served(model, EngineConfig(max_drawings=1, max_waiting=3), computes=False) as server:
        waiting = server.send(request("/api/draw", DRAW))
        wait_until(lambda: server.engine.num_waiting == 2)
        status, message = server.refusal("/api/draw", DRAW)
        assert status == 503 and "3 requests are waiting, as many as this engine allows" in message
        server.engine.step()
        assert server.engine.num_waiting == 1, "no image of the refused prompt waits"
        server.engine.start()
        assert b'{"event": "end"}' in waiting.makefile("rb").read()
        assert server.events("/api/draw", DRAW)[-1] == {"event": "end"}


def test_a_client_that_goes_away_cancels_its_request(model):
    with served(model, EngineConfig(max_drawings=1), computes=False) as server:
        connections = [server.send(request("/api/draw", DRAW)), server.send(request("/api/answer", ASK))]
        wait_until(lambda: server.engine.num_waiting == 3)
        server.engine.step()
        assert server.engine.num_running == 2
        for connection in connections:
            connection.close()
        wait_until(lambda: not server.engine.step() and not server.engine.num_running)


def test_a_request_over_its_time_ends_with_the_reason(model):
    with served(model, computes=False, max_seconds=0.3) as server:
        (event,) = server.events("/api/draw", DRAW)
        assert event["event"] == "error" and "0.3 s, the limit of this server (--max-seconds)" in event["message"]
        server.engine.step()
        assert server.engine.num_waiting == server.engine.num_running == 0


def test_the_error_of_one_image_ends_no_other(model, monkeypatch, caplog):
    monkeypatch.setattr(streams.Arrival, "notify", fail_for_seed_3(streams.Arrival.notify))
    with served(model) as server:
        events = server.events("/api/draw", DRAW)
    failed = [event for event in events if event["event"] == "failed"]
    assert failed == [
        {"event": "failed", "image": 0, "message": "the server has failed with ZeroDivisionError; its log shows more"}
    ]
    assert [event["image"] for event in events if event.get("positions") == 4] == [1]
    assert events[-1] == {"event": "end"} and "a request has failed" in caplog.text


def fail_for_seed_3(notify):
    first = []

    def notify_or_fail(arrival, reply):
        first.append(reply)
        if reply is first[0] and not reply.has_ended:
            raise ZeroDivisionError
        notify(arrival, reply)

    return notify_or_fail


def test_requests_end_with_a_message_when_the_server_does(model):
    with served(model, computes=False) as server:
        connection = server.send(request("/api/answer", ASK))
        wait_until(lambda: server.engine.num_waiting == 1)
    assert b'"error", "message": "the engine was closed' in connection.makefile("rb").read()


def test_too_large_requests_are_refused_before_they_are_read(model):
    with served(model, max_image_mib=0.001) as server:
        status, message = server.refusal("/api/answer", {**ASK, "image": base64.b64encode(png(40)).decode()})
        assert status == 400 and "MiB, this server reads 0.001 MiB (--max-image-mib)" in message
        connection = server.send(b"POST /api/answer HTTP/1.1\r\nHost: localhost\r\n" + LARGE)
        assert b"413" in connection.makefile("rb").readline()


LARGE = b"Content-Type: application/json\r\nContent-Length: 99999999999\r\n\r\n{"


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "attacker.example"}, 403),
        ({"Origin": "http://attacker.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Content-Type": "text/plain"}, 415),
    ],
)
def test_what_a_page_of_another_site_could_send_is_refused(server, headers, status):
    assert server.refusal("/api/draw", DRAW, headers)[0] == status
    if "Host" in headers:
        assert server.ask("GET", "/api/model", headers=headers)[0] == status


def test_every_response_forbids_content_from_elsewhere(server):
    for path, status in (("/", 200), ("/page.js", 200), ("/api/model", 200), ("/nothing", 404), ("/../config.py", 404)):
        found, headers, _ = server.ask("GET", path)
        assert found == status
        assert headers["Content-Security-Policy"].startswith("default-src 'none'; script-src 'self'")
        assert headers["X-Content-Type-Options"] == "nosniff" and "Access-Control-Allow-Origin" not in headers


@pytest.mark.parametrize(
    "data", [b"\0\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"PUT / HTTP/1.1\r\nHost: localhost\r\n\r\n"]
)
def test_what_is_no_request_is_refused_as_json(server, data):
    answer = server.send(data).makefile("rb").read()
    assert b'{"message": ' in answer


def test_connections_are_bounded(model, monkeypatch):
    monkeypatch.setattr(http_server, "SPARE_CONNECTIONS", 1)
    with served(model, EngineConfig(max_waiting=1)) as server:
        idle = [server.send(b"") for _ in range(2)]
        refused = server.send(b"GET / HTTP/1.1\r\n").makefile("rb").read()
        assert b" 503 " in refused and b"2 connections are open, as many as this server takes" in refused
        idle[0].close()
        wait_until(lambda: is_answered(server))
        idle[1].close()


@pytest.mark.parametrize(
    ("start", "then"),
    [
        (b"", b"G"),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\n", b"X-A: b\r\n"),
        (
            POST % 999,
            b" ",
        ),
    ],
)
def test_a_client_that_sends_little_by_little_is_dropped(model, start, then, monkeypatch):
    for part in ("HEADER", "BODY"):
        monkeypatch.setattr(http_server, f"{part}_SECONDS", 0.3)
    with served(model) as server:
        connection, began = server.send(start), time.monotonic()
        with pytest.raises(ConnectionError):
            while time.monotonic() < began + 30:
                connection.sendall(then)
                time.sleep(0.05)
        assert time.monotonic() < began + 15
        wait_until(lambda: is_answered(server))


def test_headers_are_bounded(server):
    with pytest.raises(ConnectionError):
        connection = server.send(b"GET / HTTP/1.1\r\nHost: localhost\r\n")
        connection.sendall(b"X-A: %s\r\n" % (b"b" * 60_000) * 20)
        assert connection.makefile("rb").read() == b""
        raise ConnectionError
    assert is_answered(server)


def test_bodies_are_bounded_together(model, monkeypatch):
    monkeypatch.setattr(http_server, "BODIES_AT_ONCE", 1)
    with served(model, max_image_mib=0.01) as server:
        most = server.server.api.max_body_bytes
        head = (
            "POST /api/draw HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n"
        )
        unfinished = server.send(head.format(most).encode() + b" " * (most - 8))
        wait_until(lambda: server.server.bodies._left < 200)
        status, message = server.refusal("/api/draw", DRAW | {"prompt": "x" * 200})
        assert status == 503 and "fill the server's memory; try again later" in message
        unfinished.close()
        wait_until(lambda: server.server.bodies._left == most)
        assert server.events("/api/draw", DRAW)[-1] == {"event": "end"}


def test_long_names_are_cut_in_the_refusal(server):
    status, message = server.refusal("/api/draw", {"prompt": "x", "y" * 2_000_000: 1})
    assert status == 400 and "unknown key" in message and len(message) < 1000


@pytest.mark.parametrize("headers", ["Host: attacker.example", "Origin: http://attacker.example"])
def test_a_second_host_or_origin_does_not_pass_beside_the_first(server, headers):
    own = f"Host: localhost:{server.port}\r\nOrigin: http://localhost:{server.port}\r\n"
    answer = server.send(f"GET /api/model HTTP/1.1\r\n{own}{headers}\r\n\r\n".encode()).makefile("rb").read()
    assert b" 403 " in answer.splitlines()[0]


def is_answered(server):
    try:
        return server.ask("GET", "/api/model")[0] == 200
    except OSError:
        return False


def test_a_port_that_is_taken_and_an_address_of_another_machine_are_errors_with_the_remedy():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"port {port} of 127.0.0.1 is taken .* --port 0 for any free one"):
            Server(ServeConfig(port=port), max_requests=1)
    for host in ("192.0.2.1", "a..b"):
        with pytest.raises(ConfigError, match=rf"cannot listen on port 0 of {host} .* 0.0.0.0 for all"):
            Server(ServeConfig(host=host, port=0), max_requests=1)


def request(path, body):
    data = json.dumps(body).encode()
    headers = {"Host": "localhost", "Content-Length": len(data), **JSON}
    lines = [f"POST {path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items()), "", ""]
    return "\r\n".join(lines).encode() + data
