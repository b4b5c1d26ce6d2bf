"""`maft`: the group of all verbs, and how errors reach the user.

Results go to stdout, progress and messages to stderr. Exit code 0: done; 1: asked rightly, but it failed; 2: asked
wrongly; 130: interrupted; 143 or 129: stopped by SIGTERM or SIGHUP, as Ctrl-C does.
"""

import difflib
import errno
import logging
import os
import signal
import sqlite3
import sys
from importlib import import_module
from types import FrameType

import click

from maft import __version__
from maft.errors import MaftError
from maft.runs.progress import no_foreign_bars

VERBS = {
    "demo": "Run the whole loop in seconds, without a model, to see its files and report.",
    "init": "Write a config for a file of questions, a task, or a copy of a run.",
    "doctor": "Print what this machine has, and what a run on it would use.",
    "list": "List tasks, methods, models, protocols or engines.",
    "schema": "Print the JSON schema of a config, for editors.",
    "plan": "Estimate calls, tokens, memory, disk and hours of a run before it starts.",
    "run": "Run all iterations: debate, vote, curate, finetune, evaluate.",
    "debate": "Run the debates of one iteration.",
    "curate": "Vote on the debates, and write each agent's training examples.",
    "finetune": "Finetune every agent on its own examples.",
    "eval": "Evaluate the agents on the held-out questions.",
    "compare": "Run several methods on the same questions, and print one table.",
    "distil": "Distil the society of a run into one model, and compare the two at equal tokens.",
    "report": "Print the results of a run or comparison, and write its report.",
    "calibrate": "Find settings of a task that are neither too easy nor too hard for a model.",
    "replay": "Compute from stored debates what other protocols and votes would have answered.",
    "judge": "Ask a judge model whether answers of the finetuned agents are better than untrained ones.",
    "diversity": "Measure how different the agents of a run are from one another.",
    "chat": "Ask the agents of a run in the terminal.",
    "serve": "Serve the agents of a run behind an OpenAI-compatible API, with a web page.",
    "verify": "Check the files of a run against their checksums.",
    "show": "Print one debate as a transcript.",
    "merge": "Merge a finetuned agent into its base model, as an ordinary model folder.",
    "export": "Write training sets, preferences or logs of a run in the formats of other programs.",
    "push": "Upload finetuned agents, or debates as a data set, to the Hugging Face hub.",
    "validate": "Check questions and grader of a task or config, and show three prompts; no model is loaded.",
}


class _Verbs(click.Group):
    """Loads a verb's file when the verb is called, so that `--help` is quick."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            near = [verb for verb in VERBS if cmd_name.startswith(verb)] or difflib.get_close_matches(
                cmd_name, VERBS, n=1
            )
            hint = f"Did you mean `maft {near[0]}`?" if near else f"The commands are: {', '.join(VERBS)}."
            ctx.fail(f"No such command '{cmd_name}'. {hint}")
        command: click.Command = getattr(import_module(f"maft.cli.{cmd_name}"), cmd_name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(VERBS.items()))


@click.group(
    cls=_Verbs,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Example: maft run recipes/arithmetic_cpu/config.yaml num_iterations=1",
)
@click.version_option(__version__, prog_name="maft")
def maft() -> None:
    """Multiagent finetuning: copies of one language model debate, vote, and learn from what they agree on."""


def main() -> None:
    """Run the command line."""
    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    logging.getLogger("maft").setLevel(logging.INFO)
    if not sys.stderr.isatty():
        no_foreign_bars()
    words = sys.argv[1:]
    if words[:1] == ["help"]:  # `maft help run` is `maft run --help`
        words = [*words[1:2], "--help"]
    stopped_by = _stop_as_ctrl_c_does()
    try:
        maft.main(words, prog_name="maft", standalone_mode=False)
    except (click.exceptions.Abort, KeyboardInterrupt):
        number = stopped_by[-1] if stopped_by else signal.SIGINT
        how = f"Stopped by {number.name}" if stopped_by else "Interrupted"
        _leave(f"{how}. Finished work is kept; the same command resumes.", 128 + number)
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except MaftError as error:
        _leave(f"maft: {error}", error.exit_code)
    except BrokenPipeError:  # who read our output has left, as in `maft show ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)
    except Exception as error:
        if (told := _machine_says(error)) is None:
            raise
        _leave(f"maft: {told} Fix this and run the same command again; finished work is kept.", 1)


_OF_THE_MACHINE = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO, errno.EMFILE),
    *(errno.ENFILE, errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.ENOENT, errno.ELOOP, errno.ESTALE),
}


def _machine_says(error: Exception) -> str | None:
    """Return what disk and system have to say where an error is theirs and no bug."""
    if isinstance(error, OSError) and error.errno in _OF_THE_MACHINE:
        return f"{error.filename or 'a file'}: {error.strerror}."
    full = "No space left on device" in str(error)  # as safetensors and others say it, in exceptions of their own
    if full or isinstance(error, sqlite3.OperationalError | sqlite3.DatabaseError):
        return f"{' '.join(str(error).split())[:300].rstrip('.')}."
    return None


def _stop_as_ctrl_c_does() -> list[signal.Signals]:
    """Treat the signals that end a job as Ctrl-C, unless they are ignored; return where those that came are noted."""
    came: list[signal.Signals] = []

    def stop(number: int, frame: FrameType | None) -> None:
        came.append(signal.Signals(number))
        interrupt = signal.getsignal(signal.SIGINT)  # which a library may have taken over
        if not callable(interrupt):
            raise KeyboardInterrupt
        interrupt(signal.SIGINT, frame)

    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) == signal.SIG_DFL:
            signal.signal(number, stop)
    return came


def _leave(message: str, code: int) -> None:
    print(message, file=sys.stderr)
    sys.exit(code)
