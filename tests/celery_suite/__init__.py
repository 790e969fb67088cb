"""`bin/celery-suite`: Celery's own integration tests, on the ledger and beside it."""
