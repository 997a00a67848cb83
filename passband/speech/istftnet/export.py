"""The vocoder as one graph of real-valued operations: mel [B, M, T] -> wave [B, T hop].

The inverse STFT becomes one transposed convolution whose fixed kernel is the windowed inverse DFT,
divided by the true sum of squared windows (a second, tiny transposed convolution of ones), so that
the edges are right as well. Nothing in the graph is complex, and B and T are free.

>>> program = exported(ISTFTNet(channels=32), n_mels=80)
>>> program.module()(torch.full((2, 80, 9), -5.0)).shape
torch.Size([2, 2304])

`torch.export.save` writes it, `torch.export.load` reads it in Python; AOTInductor, ExecuTorch or
`torch.onnx.export` take it further. A recording that is made in pieces needs `ISTFTNet.around`
frames on both sides of each.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import torch
from torch.export import Dim, ExportedProgram

from passband.parts.mel_upsampler import fused
from passband.speech.istftnet.inverse import InverseSTFT
from passband.speech.istftnet.model import ISTFTNet


def exported(net: ISTFTNet, n_mels: int) -> ExportedProgram:
    """The graph of a network, on the CPU, with free batch and frames."""
    plain = fused(net).cpu().requires_grad_(False)
    plain.inverse = InverseSTFT(plain.inverse.n_fft, plain.inverse.hop, as_convolution=True)
    example = (torch.zeros(2, n_mels, 16),)
    return torch.export.export(plain, example, dynamic_shapes={"mel": {0: Dim.AUTO, 2: Dim.AUTO}})


def write(net: ISTFTNet, n_mels: int, path: Path) -> Path:
    """Write the graph with its weights; an interrupted call leaves no half file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-", suffix=".pt2")
    os.close(handle)
    try:
        torch.export.save(exported(net, n_mels), temporary)
        Path(temporary).replace(path)
    finally:
        Path(temporary).unlink(missing_ok=True)
    return path
