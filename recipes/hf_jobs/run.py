# /// script
# requires-python = ">=3.11"
# dependencies = [
#     "maft[hf,smollm2,tasks] @ https://huggingface.co/datasets/ORG/wheels/resolve/main/maft-0.1.0-py3-none-any.whl",
# ]
# ///
"""A run as a job of the Hugging Face hub, its folder kept at a URL: see README.md beside this file.

run.py URL CONFIG [KEY.SUB=VALUE]...

CONFIG is a recipe or, for any other config, its URL: a job has no files of your machine.
"""

import sys
import tempfile
from pathlib import Path

import fsspec

from maft.cli import main


def fetched(config: str) -> str:
    """Return the path of a config here, fetched from a URL or as it is."""
    if "://" not in config:
        return config
    local = Path(tempfile.mkdtemp()) / config.rpartition("/")[2]
    with fsspec.open(config, "rb") as file:
        local.write_bytes(file.read())
    return str(local)


if len(sys.argv) < 3:
    sys.exit(__doc__)
_, url, config, *overrides = sys.argv
sys.argv = ["maft", "run", fetched(config), *overrides, f"cluster.storage={url}"]
main()
