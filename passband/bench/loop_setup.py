"""What the loop does once, before its first step: refusals, devices, what there is to train."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs, DistributedType
from accelerate.state import AcceleratorState
from torch import Tensor, nn
from torch.optim import Optimizer

from passband.bench import plateau
from passband.bench.loop_config import LoopConfig
from passband.errors import ConfigError


def check(
    config: LoopConfig, optimizers: Mapping[str, Optimizer], *, validated: bool, custom: bool,
    stateful: bool = False,
) -> None:
    """Refuse what can't work before any long work starts."""
    line_search = any(is_lbfgs(o) for o in optimizers.values())
    if line_search and (custom or config.clip is not None or config.precision == "fp16"):
        raise ConfigError(
            "L-BFGS together with a custom step, clip or fp16",
            expected="the default step, clip=None and precision 'no' or 'bf16'",
            mend="its line search needs the true gradient; or take another optimizer",
        )
    if not custom and set(optimizers) != {""}:
        raise ConfigError(
            f"optimizers {sorted(optimizers)} with the default step", expected="a single one",
            mend="give a custom step that says which loss is whose",
        )
    if custom and config.accumulate > 1:
        raise ConfigError(
            f"accumulate = {config.accumulate} with a custom step", expected="1",
            mend="lower batch_size instead",
        )
    if config.select != "last" and not validated:
        raise ConfigError(
            f"select = {config.select!r} without validation", expected="a validate function",
            mend="give validation data, or select='last'",
        )
    plateau.check(config, stateful=stateful)


def hint(config: LoopConfig) -> str:
    """What helps against a loss that is not finite."""
    overflow = "; precision='no' rules out overflow" if config.precision != "no" else ""
    return (
        f"lower lr (now {config.lr:g}), set clip (now {config.clip}), add warmup, or look for NaN "
        f"in the data{overflow}"
    )


def is_lbfgs(optimizer: Optimizer) -> bool:
    return isinstance(optimizer, torch.optim.LBFGS)


def open_accelerator(precision: str) -> Accelerator:
    # Accelerate keeps one precision a process; runs of one process may differ in it.
    if AcceleratorState._shared_state and AcceleratorState().mixed_precision != precision:
        AcceleratorState._reset_state()
    try:
        accelerator = Accelerator(
            mixed_precision=precision,
            kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
        )
    except ValueError as error:
        raise ConfigError(
            f"precision = {precision!r} can't be had here: {error}", expected="'no' or 'bf16'",
            mend="set precision='no'",
        ) from None
    kinds = (DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM)
    if accelerator.distributed_type in kinds:
        raise ConfigError(
            f"started under {accelerator.distributed_type.value}",
            expected="one process, or several with plain data parallelism",
            mend="accelerate launch --multi_gpu ...",
        )
    return accelerator


def learned(module: nn.Module, optimizers: Mapping[str, Optimizer]) -> dict[str, Tensor]:
    """What training changes, by name: parameters that an optimiser holds, and all buffers."""
    held = {id(p) for o in optimizers.values() for g in o.param_groups for p in g["params"]}
    learned: dict[str, Tensor] = {n: p for n, p in module.named_parameters() if id(p) in held}
    missing = len(held) - len(learned)
    if missing or not held:
        raise ConfigError(
            f"the optimiser holds {missing} parameters that the module lacks" if missing
            else "nothing to train: no parameter requires a gradient",
            expected="parameters of the module, at least one",
        )
    return {**learned, **dict(module.named_buffers())}
