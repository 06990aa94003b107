"""A source -> leaders -> followers: L(theta) = sum_j sum_i L_j(theta_j, h_i), h_i = f_i(x) what leader i says."""

from __future__ import annotations

from typing import Any

from sftc import optim
from sftc.errors import Refused
from sftc.lab import Lab
from sftc.strategies import comparison, following, roster, sources, team, transfer
from sftc.strategies.following import Following
from sftc.strategies.transfer import Transfer


class Leader:
    """`sftc train strategy=leader`: leaders carry a source to the target, followers read what they say.

    Every source, leader and follower is a run of its own; this run keeps the first leader, and the table of the team.

    Args:
        node: the keys of conf/strategy/leader.yaml.

    Raises:
        Refused: choices that contradict each other.
    """

    def __init__(self, **node: Any) -> None:
        self.node = node
        self.leaders = roster.leaders(node)
        self.followers = roster.followers(node)
        if node["joint"]:
            roster.check_joint(node)
        self.tables: dict[str, list[dict[str, float]]] = {}  # of keep=auto, by leader

    def run(self, lab: Lab) -> None:
        self._look(lab)
        stories = {name: self._leader(lab, name, i) for i, name in enumerate(self.leaders)}
        leaders = {name: home for name, (home, _) in stories.items()}
        followers = self._team(lab, leaders)
        if self.node["joint"]:
            team.jointly(lab, stories, followers, uncertain=self.node["weighting"] == "uncertain")
        else:
            for name, (home, story) in stories.items():
                team.announce(lab, home, f"leader {name} learns the target, its first {story.keep} blocks kept")
                story.run(home)
            team.follow(lab, followers, together=self.node["together"])
        homes = {name: home for name, (home, _) in followers.items()}
        scratch = {name: self._scratch(lab, name, home) for name, home in leaders.items() if self.node["baseline"]}
        first = next(iter(leaders.values()))
        if lab.run.config["model"] != first.run.config["model"]:  # a source run brought its own
            lab.run.write_config({**lab.run.config, "model": first.run.config["model"]})
        for line in comparison.gains(lab, leaders, scratch)[1]:
            lab.watch.say(line)
        tables = {"keep": self.tables} if self.tables else {}
        lab.keep(
            first.fitted(), lambda found: {**comparison.members(lab, leaders, homes, scratch, list(found)), **tables}
        )

    def _look(self, lab: Lab) -> None:
        """Refuse what cannot be before anything is learned: blocks, layers, rates."""
        if self.node["joint"] and lab.settings.ema is not None:
            raise Refused("strategy.joint=true: followers read the leader as it is, not its average; leave ema at null")
        if (way := lab.run.config["finetune"]["name"]) != "full":
            raise Refused(
                f"finetune={way}: which blocks of a leader move, strategy.keep and strategy.keep_lr say; "
                "leave finetune at full"
            )
        models: dict[str, dict[str, Any]] = {}  # of each leader, or of its first candidate
        for name, entry in self.leaders.items():
            for source in entry["source"]:
                model = sources.model_of(lab, source)
                target = {**model, **roster.head(name, entry)}
                models.setdefault(name, target)
                learned = sources.data(lab, source)
                transfer.kept_of(model, target, entry["keep"], lab.facts, roster.key(name, "keep"), learned)
                if entry["keep"] == "auto" and entry["folds"] > len(lab.data.splits["train"].rows):
                    raise Refused(f"strategy.folds={entry['folds']} is more than the target has training rows")
            self._optim(lab, entry)
        following.outputs(lab, self.node["leader_outputs"], self.followers)
        for name, entry in self.followers.items():
            self._optim(lab, entry)
            heard = [models[leader] for leader in entry["leaders"]]
            following.built(following.node(entry, heard, lab.facts, self.node["combine"]), lab.facts)
            if entry["data"]:
                following.check_rows(name, sources.read(lab, self._data(lab, entry)), lab.facts)

    def _data(self, lab: Lab, entry: dict[str, Any]) -> dict[str, Any]:
        """The data node of a follower: the target's, with what is its own; or other data."""
        target, own = lab.run.config["data"], entry["data"] or {}
        return {**target, **own} if own.get("name", target["name"]) == target["name"] else sources.data_of(target, own)

    def _optim(self, lab: Lab, entry: dict[str, Any]) -> dict[str, Any]:
        config = lab.run.config
        found = {**config["optim"], **entry["optim"]}
        optim.check(found, config["schedule"], {"name": "full"})
        return found

    def _leader(self, lab: Lab, name: str, i: int) -> tuple[Lab, Transfer]:
        """A leader that is ready to learn the target."""
        entry = self.leaders[name]
        many = len(self.leaders) > 1 or len(entry["source"]) > 1
        labels = [f"source-{name}-{n}" if many else "source" for n in range(len(entry["source"]))]
        paths = [sources.made(lab, *pair, entry) for pair in zip(labels, entry["source"], strict=True)]
        groups: dict[str, Any] = {"optim": self._optim(lab, entry), "seed": lab.seed + i}
        path = paths[0] if len(paths) == 1 else transfer.best_source(lab, name, paths, entry, groups["optim"])
        model = sources.grown(lab, lab.open(path))
        groups["model"] = {**model, **roster.head(name, entry)}
        n = transfer.kept_of(model, groups["model"], entry["keep"], lab.facts, roster.key(name, "keep"))
        if entry["keep"] == "auto":
            n, self.tables[name] = transfer.best_keep(lab, name, path, entry, groups, most=n)
        story = Transfer(path, n)
        finetune = {"name": "first_n", "n": n, "keep_lr": entry["keep_lr"]}
        return lab.fork(name, finetune=finetune, strategy=story.node(), **groups), story

    def _team(self, lab: Lab, leaders: dict[str, Lab]) -> dict[str, tuple[Lab, Following]]:
        """Followers that are ready to follow these leaders."""
        if not self.followers:
            return {}
        how = following.outputs(lab, self.node["leader_outputs"], self.followers)
        out = {}
        for i, (name, entry) in enumerate(self.followers.items()):
            heard = [leaders[leader] for leader in entry["leaders"]]
            paths = [str(home.run.path.resolve()) for home in heard]
            models = [following.bare(home) for home in heard]
            own = "live" if entry["data"] and how == "cached" else how  # answers are stored of the leader's rows alone
            node = {"leaders": paths, **{k: entry[k] for k in ("alpha", "temperature", "weight")}}
            node |= {"outputs": "joint" if self.node["joint"] else own}
            node |= {"uncertain": self.node["weighting"] == "uncertain"}
            home = lab.fork(
                name,
                seed=lab.seed + len(leaders) + i if entry["seed"] is None else entry["seed"],
                model=following.node(entry, models, lab.facts, self.node["combine"]),
                data=self._data(lab, entry),
                finetune={"name": "full"},
                optim=self._optim(lab, entry),
                strategy={"name": "follower", **node},
            )
            out[name] = home, Following(**node, names=entry["leaders"])
        return out

    def _scratch(self, lab: Lab, name: str, leader: Lab) -> Lab:
        """The same model with the same budget, without a source."""
        config = leader.run.config
        home = lab.fork(
            f"scratch-{name}",
            seed=config["seed"],
            model=config["model"],
            finetune={"name": "full"},
            optim=config["optim"],
        )
        team.announce(lab, home, f"the same model as {name}, from scratch")
        if not home.run.finished:
            (fitted,) = home.fit(home.model())
            home.keep(fitted)
        return home
