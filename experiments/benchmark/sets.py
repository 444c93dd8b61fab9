"""All sets of the benchmark."""

from __future__ import annotations

from experiments.benchmark.coco import COCO
from experiments.benchmark.painted import PAINTED

SETS = {**PAINTED, **COCO}
