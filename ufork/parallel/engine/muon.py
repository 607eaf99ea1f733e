"""Muon for the matrices inside the model, AdamW for everything else, over the flat tensors of ZeRO-3.

    gradient -> momentum -> whole matrices -> orthogonalize -> shards -> weights

Muon (https://kellerjordan.github.io/posts/muon/) replaces the momentum of a matrix by the nearest orthogonal matrix.
As in arXiv 2502.16982 the result is scaled to the size of AdamW's updates, so that AdamW's learning rate and weight
decay serve both.

DeepSpeed (0.19.8) has Muon under ZeRO-3, from which the exchange of matrices is taken. It cannot train the same on any
layout: it orthogonalizes the shard of a tensor-parallel rank as if it were the matrix; clips the result instead of the
gradient, although ufork clips by the norm of the whole job; moves the momentum before ufork decides whether the step
is skipped; keeps momenta in bf16; and computes in fp16 on those CPUs that can. torch.optim.Muon takes whole matrices,
one at a time, and always computes in bf16, which is slow on CPUs without bf16 units.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ufork.model.unifork import TIED_HEAD
from ufork.parallel.engine.whole_matrices import MatrixShard, WholeMatrices

RATE_RATIO = "rate_ratio"
"""Key of the learning rate of a group relative to that of the others."""
MOMENTUM = "momentum_buffer"
"""Name of the mean of gradients in the state of a flat tensor."""
DECAY = 0.95
"""Decay rate of that mean."""
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of x, x^3 and x^5 in the polynomial whose iterates take every singular value from (0, 1] to about 1."""
NUM_ITERATIONS = 5
SMALLEST_NORM = 1e-7
ADAMW_RMS = 0.2
"""Typical size of the entries of AdamW's updates (arXiv 2502.16982, section 2.2)."""
BATCH_NUMBERS = 1 << 24
"""Numbers of the matrices that are orthogonalized at a time: the intermediate results are as large."""
_NOT_INSIDE = ("embedding", "marks", "positions", TIED_HEAD, "head.out.")
"""In the names of embeddings and of the weights of logits."""


def takes_muon(name: str, num_dims: int) -> bool:
    """Returns whether a parameter is one of the matrices inside the model: those of linear layers but for logits."""
    return num_dims == 2 and not any(word in name for word in _NOT_INSIDE)


def newton_schulz_flops(shape: Sequence[int]) -> int:
    """Returns the operations of orthogonalizing one matrix."""
    short, long = sorted(shape)
    return NUM_ITERATIONS * (4 * short * short * long + 2 * short**3)


class Muon(torch.optim.Optimizer):
    """Muon for matrices, and the optimizer `adamw` for its own parameters, with one state and one list of groups.

    A tensor in the group of matrices is a whole matrix, or one of ZeRO's flat tensors that `shard` has described.
    """

    def __init__(
        self,
        matrices: Sequence[nn.Parameter],
        adamw: torch.optim.Optimizer,
        *,
        lr: float,
        weight_decay: float,
        rate_ratio: float = 1.0,
    ):
        """Groups the parameters.

        Args:
            matrices: parameters that Muon updates.
            adamw: optimizer of the others.
            lr: learning rate.
            weight_decay: decoupled decay of the matrices.
            rate_ratio: learning rate of the matrices relative to that of the others.
        """
        own = {"params": list(matrices), "lr": lr * rate_ratio, "weight_decay": weight_decay, RATE_RATIO: rate_ratio}
        groups = [{**own, "matrices": True}] if matrices else []
        super().__init__([*groups, *adamw.param_groups], {"matrices": False})
        adamw.state = self.state
        self.adamw = adamw
        self._sharded: dict[int, tuple[WholeMatrices, torch.dtype]] = {}

    def shard(self, flat: Tensor, matrices: WholeMatrices, dtype: torch.dtype) -> None:
        """Makes known what matrices `flat` has shards of, and the precision that they are orthogonalized in."""
        self._sharded[id(flat)] = matrices, dtype

    def is_sharded(self, flat: Tensor) -> bool:
        """Returns whether `flat` has shards of matrices."""
        return id(flat) in self._sharded

    def make_momentum(self, tensor: Tensor) -> Tensor:
        """Returns the momentum of a tensor of matrices, zero at first."""
        state: dict[str, Tensor] = self.state[tensor]
        if MOMENTUM not in state:
            state[MOMENTUM] = torch.zeros_like(tensor)
        return state[MOMENTUM]

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Updates what is in the groups, and uses the gradients up."""
        assert closure is None, "ZeRO has none"
        for group in self.param_groups:
            for tensor in group["params"] if group["matrices"] else ():
                if tensor.grad is not None:
                    self._update(tensor, group)
        if any(group["params"] for group in self.adamw.param_groups):
            self.adamw.step()

    def _update(self, tensor: Tensor, group: Mapping[str, Any]) -> None:
        if self.is_sharded(tensor):
            matrices, dtype = self._sharded[id(tensor)]
        else:
            rows, columns = tensor.shape
            matrices, dtype = WholeMatrices([MatrixShard((rows, columns))]), tensor.dtype
        momentum, gradient = self.make_momentum(tensor), tensor.grad
        assert gradient is not None
        momentum.lerp_(gradient, 1 - DECAY)
        ahead = gradient.lerp_(momentum, DECAY).flatten().to(dtype)  # Nesterov's
        updates = matrices.scatter(orthogonalize(matrices.gather(ahead)), like=ahead)
        tensor.mul_(1 - group["lr"] * group["weight_decay"])
        weights = tensor.view(-1).split(matrices.sizes)
        for weight, update, shape in zip(weights, updates, matrices.shapes, strict=True):
            weight.add_(update, alpha=-group["lr"] * ADAMW_RMS * max(shape) ** 0.5)


def orthogonalize(matrices: Sequence[Tensor]) -> list[Tensor]:
    """Returns for every matrix U S V' about U V', in its own precision.

    Matrices of one shape are computed at once: on two cores those of a small model take half as long.
    """
    results: dict[int, Tensor] = {}
    by_shape: dict[torch.Size, list[int]] = {}
    for index, matrix in enumerate(matrices):
        by_shape.setdefault(matrix.shape, []).append(index)
    for shape, indices in by_shape.items():
        size = max(1, BATCH_NUMBERS // shape.numel())
        for batch in (indices[start : start + size] for start in range(0, len(indices), size)):
            results.update(zip(batch, _newton_schulz(torch.stack([matrices[i] for i in batch])), strict=True))
    return [results[index] for index in range(len(matrices))]


def _newton_schulz(batch: Tensor) -> Tensor:
    """Iterates the polynomial of Keller Jordan's Muon on matrices that are scaled to a norm of 1.

    The iteration is that of torch.optim._muon, which takes one matrix and computes in bf16 only.
    """
    tall = batch.size(1) > batch.size(2)
    a, b, c = COEFFICIENTS
    x = batch.mT if tall else batch
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=SMALLEST_NORM)
    for _ in range(NUM_ITERATIONS):
        gram = x @ x.mT
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, polynomial, x, beta=a)
    return x.mT if tall else x
