"""Engines in this process that answer requests: the `Sampler` protocol and its implementations."""

from maft.samplers.base import Sampler
from maft.samplers.scripted import Scripted

__all__ = ["Sampler", "Scripted"]
