"""Estimates of a run before it starts: calls, tokens, compute, memory, disk, hours."""

from maft.planning.plan import Plan, make
from maft.planning.text import render

__all__ = ["Plan", "make", "render"]
