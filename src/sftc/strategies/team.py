"""A leader's team at work: followers beside each other, one after another, or together with their leader."""

from __future__ import annotations

from sftc.lab import Lab
from sftc.losses import Truth, Uncertain
from sftc.objective import Learner
from sftc.strategies.following import Following
from sftc.strategies.transfer import Transfer
from sftc.types import Source

Followers = dict[str, tuple[Lab, Following]]


def follow(lab: Lab, followers: Followers, together: bool) -> None:
    """Train followers on leaders that are finished; `together` in one fit of `lab`, so that leaders are asked once."""
    if all(home.run.finished for home, _ in followers.values()):
        return
    if not together:
        for name, (home, story) in followers.items():
            announce(lab, home, f"{name} follows")
            story.run(home)
        return
    lab.watch.say(f"{', '.join(followers)} follow, in one pass")
    groups = _by_data(followers)
    learners = {
        name: story.learner(home, name, source)
        for source, group in enumerate(groups)
        for name, (home, story) in group.items()
    }
    pairs = []
    for group in groups:
        home, story = next(iter(group.values()))
        homes = {name: leader for h, s in group.values() for name, leader in s.homes(h).items()}
        pairs.append(story.sources(home, [learners[name] for name in group], homes))
    for name, fitted in zip(learners, lab.fit(*learners.values(), sources=pairs), strict=True):
        followers[name][0].keep(fitted)


def jointly(lab: Lab, leaders: dict[str, tuple[Lab, Transfer]], followers: Followers, uncertain: bool) -> None:
    """Train leaders and their followers in one fit of `lab`. All keep the epoch that is best for the first leader: what
    a follower hears of several leaders is what they say in one epoch."""
    if all(h.run.finished for h, _ in followers.values()):
        return
    lab.watch.say(f"{', '.join([*leaders, *followers])} learn together")
    learners: dict[str, Learner] = {}
    for name, (home, story) in leaders.items():
        terms = {"truth": Uncertain() if uncertain else Truth()}
        learners[name] = story.learner(home, name, terms=terms, along=next(iter(learners), None))
    first, _ = next(iter(leaders.values()))
    pairs = [_raw(first)]
    for group in _by_data(followers):
        other = next(iter(group.values()))[0]
        mine = other.run.config["data"] == first.run.config["data"]
        source = 0 if mine else len(pairs)
        pairs += [] if mine else [_raw(other)]
        for n, (h, s) in group.items():
            learners[n] = s.beside(h, [learners[leader] for leader in s.names], n, source)
            learners[n].along = next(iter(leaders))
    fitted = dict(zip(learners, lab.fit(*learners.values(), sources=pairs), strict=True))
    for name, (home, _) in leaders.items():
        home.keep(fitted[name])
    for n, (h, s) in followers.items():
        s.refer(h)  # now that the leaders' weights are known
        h.keep(fitted[n])


def announce(lab: Lab, home: Lab, line: str) -> None:
    if not home.run.finished:
        lab.watch.say(line)


def _raw(lab: Lab) -> tuple[Source, Source]:
    return lab.source("train", train=True, rows=lab.rows), lab.source("val")


def _by_data(followers: Followers) -> list[Followers]:
    """Followers of the same rows, which may share batches; in their order.

    With combine=sum a batch has as many rows as there are leaders, who must be the same.
    """
    groups: dict[str, Followers] = {}
    for name, (home, story) in followers.items():
        summed = home.run.config["model"]["combine"] == "sum"
        key = repr((home.run.config["data"], story.names if summed else None))
        groups.setdefault(key, {})[name] = home, story
    return list(groups.values())
