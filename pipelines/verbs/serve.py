"""Serves a page to draw and to ask about images in a browser, and the JSON API that the page uses (docs/serve.md).

Listens on this machine only, unless --host names another address. docs/serve.md has the defaults. Ctrl-C ends it.
"""

import argparse
import logging
from collections.abc import Callable
from types import FrameType

from pipelines.device_arguments import add_model_arguments, load_model, memory_errors
from pipelines.text_arguments import seconds, whole_number

log = logging.getLogger(__name__)

OPTIONS: dict[str, tuple[Callable[[str], str | float], str, str]] = {
    "host": (str, "HOST", "name or address to listen on; 0.0.0.0 for all of this machine's"),
    "port": (whole_number, "PORT", "port to listen on; 0 takes a free one"),
    "max_waiting": (whole_number, "N", "requests that may wait for others to end; each image is one"),
    "max_images": (whole_number, "N", "most images per prompt"),
    "max_image_mib": (float, "MIB", "largest image file to ask about"),
    "max_image_megapixels": (float, "MP", "largest image to ask about, in millions of pixels"),
    "max_seconds": (seconds, "S", "longest time from a request to its end, with waiting"),
}
"""Keys of `pipelines.serve.config.ServeConfig`, which has the defaults."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the weights, the address and the limits."""
    add_model_arguments(parser)
    for key, (kind, metavar, meaning) in OPTIONS.items():
        parser.add_argument(
            f"--{key.replace('_', '-')}", type=kind, metavar=metavar, default=argparse.SUPPRESS, help=meaning
        )
    parser.add_argument(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="further name under which browsers reach the server, such as a proxy's; may be given several times",
    )


def run(arguments: argparse.Namespace) -> None:
    """Serves until Ctrl-C or SIGTERM.

    Raises:
        UforkError: the weights, the address, a value or the device is at fault.
    """
    from pipelines.launch.stop_signals import handled
    from pipelines.serve.api import Api
    from pipelines.serve.config import ServeConfig
    from pipelines.serve.http_server import Server
    from pipelines.serve.pictures import Pictures
    from ufork.infer.config import EngineConfig
    from ufork.infer.engine import Engine
    from ufork.network_address import is_loopback

    chosen = {key: value for key, value in vars(arguments).items() if key in OPTIONS}
    config = ServeConfig.from_mapping({**chosen, "allowed_hosts": arguments.allow_host}, origin="options")
    engine_config = EngineConfig(max_waiting=config.max_waiting)
    with Server(config, max_requests=engine_config.max_requests) as server, memory_errors("Serve a smaller model"):
        if not is_loopback(config.host):
            log.warning(
                "--host %s: whoever reaches this address can use the model; there is no password and no encryption",
                config.host,
            )
        model = load_model(arguments.checkpoint, arguments)
        max_image_pixels = config.max_image_megapixels * 1e6
        with Pictures(model.codec, max_image_pixels=max_image_pixels) as pictures, handled(_stop):
            with Engine(model, engine_config) as engine:
                try:
                    print(server.url, flush=True)
                    log.info("Open this address in a browser. Ctrl-C ends the server.")
                    server.serve(Api(engine, pictures, config, name=str(arguments.checkpoint)))
                except KeyboardInterrupt:
                    log.info("ending")
            server.wait_for_connections()  # the engine has ended their requests, and they tell their clients


def _stop(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
