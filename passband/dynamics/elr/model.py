"""Early-learning regularisation (ELR, arXiv 2007.00151): learn from wrong labels, not by heart.

A network learns what is true of most labels first and the wrong ones later. ELR remembers what it
said of each example early on and holds it there:

    p    = clamp(softmax(z), 1e-4, 1 - 1e-4)                          z [B, C] logits
    T[i] <- beta T[i] + (1 - beta) p / sum(p)                         no gradient, before the loss
    loss = mean CE(z, y) + lam mean log(1 - <T[i], p>)                lam > 0: <T, p> grows
    d loss / dz = p - y + lam p / (1 - <T, p>) (<T, p> - T)           of one example

Where T says another class than the label, the second term cancels p - y; where they agree, it keeps
the gradient of a clean example alive. In a loop of your own one line changes:

>>> x, labels = torch.randn(60, 5), torch.randint(3, (60,))
>>> data = torch.utils.data.TensorDataset(x, labels)
>>> model = nn.Linear(5, 3)
>>> elr = ELRLoss(num_samples=60, num_classes=3)
>>> for x, y, index, _ in torch.utils.data.DataLoader(Indexed(data), batch_size=20, shuffle=True):
...     loss = elr(model(x), y, index)                # for cross_entropy(model(x), y)
...     loss.backward()
>>> elr.store.dense().sum(1)[:2]                      # seen once: 1 - beta
tensor([0.3000, 0.3000])

N examples, B batch, C classes. `flag_mislabeled` (in `suspects`) reads the wrong labels out of T;
ELR+ with two networks is in `plus`. lam and beta differ by the kind of noise: 3 and 0.7 for labels
wrong at random, 1 and 0.9 for classes mistaken for each other, 7 and 0.9 for 100 classes.
"""

from __future__ import annotations

import math
import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from passband.dynamics.elr.targets import everywhere, make_targets
from passband.errors import ConfigError, DataError, PassbandWarning
from passband.parts.indexed import Indexed, check_index

__all__ = ["ELRLoss", "Indexed", "clamped", "elr_loss", "elr_term"]

LOW, HIGH = 1e-4, 1 - 1e-4


