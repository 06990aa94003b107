"""The only part that writes the state of a run to disk, and the only one that believes what it reads.

Every write is temp + fsync + rename, so a kill leaves the old file or the new one. Weights are safetensors, training
states `weights_only` pickles of plain types, configs plain YAML: opening somebody's run executes nothing from it.
"""

from sftc.store.files import hash_tensors, plain, write_bytes, write_tensors, write_text
from sftc.store.run import Run

__all__ = ["Run", "hash_tensors", "plain", "write_bytes", "write_tensors", "write_text"]
