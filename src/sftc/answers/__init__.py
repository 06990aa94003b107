"""Stored answers of a teacher: it runs once per (view, row); every later epoch, student and job reads its logits.

A row is found by its number, never by its place in a shuffled epoch. A file counts only if it says in full what it is
about (weights, data, augmentation) and is that, and holds to the bit what was written; then the live teacher is asked
again about some rows. The first student reads what was written, too: all students see the same rounded numbers.
"""

from __future__ import annotations

from sftc.answers.cache import stored
from sftc.answers.table import Answers

__all__ = ["Answers", "stored"]
