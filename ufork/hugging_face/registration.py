"""Makes transformers' Auto classes know UniFork, without importing transformers before the program does.

    import ufork -> register_when_imported -> the program imports an Auto class -> ufork's class for it is registered

Importing transformers and torch takes seconds, which `import ufork` must not. Python asks the finders in
`sys.meta_path` for each module; the one here answers for the four modules of transformers that define Auto classes,
with their own loader, and registers a class once such a module has run.
"""

import importlib
import sys
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

AUTO_CLASSES = ("AutoModel", "AutoModelForCausalLM", "AutoModelForImageTextToText", "AutoModelForMultimodalLM")
"""transformers' classes that load the model."""
_AUTO = "transformers.models.auto"


def _register_config(module: ModuleType) -> None:
    module.AutoConfig.register("unifork", _config())


def _register_model(module: ModuleType) -> None:
    model = _class("modeling", "UniForkForConditionalGeneration")
    for name in AUTO_CLASSES:
        if hasattr(module, name):  # not all releases of transformers have all
            getattr(module, name).register(_config(), model)


def _register_image_processor(module: ModuleType) -> None:
    processor = _class("processing", "UniForkImageProcessor")
    module.AutoImageProcessor.register(_config(), image_processor_classes={"pil": processor})


def _register_processor(module: ModuleType) -> None:
    module.AutoProcessor.register(_config(), _class("processing", "UniForkProcessor"))


_REGISTER: dict[str, Callable[[ModuleType], None]] = {
    f"{_AUTO}.configuration_auto": _register_config,
    f"{_AUTO}.modeling_auto": _register_model,
    f"{_AUTO}.image_processing_auto": _register_image_processor,
    f"{_AUTO}.processing_auto": _register_processor,
}
"""What to call with each module once it is imported."""


def register_when_imported() -> None:
    """Registers ufork's classes with the Auto classes that are imported already, and with others when they are."""
    for name, register in _REGISTER.items():
        if name in sys.modules:
            register(sys.modules[name])
    sys.meta_path.insert(0, _Finder())


class _Finder(MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        spec = PathFinder.find_spec(fullname, path) if fullname in _REGISTER else None
        if spec and spec.loader:
            spec.loader = _Loader(spec.loader, _REGISTER[fullname])
        return spec


class _Loader(Loader):
    """Another loader, and what to call when a module is loaded."""

    def __init__(self, loader: Loader, register: Callable[[ModuleType], None]):
        self.loader, self.register = loader, register

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self.loader.exec_module(module)
        self.register(module)

    def __getattr__(self, name: str) -> Any:  # what `inspect` and others ask a module's loader for
        return getattr(self.loader, name)


def _config() -> type:
    return _class("configuration", "UniForkConfig")


def _class(module: str, name: str) -> type:
    # by its name, since this module is imported with ufork, before any other
    return getattr(importlib.import_module(f"ufork.hugging_face.{module}"), name)
