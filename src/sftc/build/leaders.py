"""A follower's leaders live in runs of their own: found by reference, held against the hash noted there, and loaded."""

from __future__ import annotations

from sftc.errors import Refused
from sftc.models import Follower
from sftc.store import Run, hash_tensors


def load(follower: Follower, home: Run) -> None:
    """Give the leaders of a follower the weights of the runs that `home` names; while it names none, as they are.

    Raises:
        Refused: a leader is missing, or its weights are no longer those that the follower learned from.
    """
    for i, leader in enumerate(follower.leaders):
        name = f"leader{i}"
        try:
            path = home.reference(name)
            if path is None:
                continue
            run = Run.open(path)
            state = run.weights()
        except Refused as e:
            raise Refused(f"follower {home.path} needs its leader: {e}") from None
        if hash_tensors(state) != home.referred(name):
            raise Refused(f"{path} is no longer the leader that follower {home.path} learned from; train it again")
        try:
            leader.load_state_dict(state)
        except RuntimeError:
            raise Refused(f"{path} is no leader of the form that {home.path / 'config.yaml'} says") from None
