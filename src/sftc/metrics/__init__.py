"""Metrics of a stream of batches, gathered flat and in large pieces: dense logits never pile up."""

from sftc.metrics.agreement import Agreement
from sftc.metrics.classes import ClassMeter, TagMeter
from sftc.metrics.numbers import LabelMeter, ValueMeter
from sftc.metrics.pieces import Pieces
from sftc.metrics.pixels import PixelMeter

__all__ = ["Agreement", "ClassMeter", "LabelMeter", "Pieces", "PixelMeter", "TagMeter", "ValueMeter"]
