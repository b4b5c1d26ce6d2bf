"""A run folder as a table, as rows for other programs, and as a page."""

from maft.report.data import label_qualities, results, rows, table, write_metrics
from maft.report.page import write_page

__all__ = ["label_qualities", "results", "rows", "table", "write_metrics", "write_page"]
