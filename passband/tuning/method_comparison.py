"""Result rows of this family as files of peft's method comparison, for its tables and plots.

>>> write_method_comparison(Path("runs"), Path("comparison"))       # one JSON file a row
[]

Each file has run_info, train_info and meta_info. What peft measures on an accelerator is here the
peak of tensors made in a step and the optimiser's state; "test accuracy" is the task's first
metric divided by 100 where it is in %, and the task's name says which it is.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from passband.bench.results import RESULTS, Result, ResultsFile, write_atomic
from passband.tuning.tasks import TASKS

PACKAGES = ("transformers", "peft", "torch", "datasets", "bitsandbytes")


def write_method_comparison(runs: Path, folder: Path, task: str | None = None) -> list[Path]:
    """Write a file for each finished row of the verb `adapt`; returns their paths.

    task  only rows of this task; None: of all
    """
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for row in ResultsFile(runs / RESULTS).latest().values():
        if row.task not in TASKS or row.error or task not in (None, row.task):
            continue
        path = folder / f"{row.key}.json"
        write_atomic(path, json.dumps(comparison_row(row), indent=2).encode())
        written.append(path)
    return written


def comparison_row(row: Result) -> dict[str, Any]:
    """One result in peft's layout."""
    m, first = row.metrics, TASKS[row.task].primary
    scale = 0.01 if first.unit == "%" else 1.0
    bytes_ = int(m.get("step_bytes", 0) + m.get("optimizer_bytes", 0))
    batch = int(row.overrides.get("batch_size", 0)) or None
    return {
        "run_info": {
            "created_at": row.when, "total_time": sum(row.seconds.values()),
            "experiment_name": f"{row.system}/{row.task}-seed{row.seed}",
            "peft_branch": "passband", "error_msg": row.error,
            "train_config": {
                "model_id": row.task, "seed": row.seed, "batch_size": batch, **row.overrides,
            },
            "peft_config": None if row.system == "full-tuning" else {
                "peft_type": row.system.upper(), **row.overrides,
            },
        },
        "train_info": {
            "accelerator_memory_reserved_avg": bytes_, "accelerator_memory_max": bytes_,
            "accelerator_memory_reserved_99th": bytes_,
            "train_time": row.seconds.get("fit", 0.0), "status": "success",
            "file_size": int(m.get("adapter_bytes", row.file_bytes)),
            "num_trainable_params": int(m.get("trainable", row.parameters)),
            "num_total_params": 0,
            "metrics": [{
                "step": row.spent.get("steps", 0), "test accuracy": scale * m[first.name],
                "train loss": row.spent.get("loss", 0.0),
                "train samples": row.spent.get("examples", 0),
                "train total tokens": 0, "forgetting": m.get("forgetting"),
            }],
        },
        "meta_info": {
            "model_info": {"sha": None}, "dataset_info": {"task": row.task},
            "package_info": {f"{n}-version": row.versions.get(n, "") for n in PACKAGES},
            "system_info": dict(row.machine),
        },
    }
