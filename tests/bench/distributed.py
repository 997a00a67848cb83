"""Train on a fixed problem and write the losses; run by `test_loop_distributed`, also under
`accelerate launch`.

    python distributed.py OUT
"""

import json
import sys
from pathlib import Path

import torch
from torch import nn

from passband.bench.budget import Budget
from passband.bench.loop import LoopConfig, train
from passband.bench.streams import Streams


def main(out: Path) -> None:
    streams = Streams(0)
    x = torch.linspace(-1, 1, 60, dtype=torch.float64).reshape(30, 2)
    found = {}
    for optimizer in ("adamw", "lbfgs"):
        with streams.initialising():
            module = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1)).double()
        outcome = train(
            module, lambda m, b: (m(b) - b.prod(1, keepdim=True)).square().mean(), x,
            Budget(steps=30), LoopConfig(
                optimizer=optimizer, batch_size=9, accumulate=2, log_every=1, lbfgs_iterations=3
            ),
            streams=streams, checkpoints=out.with_name(f"{out.name}-{optimizer}"),
        )
        found[optimizer] = [row["loss"] for row in outcome.rows]
    with streams.initialising():
        module = nn.Linear(2, 1).double()

    def step(stage, batch):
        return {"loss": stage.update(stage.module(batch).square().mean())}

    found["custom"] = [row["loss"] for row in train(
        module, None, x, Budget(steps=10), LoopConfig(batch_size=10, log_every=1, clip=0.1),
        streams=streams, step=step,
    ).rows]
    rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
    out.with_suffix(f".{rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
