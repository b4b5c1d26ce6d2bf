"""`python -m maft` is `maft`."""

from maft.cli import main

main()
