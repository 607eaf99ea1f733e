"""Runs lists of actions sequence by sequence, without times: an executor of sequences, replicas and channels only."""

from collections import defaultdict, deque
from random import Random

from ufork.parallel.layout import BRANCHES, Layout, Stage
from ufork.parallel.schedule.actions import Action, Pass, Schedule
from ufork.vocabulary import Task

Replica = tuple[Stage, int]
Channel = deque[tuple[Task, int]]


class SequenceChannels:
    """Channels between two replicas in one direction, of `capacity` sequences; none leads back to a frozen trunk."""

    def __init__(self, layout: Layout, *, capacity: int, trunk_trains: bool):
        self.layout, self.capacity, self.trunk_trains = layout, capacity, trunk_trains
        self.channels: dict[tuple[Replica, Replica], Channel] = defaultdict(deque)

    def can_run(self, stage: Stage, action: Action) -> bool:
        """Whether all its sequences are first in their channels, and there is room for its results."""
        arrived = all(channel and channel[0] == sequence for channel, sequence in self._inputs(stage, action))
        return arrived and all(len(channel) < self.capacity for channel, _ in self._results(stage, action))

    def run(self, stage: Stage, action: Action) -> None:
        for channel, _ in self._inputs(stage, action):
            channel.popleft()
        for channel, sequence in self._results(stage, action):
            channel.append(sequence)

    def _inputs(self, stage: Stage, action: Action) -> list[tuple[Channel, tuple[Task, int]]]:
        if stage is Stage.TRUNK and action.direction is Pass.BACKWARD:
            return self._of(stage, action, sender=BRANCHES[action.task], receiver=stage)
        if stage in BRANCHES.values() and action.direction is Pass.FORWARD:
            return self._of(stage, action, sender=Stage.TRUNK, receiver=stage)
        return []

    def _results(self, stage: Stage, action: Action) -> list[tuple[Channel, tuple[Task, int]]]:
        if stage is Stage.TRUNK and action.direction is Pass.FORWARD:
            return self._of(stage, action, sender=stage, receiver=BRANCHES[action.task])
        if stage in BRANCHES.values() and action.direction is Pass.BACKWARD and self.trunk_trains:
            return self._of(stage, action, sender=stage, receiver=Stage.TRUNK)
        return []

    def _of(self, stage: Stage, action: Action, *, sender: Stage, receiver: Stage):
        """The sequences of `action`, each with its channel."""
        shapes = self.layout.shapes
        first = action.index * shapes[stage].dp
        return [
            (
                self.channels[(sender, sequence % shapes[sender].dp), (receiver, sequence % shapes[receiver].dp)],
                (action.task, sequence),
            )
            for sequence in range(first, first + shapes[stage].dp)
        ]


def execute(schedule: Schedule, layout: Layout, *, capacity: int, random: Random, trunk_trains: bool) -> None:
    """Runs all lists to their end, stages in random order; fails if none can continue, or sequences are left."""
    channels = SequenceChannels(layout, capacity=capacity, trunk_trains=trunk_trains)
    left = {stage: deque(actions) for stage, actions in schedule.items()}
    while any(left.values()):
        able = [stage for stage, actions in left.items() if actions and channels.can_run(stage, actions[0])]
        assert able, f"deadlock: {[f'{stage}: {actions[0]}' for stage, actions in left.items() if actions]}"
        stage = random.choice(able)
        channels.run(stage, left[stage].popleft())
    assert not any(channels.channels.values()), "sequences that no stage received"
