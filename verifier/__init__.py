"""Formal verification of neural networks: a model and a property in, a verdict with evidence out."""

__version__ = "0.1.0"
