"""Config -> Lab, and the commands over it. Configs stop here: everything to the left takes plain arguments."""

from sftc.build.commands import evaluate, export, train
from sftc.build.parts import check

__all__ = ["check", "evaluate", "export", "train"]
