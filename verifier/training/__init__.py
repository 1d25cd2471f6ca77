"""Training classifiers that can be certified: with noise, against attacks, and with bounds.

    from verifier.training import Adversary, Settings, SmoothAdversarial, export, initialise, train

    initialise(module, seed=0)
    train(module, x, y, SmoothAdversarial(0.25, Adversary(0.5, norm="2")), Settings(epochs=50))
    export(module, "model.onnx", x.shape[1:])

A loss of a batch is a frozen value, ``loss(module, x, y, draw) -> scalar``; ``epochs`` is the loop, ``train`` runs it
to its end. Nothing global is changed: all chance comes from generators that are seeded.
"""

from __future__ import annotations

from verifier.training.adversary import Adversary
from verifier.training.certified import Certified, Expressive, IntervalCrown, ramp
from verifier.training.loop import Epoch, Settings, accuracy, epochs, initialise, train
from verifier.training.losses import Adversarial, CrossEntropy, Loss, Plain, Scheduled, SmoothAdversarial, Trades
from verifier.training.mahalanobis import CentreLoss, centres, with_centres
from verifier.training.onnx_export import export

__all__ = [
    "Adversarial",
    "Adversary",
    "CentreLoss",
    "Certified",
    "CrossEntropy",
    "Epoch",
    "Expressive",
    "IntervalCrown",
    "Loss",
    "Plain",
    "Scheduled",
    "Settings",
    "SmoothAdversarial",
    "Trades",
    "accuracy",
    "centres",
    "epochs",
    "export",
    "initialise",
    "ramp",
    "train",
    "with_centres",
]
