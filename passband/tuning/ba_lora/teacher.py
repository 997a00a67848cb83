"""What the pretrained model says, computed once and kept: a teacher without its forward pass.

    kept of each row     the K leading of its C log-probabilities at temperature T
    divergence           KL over K + 1 events: those K classes, and "any other"

Merging classes can only lower a divergence, so this one is a lower bound of that over all classes,
and equal to it at K = C.

>>> logits = torch.randn(100, 50)                 # of the pretrained model, once
>>> path = StoredTeacher.of(logits, top=8, temperature=2.0).save("teacher.safetensors")
>>> teacher, rows = StoredTeacher.load(path), torch.tensor([3, 14, 15])
>>> bool(teacher[rows].divergence(logits[rows]) < 1e-4)         # of the same model: none
True

In a loop: `handle.objective(loss, logits, labels, again=lambda: teacher[rows])`.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from passband.errors import CheckpointError, ConfigError, DataError

KIND, FORMAT = "ba-lora teacher", "1"


@dataclass(frozen=True)
class StoredTeacher:
    """
    classes      [M, K] the leading ones of each row
    logp         [M, K] their log-probabilities at the temperature, fp32
    temperature  T
    total        C, classes in all
    """

    classes: Tensor
    logp: Tensor
    temperature: float
    total: int

    @classmethod
    def of(cls, logits: Tensor, top: int = 64, temperature: float = 2.0) -> StoredTeacher:
        """Of logits [M, C]. Raises `ConfigError` for a `top` below 1, `DataError` for NaN."""
        if top < 1:
            raise ConfigError(f"top = {top}", expected="1 or more")
        if not bool(torch.isfinite(logits).all()):
            raise DataError("the teacher's logits have NaN or infinite entries",
                            expected="finite logits")
        logp = F.log_softmax(logits.detach().float() / temperature, -1)
        found = logp.topk(min(top, logits.shape[-1]), -1)
        return cls(found.indices, found.values, temperature, logits.shape[-1])

    def __len__(self) -> int:
        return len(self.logp)

    def __getitem__(self, rows: Tensor | slice) -> StoredTeacher:
        """The rows of a batch."""
        return StoredTeacher(self.classes[rows], self.logp[rows], self.temperature, self.total)

    def divergence(self, student: Tensor) -> Tensor:
        """T^2 times the mean over rows of KL(teacher || student), student logits [M, C]."""
        if student.shape != (len(self), self.total):
            raise DataError(
                f"student logits {tuple(student.shape)}", expected=f"{(len(self), self.total)}",
                mend="was the vocabulary resized, or are these other rows?",
            )
        p = _with_rest(self.logp.to(student.device))
        q = F.log_softmax(student.float() / self.temperature, -1)
        q = q.gather(-1, self.classes.to(student.device))
        if self.classes.shape[-1] < self.total:
            q = _with_rest(q)
        else:
            p = p[:, :-1]
        return self.temperature**2 * F.kl_div(q, p, reduction="sum", log_target=True) / len(p)

    def entropy(self) -> Tensor:
        """Mean over rows, of the K + 1 events: at most log C."""
        p = _with_rest(self.logp)
        return -(p.exp() * p).sum(-1).mean()

    def save(self, path: str | Path) -> Path:
        """One safetensors file, under a temporary name first."""
        from safetensors.torch import save_file

        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}-{uuid.uuid4().hex}")
        facts = {"passband": KIND, "format": FORMAT, "temperature": repr(self.temperature),
                 "total": str(self.total)}
        try:
            save_file(
                {"classes": self.classes.to(torch.int32).contiguous(),
                 "logp": self.logp.contiguous()}, temporary, facts,
            )
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        return path

    @classmethod
    def load(cls, path: str | Path) -> StoredTeacher:
        """Raises `CheckpointError` for what `save` has not written."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(str(path), framework="pt") as file:
                facts = file.metadata() or {}
                if (facts.get("passband"), facts.get("format")) != (KIND, FORMAT):
                    raise CheckpointError(
                        f"{path} holds no teacher", expected="a file of StoredTeacher.save"
                    )
                return cls(
                    file.get_tensor("classes").long(), file.get_tensor("logp"),
                    float(facts["temperature"]), int(facts["total"]),
                )
        except (SafetensorError, OSError, KeyError, ValueError) as error:
            raise CheckpointError(
                f"{path} can't be read: {error}", expected="a file of StoredTeacher.save"
            ) from None


def _with_rest(logp: Tensor) -> Tensor:
    """Log-probabilities [M, K] and that of any other class, [M, K + 1]."""
    rest = torch.log1p(-logp.exp().sum(-1, keepdim=True).clamp(max=1 - 1e-6))
    return torch.cat([logp, rest], -1)
