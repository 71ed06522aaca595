"""Measures for the chips of one platform, in a process that has been started for its compiler."""

import json
import sys
from collections.abc import Sequence

from benchmarks.programs import all_reduces, layers, memory, networks

PARTS = {
    "layers": layers.measured,
    "networks": networks.measured,
    "memory": memory.measured,
    "all-reduces": all_reduces.measured,
}


def main(argv: Sequence[str]) -> None:
    """Prints [chip, part, figures] as a line of JSON as soon as they are there.

    Args:
        argv: one text, {"chips": [...], "parts": [...], "quick": ...} as JSON.
    """
    settings = json.loads(argv[0])
    for part in settings["parts"]:
        for chip in settings["chips"]:
            print(json.dumps([chip, part, PARTS[part](chip, settings["quick"])]), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
