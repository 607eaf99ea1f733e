"""The page in a headless browser: as a person uses it, and with texts and files that are meant to harm."""

import json

import pytest

from tests.browser import PROGRAM, Browser
from tests.infer.test_engine import with_tokenizers
from tests.pipelines.serve.served import png, served, wait_until
from tests.tiny import tiny_config, tiny_model
from ufork.infer.config import DrawConfig, EngineConfig
from ufork.vocabulary import Task

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(PROGRAM is None, reason="no Chromium on the PATH"),
]
HOSTILE = "<img src=x onerror='document.title=`hacked`'>\"><script>document.title=`hacked`<"
IS_READY = "document.body.dataset.ready"
IS_IDLE = "document.querySelector('#history li') && !document.querySelector('[aria-busy]')"
PROBLEM = "#history .problem:not([hidden])"


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with Browser(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture(scope="module")
def model():
    return with_tokenizers(tiny_model())


@pytest.fixture
def opened(browser):
    """Opens a server's page; afterwards it must have loaded nothing from elsewhere, and reported no error."""
    pages = []

    def open_page(server, **size):
        page = browser.open(f"http://localhost:{server.port}/", **size)
        page.wait_for(IS_READY)
        pages.append((page, server))
        return page

    yield open_page
    for page, server in pages:
        urls = [event["request"]["url"] for event in page.events("Network.requestWillBeSent")]
        own = (f"http://localhost:{server.port}/", "data:", "blob:")
        assert [url for url in urls if not url.startswith(own)] == []
        assert page.events("Runtime.exceptionThrown") == []
        assert page.run("document.title") == "ufork"
        page.close()


def draw(page, prompt, num_images=2):
    page.fill("#prompt", prompt)
    page.fill("#num-images", num_images)
    page.fill("#seed", 3)
    page.click("#draw button")


def ask(page, question):
    page.fill("#question", question)
    page.click("#ask button")


def shown_pixels(page, selector):
    """The pixels of an image on the page, RGBA in one list."""
    return page.run(f"""(async () => {{
        const image = document.querySelector({json.dumps(selector)});
        await image.decode();
        const canvas = new OffscreenCanvas(image.naturalWidth, image.naturalHeight).getContext("2d");
        canvas.drawImage(image, 0, 0);
        return [...canvas.getImageData(0, 0, image.naturalWidth, image.naturalHeight).data];
    }})()""")


def test_images_are_drawn_position_by_position_and_asked_about(model, opened):
    with served(model, computes=False) as server:
        page = opened(server)
        draw(page, "a dog")
        wait_until(lambda: server.engine.num_waiting == 2)
        server.engine.step()
        page.wait_for("document.querySelector('#history figcaption').textContent === 'seed 3: 2 of 4'")
        assert shown_pixels(page, "#history img")[-4:] == [127, 127, 127, 255], "the last position is not drawn yet"
        server.engine.start()
        page.wait_for(IS_IDLE)
        expected = model.draw(["a dog"], DrawConfig(seed=3))[0]
        found = shown_pixels(page, "#history img")
        assert [value for index, value in enumerate(found) if index % 4 < 3] == expected.ravel().tolist()
        assert page.run("document.querySelectorAll('#history a')[1].download") == "a-dog-seed-4.png"

        page.click("#history figcaption button")
        ask(page, "what is this?")
        page.wait_for(IS_IDLE)
        assert page.text("#history h3") == "what is this?"
        assert page.text("#history .answer") == model.answer(expected[None], ["what is this?"])[0].strip()
        assert page.run("document.querySelectorAll('#history > li').length") == 2


def test_an_uploaded_image_is_asked_about_and_its_name_is_no_markup(model, opened, tmp_path):
    path = tmp_path / f"{HOSTILE}.png"
    path.write_bytes(png(24))
    with served(model) as server:
        page = opened(server)
        ask(page, "what is this?")
        assert page.text("#ask .problem") == "Choose an image first."
        page.upload("#file", path)
        page.wait_for("!document.querySelector('#chosen').hidden")
        assert page.run("document.querySelector('#chosen figcaption').textContent") == path.name
        ask(page, HOSTILE)
        page.wait_for(IS_IDLE)
        assert page.text("#history h3") == HOSTILE and path.name in page.text("#history .settings")
        draw(page, HOSTILE, num_images=1)
        page.wait_for(IS_IDLE)
        assert page.run("document.querySelectorAll('#history script, #history [onerror]').length") == 0


def test_files_that_are_no_images_or_too_large_are_refused_with_the_reason(model, opened, tmp_path):
    (tmp_path / "x.png").write_bytes(b"<svg onload='document.title=1'>")
    (tmp_path / "large.png").write_bytes(png(100))
    with served(model, max_image_mib=0.01) as server:
        page = opened(server)
        page.upload("#file", tmp_path / "x.png")
        page.wait_for("!document.querySelector('#chosen').hidden")
        ask(page, "what is this?")
        page.wait_for(IS_IDLE)
        assert "image is none of" in page.text(PROBLEM)
        page.upload("#file", tmp_path / "large.png")
        page.wait_for("document.querySelector('#ask .problem').textContent.startsWith('large.png has 0')")
        assert page.run("document.querySelector('#chosen').hidden")


def test_a_full_queue_is_said_and_the_next_request_is_drawn(model, opened):
    with served(model, EngineConfig(max_drawings=1, max_waiting=2), computes=False) as server:
        page = opened(server)
        draw(page, "a dog")
        wait_until(lambda: server.engine.num_waiting == 2)
        draw(page, "a cat")
        page.wait_for(f"document.querySelector('{PROBLEM}')")
        assert "2 requests are waiting, as many as this engine allows" in page.text(PROBLEM)
        server.engine.start()
        page.wait_for(IS_IDLE)
        draw(page, "a cat")
        page.wait_for(IS_IDLE)
        assert page.text("#history figcaption").startswith("seed 3\n")


def test_stopping_a_request_and_closing_the_page_cancel_it(model, opened, browser):
    with served(model, computes=False) as server:
        page = opened(server)
        draw(page, "a dog")
        wait_until(lambda: server.engine.num_waiting == 2)
        page.click("#history .title button")
        page.wait_for(IS_IDLE)
        assert page.text(PROBLEM) == "Stopped."
        wait_until(lambda: not server.engine.step())
        other = browser.open(f"http://localhost:{server.port}/")
        other.wait_for(IS_READY)
        draw(other, "a dog")
        wait_until(lambda: server.engine.num_waiting == 2)
        other.close()
        wait_until(lambda: not (server.engine.step() or server.engine.num_running))


def test_a_server_that_has_ended_is_said(model, opened):
    with served(model, computes=False) as server:
        page = opened(server)
        draw(page, "a dog")
        wait_until(lambda: server.engine.num_waiting == 2)
    page.wait_for(IS_IDLE)
    assert "the engine was closed" in page.text("#history figcaption")
    draw(page, "a dog")
    page.wait_for(IS_IDLE)
    assert "The server cannot be reached" in page.text(PROBLEM)


def test_only_what_the_model_can_do_is_shown(opened):
    with served(with_tokenizers(tiny_model(tiny_config(tasks=(Task.GENERATION,))))) as server:
        page = opened(server)
        assert page.run("document.querySelector('#ask').hidden") and not page.run(
            "document.querySelector('#draw').hidden"
        )
        draw(page, "a dog")
        page.wait_for(IS_IDLE)
        assert page.run("document.querySelectorAll('#history button').length") == 0, "nothing to ask with"


def test_the_keyboard_suffices(model, opened):
    with served(model) as server:
        page = opened(server)
        page.run("document.querySelector('#prompt').focus()")
        page.call("Input.insertText", {"text": "a dog"})
        page.press("Enter", 13, "\r")
        page.wait_for(IS_IDLE)
        assert page.text("#history h3") == "a dog"
        for _ in range(5):
            page.press("Tab", 9)
        assert page.run("document.activeElement.textContent") == "Draw"


@pytest.mark.parametrize("width", [1280, 390])
def test_every_input_has_a_label_and_nothing_is_wider_than_the_screen(model, opened, width):
    with served(model) as server:
        page = opened(server, width=width)
        draw(page, "supercalifragilistic" * 8, num_images=3)
        page.wait_for(IS_IDLE)
        assert page.run("document.documentElement.scrollWidth") == width
        assert page.run("[...document.querySelectorAll('input, textarea')].every((input) => input.labels.length)")
