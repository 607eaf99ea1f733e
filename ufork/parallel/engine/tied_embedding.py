"""One weight in two stages: the token embedding in the trunk and the text head that is tied to it.

    gradient of either stage -> sum over both, once a step -> both optimizers, which thus keep the copies equal

Megatron-LM does the same between its first and last stage (arXiv 2104.04473). The stages shard the weight differently,
so the gradient is sent whole.

Shapes: V vocabulary entries, N those of this tp rank, D hidden size.
"""

import torch

from ufork.model.unifork import TIED_HEAD, TOKEN_EMBEDDING
from ufork.parallel.engine.zero import Engine
from ufork.parallel.layout import Stage
from ufork.parallel.transport.bridge import Bridge
from ufork.parallel.transport.stage_world import World

NAMES = {Stage.TRUNK: TOKEN_EMBEDDING, Stage.UNDERSTANDING: TIED_HEAD}
"""The weight's name in each stage."""


class TiedEmbedding:
    """Keeps the two copies equal; only ranks of the two stages have one."""

    def __init__(self, engine: Engine, bridge: Bridge, world: World, *, prefix: str, shape: tuple[int, int]):
        """`prefix` precedes the model's names in the engine's; `shape` is VD of the whole weight."""
        self.engine, self.bridge, self.world, self.shape = engine, bridge, world, shape
        self.name = prefix + NAMES[world.coordinate.stage]
        members = sorted(rank for stage in NAMES for rank in bridge.layout.ranks_of(stage))
        self._group = bridge.connect("tied embedding", tuple(members))

    @property
    def counted_elsewhere(self) -> tuple[str, ...]:
        """Names of parameters that the job's gradient norm counts in another stage."""
        return (self.name,) if self.world.coordinate.stage is Stage.UNDERSTANDING else ()

    def add_gradients(self) -> None:
        """Replaces the gradient in both stages by their sum.

        Raises:
            PeerError: another rank is gone.
        """
        total_VD = torch.zeros(self.shape, device=self.world.device)
        rows = self._rows()
        own_ND = self.engine.whole_gradient(self.name)
        if self.world.coordinate.dp_rank == 0:
            total_VD[rows] = own_ND
        self.bridge.add_up(total_VD, waits_for="the tied embedding's gradient", group=self._group)
        self.engine.replace_gradient(self.name, total_VD[rows].contiguous())

    def _rows(self) -> slice:
        size = self.shape[0] // self.world.tp_group.size()
        return slice(self.world.coordinate.tp_rank * size, (self.world.coordinate.tp_rank + 1) * size)
