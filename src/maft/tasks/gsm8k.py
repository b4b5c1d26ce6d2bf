"""GSM8K: word problems whose answer is one number (Cobbe et al., 2021)."""

import re
from collections.abc import Mapping

from maft.answers import extract_number
from maft.config import prompts
from maft.errors import DataError
from maft.records import Problem
from maft.tasks.rows import Row
from maft.tasks.table import Source, Table, known_answer, made, text

_REMEDY = "GSM8K has question and answer; use task dataset for other columns."
_NUMBER = re.compile(r"[-+]?(?:[0-9]+|[0-9]{1,3}(?:,[0-9]{3})+)(?:\.[0-9]+)?")


class Gsm8k(Table):
    """Rows with `question` and `answer`, a worked solution that ends in `#### 1,234`."""

    source = Source("openai/gsm8k", "main", "train", "test")
    prompts: Mapping[str, str] = prompts.asking("final answer, a single number, written as \\boxed{answer}")

    read = staticmethod(extract_number)

    def problem(self, row: Row) -> Problem:
        """Take what follows the last ####, without thousands separators."""
        question = text(row, "question", _REMEDY)
        solution = known_answer(row, "answer", _REMEDY)
        if solution is None:
            return made(row, question, None)
        gold = solution.rpartition("####")[2].strip().removeprefix("$")
        if not _NUMBER.fullmatch(gold):
            raise DataError(f"{row.where}: 'answer' must be a number or end in #### and a number, got {gold[-80:]!r}.")
        return made(row, question, gold.replace(",", ""))
