"""The bench a strategy works at."""

from sftc.lab.lab import Lab
from sftc.lab.settings import Settings, Watch

__all__ = ["Lab", "Settings", "Watch"]
