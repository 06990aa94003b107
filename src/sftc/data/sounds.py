"""One sound file -> its samples, or a few words that say why not."""

from __future__ import annotations

import contextlib
import functools
import math
import os
import re
from collections.abc import Iterator
from fractions import Fraction
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from sftc.data.pictures import Unreadable, unblocked
from sftc.data.rows import digest
from sftc.data.shelf import Shelf, place
from sftc.errors import Refused, Stopped

EXTENSIONS = (".wav", ".flac", ".ogg")
FORMATS = ("WAV", "WAVEX", "RF64", "FLAC", "OGG")  # what a file may be, whatever its name ends in
RATES = (1000, 384_000)  # samples a second that are believed
CHANNELS = 32
LOUDEST = 16.0  # floats beyond are on another scale; a little above 1 is a clip that was mastered too loud
_RATIO = 1000  # of resampling: its filter is ten times as long; a rate is missed by less than a millionth
_VERSION = 1  # of how is resampled and cut: part of the names of what is kept
_RESAMPLED = Shelf(functools.partial(place, "resampled"), most=4 << 30)
_CUT = re.compile(r"^data\s*: (\d+) \(should be (\d+)\)", re.MULTILINE)
_PIPED = 0xFFFF_F000  # bytes of data that a header written into a pipe may promise


class Extent(NamedTuple):
    """What the header of a clip says."""

    rate: int  # samples a second
    frames: int  # samples of each channel
    channels: int


def library() -> ModuleType:
    """Raises Refused: soundfile is not installed."""
    try:
        import soundfile
    except (ImportError, OSError):  # OSError: it is, but not the library it wraps
        raise Refused("sounds are read by soundfile, which is not installed: pip install 'sftc[audio]'") from None
    return soundfile


def extent(path: str) -> Extent:
    """From the first bytes of the file. Raises Unreadable."""
    with _opened(path) as file:
        return Extent(file.samplerate, file.frames, file.channels)


def samples(path: str, rate: int, length: int) -> np.ndarray:
    """The middle of a clip at `rate` samples a second, its channels mixed: int16 [length]. A shorter one has silence
    around it. Of a long file only the middle is read. What had to be resampled is kept between runs.

    Raises:
        Unreadable: the file is gone, empty, damaged, of another kind, or holds what is no sound.
    """
    key = None
    with _opened(path) as file:
        ratio = Fraction(rate, file.samplerate).limit_denominator(_RATIO)
        if ratio != 1:
            key = digest(_VERSION, os.path.abspath(path), *_stamp(path), rate, length)
            if (kept := _RESAMPLED.find(key)) is not None and len(kept) == 2 * length:
                return np.frombuffer(bytearray(kept), "<i2").astype(np.int16, copy=False)
        more = 0 if ratio == 1 else 20 * math.ceil(max(1, 1 / ratio))  # the filter's reach on both sides
        asked = min(file.frames, math.ceil(length / ratio) + 2 * more)
        file.seek((file.frames - asked) // 2)
        found = file.read(asked, dtype="float32", always_2d=True)
        if len(found) < asked:
            raise ValueError(f"it ends early: {len(found):,} of {asked:,} samples")
        if not np.isfinite(found).all():
            raise ValueError("it holds samples that are not finite")
        if (peak := float(np.abs(found).max())) > LOUDEST:
            raise ValueError(f"its samples reach {peak:g}, and not from -1 to 1")
    mono = found.mean(1)
    if key is not None:
        from scipy.signal import resample_poly  # here, because it takes half a second and most clips do without

        mono = resample_poly(mono, ratio.numerator, ratio.denominator)
    clip = _middle((mono * 32768).round().clip(-32768, 32767).astype(np.int16), length)
    if key is not None:
        _RESAMPLED.keep(key, clip.astype("<i2").tobytes())
    return clip


def _stamp(path: str) -> tuple[int, int]:
    """What tells that a file is still the same: bytes, and time of change."""
    info = os.stat(path)
    return info.st_size, info.st_mtime_ns


def _middle(clip: np.ndarray, length: int) -> np.ndarray:
    """`length` samples around the middle of a clip: the same place whatever the length, so that cuts agree."""
    first = (len(clip) - length) // 2
    out = np.zeros(length, dtype=clip.dtype)
    inner = clip[max(0, first) : first + length]
    out[max(0, -first) : max(0, -first) + len(inner)] = inner
    return out


@contextlib.contextmanager
def _opened(path: str) -> Iterator[Any]:
    file = None
    try:
        file = unblocked(path, os.O_RDONLY)
        with library().SoundFile(file, closefd=False) as sound:
            _check(sound)
            yield sound
    except (Stopped, Refused):  # a signal that came meanwhile, or no library
        raise
    except Exception as error:  # a damaged file can bring anything out of a decoder
        raise Unreadable(_why(path, error)) from None
    finally:
        if file is not None:
            os.close(file)


def _check(sound: Any) -> None:
    """Raises ValueError: what the header says is no clip."""
    if sound.format not in FORMATS:
        raise ValueError(_none())
    if not RATES[0] <= sound.samplerate <= RATES[1]:
        raise ValueError(f"its rate of {sound.samplerate:,} samples a second is none")
    if sound.channels > CHANNELS:
        raise ValueError(f"it has {sound.channels} channels")
    cut = _CUT.search(sound.extra_info)
    if cut is not None and int(cut[2]) < int(cut[1]) < _PIPED:
        raise ValueError(f"it is truncated: {int(cut[2]):,} of {int(cut[1]):,} bytes of samples")
    if sound.frames < 1:
        raise ValueError("it holds no samples")


def _none() -> str:
    return "it is none of WAV FLAC OGG"


def _why(path: str, error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if getattr(error, "code", None) is not None:  # libsndfile's
        with contextlib.suppress(OSError):
            if os.path.getsize(path) == 0:
                return "it is empty"
        return _none() if error.code == 1 else str(getattr(error, "error_string", error)).strip().rstrip(".")  # type: ignore[attr-defined]
    lines = str(error).splitlines()
    return lines[0] if lines else type(error).__name__
