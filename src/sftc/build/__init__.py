"""Config -> Lab, and the commands over it. Configs stop here: everything to the left takes plain arguments."""

from sftc.build.commands import evaluate, export, fuse, train
from sftc.build.parts import check

__all__ = ["check", "evaluate", "export", "fuse", "train"]
