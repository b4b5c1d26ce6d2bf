"""What a run will take, before anything runs: calls, tokens, work, memory, disk, hours."""

from maft.planning.plan import Plan, make
from maft.planning.text import render

__all__ = ["Plan", "make", "render"]
