"""Speaks a list of sentences with eSpeak NG and writes the samples: run as a program of its own.

    python espeak.py OUT < jobs.json > lengths.json

    jobs     [{"voice": "en-us+f3", "rate": words a minute, "pitch": 0-100, "range": 0-100,
               "texts": [...]}, ...]
    OUT      all samples one after the other, int16, 22,050 Hz
    lengths  samples of each text

The engine has one global state and is not safe to use from threads, and a torch process can't be
forked safely: so it gets a process of its own. Only the standard library and the package
`espeakng_loader` are imported here.
"""

from __future__ import annotations

import ctypes
import json
import sys
from array import array
from pathlib import Path
from typing import Any

RATE = 22050
_SYNCHRONOUS, _DO_NOT_EXIT = 2, 0x8000
_WORDS_A_MINUTE, _VOLUME, _PITCH, _RANGE = 1, 2, 3, 4
_SOFT = 20  # of 100: at full volume some voices are limited hard
_UTF8, _CHARACTERS = 1, 1


class Engine:
    """The library, loaded; `speak` returns the samples of one text."""

    def __init__(self) -> None:
        import espeakng_loader

        self.library = ctypes.CDLL(str(espeakng_loader.get_library_path()))
        data = str(espeakng_loader.get_data_path()).encode()
        rate = self.library.espeak_Initialize(_SYNCHRONOUS, 0, data, _DO_NOT_EXIT)
        if rate != RATE:
            raise OSError(f"espeak_Initialize gave {rate} in place of {RATE}")
        self.samples = array("h")
        kind = ctypes.CFUNCTYPE(
            ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p
        )
        self.callback = kind(self._take)  # kept: the library holds a bare pointer
        self.library.espeak_SetSynthCallback(self.callback)

    def _take(self, wave: Any, count: int, events: Any) -> int:
        if wave and count > 0:
            self.samples.frombytes(ctypes.string_at(wave, 2 * count))
        return 0

    def choose(self, voice: str, rate: int, pitch: int, spread: int) -> None:
        if self.library.espeak_SetVoiceByName(voice.encode()) != 0:
            raise OSError(f"the library has no voice {voice!r}")
        settings = {_WORDS_A_MINUTE: rate, _VOLUME: _SOFT, _PITCH: pitch, _RANGE: spread}
        for parameter, value in settings.items():
            self.library.espeak_SetParameter(parameter, value, 0)

    def speak(self, text: str) -> array[int]:
        self.samples = array("h")
        data = text.encode() + b"\0"
        status = self.library.espeak_Synth(data, len(data), 0, _CHARACTERS, 0, _UTF8, None, None)
        self.library.espeak_Synchronize()
        if status != 0 or not self.samples:
            raise OSError(f"espeak_Synth gave status {status} and {len(self.samples)} samples")
        return self.samples


def main(out: str) -> None:
    engine, lengths = Engine(), []
    with Path(out).open("wb") as file:
        for job in json.load(sys.stdin):
            engine.choose(job["voice"], job["rate"], job["pitch"], job["range"])
            for text in job["texts"]:
                samples = engine.speak(text)
                samples.tofile(file)
                lengths.append(len(samples))
    json.dump(lengths, sys.stdout)


if __name__ == "__main__":
    main(sys.argv[1])
