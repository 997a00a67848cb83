"""Train in a child process and kill it again and again; run as a script by `test_loop_kill`.

    python killed.py FOLDER KILLS OPTIMIZER[+state]

With `+state` a state halves the first layer midway and keeps a running target.

Torch is imported once, before the children are forked. Prints JSON: how many children were
killed, how many of them while saving, at which iteration the last one went on, and whether the
weights equal those of a run in peace.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch
from torch import nn

from passband.bench import checkpoint
from passband.bench.budget import Budget
from passband.bench.loop import LoopConfig, train
from passband.bench.optim import build_optimizer
from passband.bench.streams import Streams
from tests.bench.halving import Halving

STEPS = 200


def run(folder: Path | None, optimizer: str) -> torch.Tensor:
    streams = Streams(0)
    with streams.initialising():
        module = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Dropout(0.1), nn.Linear(4, 1))
    x = torch.linspace(-1, 1, 64).reshape(32, 2)
    optimizer, _, stateful = optimizer.partition("+")
    config = LoopConfig(
        optimizer=optimizer, batch_size=8, checkpoint_steps=1, ema=0.9, validate_every=5,
        select="lowest error", lbfgs_iterations=2,
    )
    built = build_optimizer(module.parameters(), config)
    state = Halving(module, built) if stateful else None
    train(
        module, lambda m, b: (m(b) - b.prod(1, keepdim=True)).square().mean(), x,
        Budget(steps=STEPS), config, streams=streams, checkpoints=folder, resume=True,
        validate=lambda m: {"error": (m(x) - x.prod(1, keepdim=True)).abs().max()},
        optimizer=built, state=state,
    )
    return torch.cat([p.detach().flatten() for p in module.parameters()])


def child(folder: Path, optimizer: str) -> int:
    pid = os.fork()
    if pid == 0:
        run(folder, optimizer)
        os._exit(0)
    return pid


def main(folder: Path, kills: int, optimizer: str) -> None:
    whole = run(None, optimizer)
    rng = random.Random(kills)
    started = time.perf_counter()
    run(folder / "timed", optimizer)
    pause = (time.perf_counter() - started) / kills
    target, killed, saving = folder / "run", 0, 0
    while killed < kills:
        pid = child(target, optimizer)
        time.sleep(rng.uniform(0.0, 1.5 * pause))
        os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        if not os.WIFSIGNALED(status):
            checkpoint.remove(target)  # it had finished in time: begin again
            continue
        killed += 1
        saving += any(target.with_name(f".run.{part}").exists() for part in ("new", "old"))
    went_on = 0
    if checkpoint.exists(target):
        tree = json.loads((target / checkpoint.FACTS).read_text())["tree"]
        went_on = dict(tree["dict"])["iteration"]
    equal = torch.equal(run(target, optimizer), whole)
    facts = {"killed": killed, "saving": saving, "went_on": went_on, "equal": equal}
    sys.stdout.write(json.dumps(facts))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
