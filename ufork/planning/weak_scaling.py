"""Weak scaling: tokens per second as devices and batch size grow together, estimated and drawn.

workload, machine -> for 8, 16, ... devices: the recommended layout for a proportional batch size -> a picture
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from ufork.files import whole_file
from ufork.planning.machine import MachineProfile
from ufork.planning.planner import make_plan
from ufork.planning.workload import Workload

FIRST_DEVICES = 8
SIZE, MARGIN = (900, 520), 70
INK, IDEAL, LINE = (40, 40, 40), (190, 190, 190), (38, 92, 160)


@dataclass(frozen=True, kw_only=True)
class ScalingPoint:
    """An estimate for one number of devices."""

    num_devices: int
    tokens_per_s: float
    layout: str


def weak_scaling(workload: Workload, machine: MachineProfile, *, most_devices: int) -> list[ScalingPoint]:
    """Returns an estimate for each doubling from FIRST_DEVICES on.

    `workload` is that of FIRST_DEVICES; its batch size and number of lanes grow with the devices.

    Raises:
        ConfigError: as `make_plan`.
    """
    points, num_devices = [], FIRST_DEVICES
    while num_devices <= most_devices:
        factor = num_devices // FIRST_DEVICES
        sequences = {task: number * factor for task, number in workload.global_batch_size.items()}
        grown = replace(workload, global_batch_size=sequences, num_lanes=workload.num_lanes * factor)
        chosen = make_plan(grown, machine, num_devices=num_devices).recommended
        tokens = sum(grown.global_batch_size.values()) * grown.seq_len
        points.append(
            ScalingPoint(
                num_devices=num_devices,
                tokens_per_s=tokens / chosen.step.seconds,
                layout=chosen.config.describe(),
            )
        )
        num_devices *= 2
    return points


def draw_scaling(points: Sequence[ScalingPoint], path: Path) -> None:
    """Writes a PNG: tokens per second per device, relative to the first point.

    Raises:
        StorageError: the file cannot be written.
    """
    image = Image.new("RGB", SIZE, (255, 255, 255))
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(14)
    left, right, top, bottom = MARGIN, SIZE[0] - MARGIN // 2, MARGIN, SIZE[1] - MARGIN
    first = points[0].tokens_per_s / points[0].num_devices
    step = (right - left) / max(len(points) - 1, 1)
    corners = []
    for number, point in enumerate(points):
        share = point.tokens_per_s / point.num_devices / first
        x, y = left + number * step, bottom - min(share, 1.2) / 1.2 * (bottom - top)
        corners.append((x, y))
        draw.text((x - 12, bottom + 10), str(point.num_devices), fill=INK, font=font)
        draw.text((x - 14, y - 22), f"{share:.0%}", fill=LINE, font=font)
    ideal = bottom - (bottom - top) / 1.2
    draw.line((left, ideal, right, ideal), fill=IDEAL, width=2)
    draw.line(corners, fill=LINE, width=3)
    draw.line((left, bottom, right, bottom), fill=INK)
    draw.text((left, 20), "estimated tokens per second and device, relative to the fewest", fill=INK, font=font)
    draw.text((left, bottom + 34), "devices; packed sequences per device stay the same", fill=INK, font=font)
    with whole_file(path, choose="another --scaling") as file:
        image.save(file, "PNG")
