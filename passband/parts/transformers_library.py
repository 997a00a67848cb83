"""The transformers library: imported when a model is built, and kept quiet meanwhile.

>>> library = transformers()
>>> with quiet(), seeded(0):
...     model = library.BertModel(library.BertConfig(
...         vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
...         intermediate_size=8))
>>> model.num_parameters() > 0
True
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from passband.errors import MissingExtraError


def transformers(extra: str = "tuning") -> Any:
    """The package; `MissingExtraError` that names the extra where it is not installed."""
    try:
        import transformers as found
    except ModuleNotFoundError:
        raise MissingExtraError("transformers", extra) from None
    return found


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bars and notes of transformers; its settings are as before afterwards."""
    logging = transformers().utils.logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Random numbers of this seed inside; the stream outside goes on as if nothing had been."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def versions() -> dict[str, str]:
    """What numbers of a pretraining depend on besides its recipe."""
    return {"torch": torch.__version__.split("+")[0], "transformers": transformers().__version__}