class ELRLoss(nn.Module):
    """The loss with its running targets; a module, so that `state_dict` saves them.

    num_samples      of the training set: places run from 0 to num_samples - 1
    lam, beta        weight of the term, memory of the targets
    storage, device  "float32", "float16" or "topk" (k classes of each row): see `targets`
    checks           False leaves out all checks of input, which wait for a GPU once a step

    In evaluation mode (`elr.eval()`) the targets stay as they are.

    Raises ConfigError for lam < 0, beta outside [0, 1) and fewer than two classes.
    """

    def __init__(
        self, num_samples: int, num_classes: int, lam: float = 3.0, beta: float = 0.7,
        storage: str = "float32", device: Any = None, *, k: int = 8, checks: bool = True,
        warn_duplicates: bool = True,
    ) -> None:
        super().__init__()
        if not 0 <= lam < float("inf"):
            raise ConfigError(f"lam = {lam}", expected="0 or more; 0 is cross-entropy")
        if not 0 <= beta < 1:
            raise ConfigError(f"beta = {beta}", expected="from 0 to below 1")
        self.lam, self.beta, self.checks, self._warn = lam, beta, checks, warn_duplicates
        self.num_samples, self.num_classes = num_samples, num_classes
        self.store = make_targets(num_samples, num_classes, storage, k=k, device=device)

    def forward(self, logits: Tensor, labels: Tensor, index: Any = None) -> Tensor:
        """Loss of a batch, a scalar.

        logits  [B, C], before softmax, of any floating type; the loss is taken in float32
        labels  [B] classes, or [B, C] probabilities that add up to 1
        index   [B] places in the training set

        Raises DataError, before the targets are touched, for logits that are not finite, labels
        out of range or of several classes at once, and an index that is missing or out of range.
        """
        logits = logits.float()
        if self.checks:
            index = self._checked(logits, labels, index)
        p = clamped(logits.softmax(1))
        # NaN and infinite logits leave no other trace in p.
        if self.checks and not math.isfinite(float(p.detach().sum())):
            raise DataError(
                "logits that are not finite; the targets were left as they are",
                expected="finite numbers", mend="lower the learning rate or clip the gradient",
            )
        if self.training:
            targets = self.update(index, p.detach())
        else:
            targets = self.store.read(index, logits.device)
        return F.cross_entropy(logits, labels) + self.lam * elr_term(p, targets)

    @torch.no_grad()
    def update(self, index: Tensor, p: Tensor) -> Tensor:
        """Move the targets at places [B] towards p [B, C] / sum(p); returns them, [B, C].

        In several processes each writes what all of them saw: an example may come to another one
        next time.
        """
        p = p / p.sum(1, keepdim=True)
        rows = self.store.read(index, p.device).lerp(p, 1 - self.beta)
        self.store.write(*everywhere(index, rows))
        return rows

    def _checked(self, logits: Tensor, labels: Tensor, index: Any) -> Tensor:
        index = check_index(index, self.num_samples)
        batch = (len(index), self.num_classes)
        if logits.shape != batch:
            raise DataError(
                f"logits of shape {list(logits.shape)} with {len(index)} places",
                expected=f"{list(batch)}: [B, num_classes]",
            )
        check_labels(labels, *batch)
        if self.training and self._warn and len(set(index.tolist())) < len(index):
            self._warn = False
            warnings.warn(
                "an example is twice in a batch: its targets follow one of the two only",
                PassbandWarning, stacklevel=4,
            )
        return index

    def extra_repr(self) -> str:
        return f"num_samples={self.num_samples}, num_classes={self.num_classes}, " \
            f"lam={self.lam:g}, beta={self.beta:g}"


def check_labels(labels: Tensor, batch: int, classes: int) -> None:
    """Raise DataError for what is neither [B] classes nor [B, C] probabilities."""
    if labels.dim() == 1 and len(labels) == batch and not labels.is_floating_point():
        if batch:
            low, high = (int(v) for v in labels.aminmax())
            if low < 0 or high >= classes:
                raise DataError(f"labels from {low} to {high}", expected=f"0 to {classes - 1}")
        return
    if labels.shape != (batch, classes):
        raise DataError(
            f"labels of shape {list(labels.shape)} and type {labels.dtype}",
            expected=f"[{batch}] whole numbers or [{batch}, {classes}] probabilities",
        )
    sums = labels.sum(1).float()
    if not bool(((sums - 1).abs() < 1e-3).all()) or bool((labels < 0).any()):
        raise DataError(
            "soft labels whose rows don't add up to 1", expected="probabilities, one row each",
            mend="ELR is for one class an example: several at once (multi-label) don't fit it",
        )


def clamped(p: Tensor) -> Tensor:
    """Probabilities within [1e-4, 1 - 1e-4], so that the logarithm stays finite."""
    return p.clamp(LOW, HIGH)


def elr_loss(logits: Tensor, labels: Tensor, targets: Tensor, lam: float) -> Tensor:
    """mean CE(logits, labels) + lam mean log(1 - <targets, p>), a scalar.

    logits   [B, C] float32; labels [B] or [B, C]; targets [B, C], held fixed

    >>> z = torch.tensor([[2.0, 0.0, -1.0]], requires_grad=True)
    >>> elr_loss(z, torch.tensor([0]), torch.tensor([[0.2, 0.1, 0.0]]), lam=3.0)
    tensor(-0.4262, grad_fn=<AddBackward0>)
    """
    return F.cross_entropy(logits, labels) + lam * elr_term(clamped(logits.softmax(1)), targets)


def elr_term(p: Tensor, targets: Tensor) -> Tensor:
    """mean log(1 - <targets, p>) of clamped probabilities p [B, C], held targets [B, C]."""
    return (1 - (targets * p).sum(1)).log().mean()
