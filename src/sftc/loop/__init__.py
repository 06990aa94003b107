"""The training loop: one `fit` for every method, and one `predict`. Neither names a method, a file or a device.

A fit is entered at any step. Order and augmentation are functions of (seed, epoch, row), model randomness of (seed,
step), so its whole state is: weights, optimizer, schedule, scaler, EMA, best so far, position, sums of the epoch.
"""

from sftc.loop.fit import fit
from sftc.loop.predict import predict
from sftc.loop.state import Budget, Care, Fit, Fitted, Trainee, host_state

__all__ = ["Budget", "Care", "Fit", "Fitted", "Trainee", "fit", "host_state", "predict"]
