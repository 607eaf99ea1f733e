"""Collects the whole weights of all stages on the job's leader, which writes them.

first rank of each stage: its whole parameters -> the bridge -> the job's leader: all parameters of the model
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from ufork.parallel.layout import Stage
from ufork.parallel.transport.bridge import Bridge, Channel

Shapes = Mapping[Stage, Mapping[str, torch.Size]]
"""Name and shape of every parameter that is collected from each stage."""


def collect_weights(bridge: Bridge, own: Mapping[str, Tensor], shapes: Shapes) -> dict[str, Tensor]:
    """Returns the parameters of all stages by name (fp32, CPU) on the leader, nothing on other ranks.

    Args:
        bridge: this rank's.
        own: on the first rank of a stage, the stage's parameters.
        shapes: the same on all ranks.

    Raises:
        PeerError: another rank is gone.
    """
    leaders = {stage: bridge.layout.ranks_of(stage)[0] for stage in shapes}
    bridge.connect_pairs({(bridge.leader, leader) for leader in leaders.values() if leader != bridge.leader})
    collected: dict[str, Tensor] = {}
    for stage, names in shapes.items():
        if bridge.coordinate.rank == leaders[stage] != bridge.leader:
            for name in names:
                bridge.send(own[name].to(bridge.device), bridge.leader, Channel.WEIGHTS, f"the weight {name}").wait()
                bridge.wait_for_device(f"{bridge.layout.coordinates[bridge.leader]} to take the weight {name}")
        elif bridge.is_leader:
            for name, shape in names.items():
                mine = leaders[stage] == bridge.coordinate.rank
                collected[name] = own[name] if mine else _receive(bridge, leaders[stage], name, shape)
    return collected


def _receive(bridge: Bridge, sender: int, name: str, shape: torch.Size) -> Tensor:
    buffer = torch.empty(shape, device=bridge.device)
    bridge.receive(buffer, sender, Channel.WEIGHTS, f"the weight {name}").wait()
    bridge.wait_for_device(f"the weight {name}")
    return buffer.cpu()
