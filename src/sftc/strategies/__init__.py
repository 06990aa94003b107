"""Strategies: short stories over a Lab. To add one: a file here, a row in the table, a YAML in conf/strategy."""

from sftc.strategies.ensemble import Ensemble
from sftc.strategies.following import Following
from sftc.strategies.kd import KD
from sftc.strategies.leader import Leader
from sftc.strategies.plain import Plain
from sftc.strategies.transfer import Transfer

# The last two are members that strategy=leader makes; they have no YAML.
STRATEGIES = {
    "plain": Plain,
    "kd": KD,
    "leader": Leader,
    "ensemble": Ensemble,
    "transfer": Transfer,
    "follower": Following,
}
