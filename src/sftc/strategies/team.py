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
        pairs.append(story.sources(home, [learners[name] for name in group]))
    for name, fitted in zip(learners, lab.fit(*learners.values(), sources=pairs), strict=True):
        followers[name][0].keep(fitted)


def jointly(lab: Lab, leaders: dict[str, tuple[Lab, Transfer]], followers: Followers, uncertain: bool) -> None:
    """Train one leader and its followers in one fit of `lab`."""
    ((name, (home, story)),) = leaders.items()
    if all(h.run.finished for h, _ in followers.values()):
        return
    lab.watch.say(f"{', '.join([name, *followers])} learn together")
    leader = story.learner(home, name, terms={"truth": Uncertain() if uncertain else Truth()})
    learners: list[Learner] = [leader]
    pairs = [_raw(home)]
    for group in _by_data(followers):
        first = next(iter(group.values()))[0]
        mine = first.run.config["data"] == home.run.config["data"]
        source = 0 if mine else len(pairs)
        pairs += [] if mine else [_raw(first)]
        learners += [s.beside(h, leader, n, source) for n, (h, s) in group.items()]
    fitted = dict(zip([x.name for x in learners], lab.fit(*learners, sources=pairs), strict=True))
    home.keep(fitted[name])
    for n, (h, s) in followers.items():
        s.refer(h)  # now that the leader's weights are known
        h.keep(fitted[n])


def announce(lab: Lab, home: Lab, line: str) -> None:
    if not home.run.finished:
        lab.watch.say(line)


def _raw(lab: Lab) -> tuple[Source, Source]:
    return lab.source("train", train=True, rows=lab.rows), lab.source("val")


def _by_data(followers: Followers) -> list[Followers]:
    """Followers of the same rows, which may share batches; in their order."""
    groups: dict[str, Followers] = {}
    for name, (home, story) in followers.items():
        groups.setdefault(repr(home.run.config["data"]), {})[name] = home, story
    return list(groups.values())
