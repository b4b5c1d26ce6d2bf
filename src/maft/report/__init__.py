"""A run folder as a table, as rows for other programs, and as a page."""

from maft.report import runs
from maft.report.data import results, rows, write_metrics
from maft.report.page import write_page
from maft.report.table import diversity_table, table

__all__ = ["diversity_table", "results", "rows", "runs", "table", "write_metrics", "write_page"]
