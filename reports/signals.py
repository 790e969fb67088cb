"""Domain events of reports. Each is sent inside the transaction that causes it: what a receiver writes stands or falls
with it, and a receiver that raises rolls it back. Receivers are connected in `config.subscriptions`."""

from django.dispatch import Signal

# Arguments: report, the reports.models.Report whose file is there now. Sent once for each report.
report_ready = Signal()
