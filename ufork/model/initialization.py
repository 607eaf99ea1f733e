"""Initial weights that depend on the seed and the parameter's name alone.

Each parameter has its own random generator, so a rank that builds one stage gets the same weights as the whole model,
for any layout.
"""

import hashlib
import itertools

import torch
from torch import Tensor, nn

from ufork.model.config import ModelConfig
from ufork.model.image_embedding import ImageProjector
from ufork.model.rq_head import RqHead
from ufork.model.unifork import TIED_HEAD, TOKEN_EMBEDDING, UniFork
from ufork.vocabulary import Task

_UNDERSTANDING_FIRST, _GENERATION_FIRST = (f"trunk.first_stacks.{task}." for task in Task)
_UNDERSTANDING_STACK, _GENERATION_STACK = (f"branches.{task}.stack." for task in Task)


def initialize(model: UniFork, seed: int) -> None:
    """Fills every parameter: the body N(0, initializer_range), projector and RQ head with torch's defaults.

    (Specification of the release, section 2.)

    If the branches are equally deep, generation starts as a copy of understanding; separate first layers always do, as
    in Uni-X's code. A tied text head on another stage than the token embedding starts as its copy. Copies use the
    generator of the original.
    """
    for name, parameter in model.named_parameters():
        fill_parameter(parameter, name, model, seed)


@torch.no_grad()
def fill_parameter(parameter: Tensor, name: str, model: UniFork, seed: int) -> None:
    """Fills a tensor as `initialize` fills the parameter `name` of `model`, which may itself be on the meta device."""
    owner_name, _, kind = name.rpartition(".")
    generator = torch.Generator().manual_seed(_seed_of(original_name(name, model.config), seed))
    if starts_as_torch(name, model):
        _fill_as_torch(parameter, model.get_submodule(owner_name), kind, generator)
    else:
        _fill_body(parameter, kind, model.config.initializer_range, generator)


def starts_as_torch(name: str, model: UniFork) -> bool:
    """Whether a parameter belongs to the projector or the RQ head, which start with torch's defaults."""
    owners = itertools.accumulate(name.split(".")[:-1], lambda outer, inner: f"{outer}.{inner}")
    return any(isinstance(model.get_submodule(owner), ImageProjector | RqHead) for owner in owners)


def original_name(name: str, config: ModelConfig) -> str:
    """Returns the parameter that `name` starts as a copy of, or `name` itself."""
    if name == TIED_HEAD and config.tie_word_embeddings:
        return TOKEN_EMBEDDING
    if set(config.tasks) != set(Task):
        return name
    if name.startswith(_GENERATION_FIRST):
        return _UNDERSTANDING_FIRST + name.removeprefix(_GENERATION_FIRST)
    equally_deep = config.understanding_layers == config.generation_layers
    if equally_deep and name.startswith(_GENERATION_STACK):
        return _UNDERSTANDING_STACK + name.removeprefix(_GENERATION_STACK)
    return name


def _seed_of(name: str, seed: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:8], "little") >> 1


def _fill_body(parameter: Tensor, kind: str, std: float, generator: torch.Generator) -> None:
    if parameter.dim() > 1:
        parameter.normal_(0.0, std, generator=generator)
    else:
        parameter.fill_(0.0 if kind == "bias" else 1.0)


def _fill_as_torch(parameter: Tensor, owner: nn.Module, kind: str, generator: torch.Generator) -> None:
    if isinstance(owner, nn.LayerNorm):
        parameter.fill_(float(kind == "weight"))
    elif isinstance(owner, nn.Embedding):
        parameter.normal_(generator=generator)
    elif isinstance(owner, nn.Linear):
        bound = owner.in_features**-0.5
        parameter.uniform_(-bound, bound, generator=generator)
    else:
        parameter.normal_(0.0, 0.02, generator=generator)
