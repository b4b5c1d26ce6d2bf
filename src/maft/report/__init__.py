"""A run folder as a table, as rows for other programs, and as a page."""

from maft.report import runs
from maft.report.data import results, rows, write_metrics
from maft.report.page import write_page
from maft.report.table import table

__all__ = ["results", "rows", "runs", "table", "write_metrics", "write_page"]
