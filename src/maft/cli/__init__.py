"""The command line: one thin file for each verb."""

from maft.cli.main import main

__all__ = ["main"]
