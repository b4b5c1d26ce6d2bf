"""Write the finetunings that a run owes as the file that the worker reads: python write_jobs.py RUN JOBS.json."""

import json
import sys
from pathlib import Path

from maft import RunFolder
from maft.pipeline import finetune
from maft.pipeline import run as pipeline
from maft.runs import societies, status


class Writer:
    """A trainer that writes down what it is asked for."""

    def __init__(self, file, dtype):
        self.file, self.dtype = file, dtype

    def train(self, jobs, settings, on_progress):
        """Write the jobs; nothing is trained."""
        request = {
            "dtype": self.dtype,
            "settings": settings.model_dump(mode="json"),
            "jobs": [job.model_dump(mode="json") for job in jobs],
        }
        self.file.write_text(json.dumps(request, indent=2))
        print(f"{len(jobs)} finetunings: {', '.join(job.agent for job in jobs)}")


run = RunFolder.existing(Path(sys.argv[1]))
iteration = status.current(run)
society = societies.after(run, iteration - 1)
writer = Writer(Path(sys.argv[2]), run.config.engine.dtype)
finetune.finetune(run, iteration, society, pipeline.num_examples(run, iteration), writer)
