"""One model, one fit: empirical risk + lambda * R."""

from __future__ import annotations

from sftc.lab import Lab


class Plain:
    """`sftc train strategy=plain`: fine-tune one model on the labels."""

    def run(self, lab: Lab) -> None:
        (fitted,) = lab.fit(lab.model())
        lab.keep(fitted)
