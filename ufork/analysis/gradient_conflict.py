"""Agreement of the two tasks' gradients in the shared parameters: their cosine and norms, layer by layer.

    model, packed sequences of both tasks -> gradient of each task's mean loss -> cosine = <a, b> / (|a| |b|)

Shared are the token embedding, the projector and the trunk's layers. A cosine below 0 is a conflict: a step along one
task's gradient increases the other's loss (arXiv 2001.06782).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ufork.model.unifork import UniFork
from ufork.vocabulary import PackedSequence, Task

SHARED = ("token_embedding.", "projector.", "stack.")
"""Prefixes of the trunk's parameters that both tasks train."""
_LAYERS = "stack.layers."


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """Cosine and norms of the tasks' gradients in some parameters, taken as one vector."""

    inner_product: float
    squared_norms: Mapping[Task, float]

    @property
    def norms(self) -> dict[Task, float]:
        """Norm of each task's gradient."""
        return {task: math.sqrt(squared) for task, squared in self.squared_norms.items()}

    @property
    def cosine(self) -> float | None:
        """Cosine of the angle between the gradients; None if one of them is zero."""
        product = math.prod(self.norms.values())
        return self.inner_product / product if product else None


@dataclass(frozen=True, kw_only=True)
class GradientConflict:
    """Agreement of the tasks' gradients in each shared parameter, by its name in the trunk."""

    parameters: Mapping[str, Agreement]

    def within(self, prefix: str = "", suffix: str = "") -> Agreement:
        """Returns the agreement in all parameters whose names begin and end so."""
        chosen = [
            self.parameters[name] for name in self.parameters if name.startswith(prefix) and name.endswith(suffix)
        ]
        return Agreement(
            inner_product=sum(one.inner_product for one in chosen),
            squared_norms={task: sum(one.squared_norms[task] for one in chosen) for task in Task},
        )

    def groups(self) -> dict[str, Agreement]:
        """Returns the agreement in all shared parameters and in groups of them.

        Groups are `all`, the embeddings, each layer of the trunk (`layers.0`, ...), and each kind of parameter over all
        layers (`layers.*.attention.query.weight`, ...).
        """
        in_layers = [name.removeprefix(_LAYERS).partition(".") for name in self.parameters if name.startswith(_LAYERS)]
        layers = sorted({int(layer) for layer, _, _ in in_layers})
        kinds = dict.fromkeys(kind for _, _, kind in in_layers)
        return {
            "all": self.within(),
            "token_embedding": self.within("token_embedding."),
            "projector": self.within("projector."),
            **{f"layers.{layer}": self.within(f"{_LAYERS}{layer}.") for layer in layers},
            **{f"layers.*.{kind}": self.within(_LAYERS, f".{kind}") for kind in kinds},
        }

    def figures(self) -> dict[str, float]:
        """Returns `cosine/GROUP` and `norm/TASK/GROUP` of all groups; no cosine where a gradient is zero."""
        groups = self.groups()
        cosines = {f"cosine/{name}": group.cosine for name, group in groups.items()}
        return {
            **{key: cosine for key, cosine in cosines.items() if cosine is not None},
            **{f"norm/{task}/{name}": group.norms[task] for name, group in groups.items() for task in Task},
        }


def gradient_conflict(
    model: UniFork,
    sequences: Mapping[Task, Sequence[PackedSequence]],
    *,
    after_sequence: Callable[[], None] = lambda: None,
) -> GradientConflict:
    """Measures how the gradients of the tasks' mean losses agree.

    Memory beside the model: two gradients of the shared parameters, and the activations of one packed sequence.

    Args:
        model: trunk and both branches. Gradients that its parameters hold are lost.
        sequences: packed sequences of both tasks; each task's loss is the mean over the targets of all of its own.
        after_sequence: called after each packed sequence.
    """
    assert model.trunk
    shared = {name: weight for name, weight in model.trunk.named_parameters() if name.startswith(SHARED)}
    first, second = (_gradient(model, list(shared.values()), sequences[task], after_sequence) for task in Task)
    products = torch.stack([_products(a, b) for a, b in zip(first, second, strict=True)]).tolist()
    parameters = {
        name: Agreement(inner_product=inner, squared_norms=dict(zip(Task, squares, strict=True)))
        for name, (inner, *squares) in zip(shared, products, strict=True)
    }
    return GradientConflict(parameters=parameters)


def _gradient(
    model: UniFork,
    shared: Sequence[nn.Parameter],
    sequences: Sequence[PackedSequence],
    after_sequence: Callable[[], None],
) -> list[Tensor]:
    """Returns the gradient of the mean loss of `sequences`, a tensor per parameter; the branches' are not computed."""
    num_targets = max(sum(sequence.num_targets for sequence in sequences), 1)
    model.zero_grad()
    for sequence in sequences:
        loss = model(sequence.to(shared[0].device)) / num_targets
        loss.backward(inputs=shared)
        after_sequence()
    gradients = [torch.zeros_like(weight) if weight.grad is None else weight.grad for weight in shared]
    model.zero_grad()
    return gradients


def _products(a: Tensor, b: Tensor) -> Tensor:
    """Returns <a, b>, <a, a> and <b, b>, summed in fp64."""
    return torch.stack([(x.float() * y).sum(dtype=torch.float64) for x, y in ((a, b), (a, a), (b, b))])
