"""Strategies: short stories over a Lab. To add one: a file here, a row in the table, a YAML in conf/strategy."""

from sftc.strategies.ensemble import Ensemble
from sftc.strategies.kd import KD
from sftc.strategies.plain import Plain

STRATEGIES = {"plain": Plain, "kd": KD, "ensemble": Ensemble}
