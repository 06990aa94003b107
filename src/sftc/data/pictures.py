"""One picture file -> its pixels, or a few words that say why not."""

from __future__ import annotations

import contextlib
import logging
import os
import warnings
from collections.abc import Iterator

import numpy as np
from PIL import Image, UnidentifiedImageError

from sftc.errors import Stopped

# What a file may be, whatever its name ends in. Not all that PIL knows: for EPS it would start a program.
FORMATS = ("JPEG", "PNG", "PPM", "BMP", "TIFF", "WEBP", "GIF")
MOST = 89_478_485  # pixels of a picture, a third of a gigabyte; PIL warns from here on and refuses twice as many
logging.getLogger("PIL").addHandler(logging.NullHandler())  # or its errors would be printed beside our one line


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without PIL's warnings, of damaged tags and the like: what counts is whether there are pixels.

    Around many pictures, since it takes a tenth of the time of a small one.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


class Unreadable(Exception):
    """Why a picture cannot be read, in a few words. Who reads it knows the path."""


def pixels(path: str, size: int) -> np.ndarray:
    """The middle square of a picture at `size` (bilinear, antialiased): RGB, uint8 [size, size, 3].

    Raises:
        Unreadable: the file is gone, damaged, of another kind, or unpacks to far too many pixels.
    """
    with _opened(path) as picture:
        picture.draft("RGB", (size, size))  # a large JPEG is decoded at the next larger half, quarter or eighth
        picture = _rgb(picture)
        side = min(picture.size)
        if picture.size != (size, size):
            left, top = (picture.width - side) / 2, (picture.height - side) / 2
            box = (left, top, left + side, top + side)
            picture = picture.resize((size, size), Image.Resampling.BILINEAR, box=box)
        return np.asarray(picture)


def stretched(path: str, shape: tuple[int, ...]) -> tuple[np.ndarray, tuple[int, int]]:
    """All of a picture at (height, width): RGB, uint8 [height, width, 3]; and the width and height it had.

    Raises:
        Unreadable: as `pixels`.
    """
    height, width = shape
    with _opened(path) as picture:
        had = picture.size
        picture = _rgb(picture)
        if had != (width, height):
            picture = picture.resize((width, height), Image.Resampling.BILINEAR)
        return np.asarray(picture), had


def codes(path: str, coloured: bool) -> np.ndarray:
    """A mask as it is: the numbers of its pixels, uint8 [H, W], or their colours, uint8 [H, W, 3].

    Raises:
        Unreadable: as `pixels`; or its pixels are no numbers from 0 to 255.
    """
    with _opened(path) as picture:
        if coloured:
            return np.asarray(_rgb(picture))
        if picture.mode in ("L", "P", "1"):  # of a palette the indices, as VOC has them
            return np.asarray(picture, dtype=np.uint8)
        numbers = np.asarray(picture)
        if not picture.mode.startswith("I"):
            raise ValueError(f"its mode is {picture.mode}, and masks hold class numbers; for colours give data.palette")
        if numbers.min() < 0 or numbers.max() > 255:
            raise ValueError(f"class number {int(numbers.max())} is none of 0 to 255")
        return numbers.astype(np.uint8)


def resized(classes: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Class numbers uint8 [H, W] at another (height, width): the nearest."""
    height, width = shape
    if classes.shape == (height, width):
        return classes
    return np.asarray(Image.fromarray(classes).resize((width, height), Image.Resampling.NEAREST))


def extent(path: str) -> tuple[int, int]:
    """Width and height, from the first bytes of the file. Raises Unreadable."""
    with _opened(path) as picture:
        return picture.size


def shown(path: str) -> str:
    """A path as it can be printed: one line, whatever its bytes are."""
    return path if path.isprintable() else repr(path)[1:-1]


@contextlib.contextmanager
def _opened(path: str) -> Iterator[Image.Image]:
    try:
        with open(path, "rb", opener=unblocked) as file, Image.open(file, formats=FORMATS) as picture:
            if picture.width * picture.height > MOST:
                raise ValueError(f"it unpacks to {picture.width} x {picture.height} pixels, more than {MOST:,}")
            yield picture
    except Stopped:  # by a signal that came meanwhile
        raise
    except Exception as error:  # a damaged file can bring anything out of PIL
        raise Unreadable(_why(path, error)) from None


def unblocked(path: str, flags: int) -> int:
    """For open(opener=)."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))  # a pipe with this name would be waited for, for ever


def _rgb(picture: Image.Image) -> Image.Image:
    if picture.mode == "F":
        raise ValueError("its pixels are floats, whose range nobody knows")
    if picture.mode.startswith("I"):  # 16 bits: PIL would make everything from 255 on white
        return Image.fromarray(np.clip(np.asarray(picture) >> 8, 0, 255).astype(np.uint8)).convert("RGB")
    if "transparency" in picture.info:
        picture = picture.convert("RGBA")
    return picture.convert("RGB")


def _why(path: str, error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        with contextlib.suppress(OSError):
            if os.path.getsize(path) == 0:
                return "it is empty"
        return f"it is none of {' '.join(FORMATS)}"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    lines = str(error).splitlines()
    return lines[0] if lines else type(error).__name__
