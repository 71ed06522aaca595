"""An ESTIMATE on paper, not measured: what synchronized layers spend in all-reduces on many devices."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

MANY = 1024
TOPOLOGIES = ("ring", "tree")
PARAMETERS = 25.6e6  # of ResNet-50
RESNET50 = [64] + [
    channels
    for blocks, width in ((3, 64), (4, 128), (6, 256), (3, 512))
    for channels in [width, width, 4 * width] * blocks + [4 * width]  # and one on the shortcut
]
LATENCY, BANDWIDTH = 5e-6, 50e9  # seconds per message, bytes per second of one link
ASSUMPTIONS = (
    f"{LATENCY * 1e6:g} us per message, {BANDWIDTH / 1e9:g} GB/s per link; "
    "each all-reduce waits for the one before and no arithmetic hides any; "
    "ring: 2 (n - 1) messages of size / n; tree: 2 log2(n) messages of size"
)


def seconds(sizes: Sequence[float], devices: int, topology: str) -> float:
    """Time on paper of one all-reduce after the other, by size in bytes, with nothing to hide behind.

        ring: 2 (n - 1) messages of size / n          tree: 2 log2(n) messages of size

    each of which takes LATENCY and its bytes / BANDWIDTH.
    """
    steps = 2 * (devices - 1) if topology == "ring" else 2 * math.ceil(math.log2(devices))
    part = 1 / devices if topology == "ring" else 1
    return sum(steps * (LATENCY + size * part / BANDWIDTH) for size in sizes)


def estimates(per_channel: Mapping[str, Sequence[float]], channels: int) -> dict[str, Any]:
    """For 2 to MANY devices, one layer and those of ResNet-50, and the latter's gradients.

    Args:
        per_channel: by library, the bytes per channel of each all-reduce of one layer.
        channels: of the one layer.
    """
    counts = [2**k for k in range(1, MANY.bit_length())]
    cases = {"one layer": [channels], "ResNet-50": RESNET50}
    found: dict[str, Any] = {"devices": counts}
    for library, sizes in per_channel.items():
        for name, layers in cases.items():
            found[f"{library}, {name}"] = estimated([s * n for n in layers for s in sizes], counts)
    found["gradients of ResNet-50"] = estimated([4 * PARAMETERS], counts)
    return found


def estimated(sizes: Sequence[float], counts: Sequence[int]) -> dict[str, Any]:
    """Number and bytes of all-reduces, and seconds by topology and number of devices."""
    times = {t: [seconds(sizes, n, t) for n in counts] for t in TOPOLOGIES}
    return {"all-reduces": len(sizes), "bytes": sum(sizes), **times}
