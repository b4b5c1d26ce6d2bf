"""A run or a comparison as a table, as rows for other programs, as a page, and as files for papers."""

from maft.evaluation.series import write as write_metrics
from maft.report import runs
from maft.report.comparison_page import write_page as write_comparison_page
from maft.report.data import results, rows
from maft.report.export import export_comparison, export_run
from maft.report.replays import replay_table
from maft.report.run_page import write_page
from maft.report.table import comparison_table, diversity_table, runs_table, table

__all__ = [
    "comparison_table",
    "diversity_table",
    "export_comparison",
    "export_run",
    "replay_table",
    "results",
    "rows",
    "runs",
    "runs_table",
    "table",
    "write_comparison_page",
    "write_metrics",
    "write_page",
]
