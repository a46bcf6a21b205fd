"""Reports: one self-contained HTML page per run and per evaluation."""

from hai.report.pages import ReportData, build_report, write_report
from hai.report.training import write_training_report

__all__ = ["ReportData", "build_report", "write_report", "write_training_report"]
