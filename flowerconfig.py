"""Flower's options: `celery -A config flower` reads this file from the current folder.

The reasons: `docs/adr/0002-flower-behind-the-admin.md`.
"""

from urllib.parse import urlsplit

from config.env import read

# Only the admin's pass-through (config/flower.py) may reach it: Flower has no login of its own.
address = "127.0.0.1"
port = urlsplit(read().flower_url).port or 5555
url_prefix = "admin/flower"
# The ledger is steered from the admin: what Flower could do to workers and tasks would go past it, unrecorded.
read_only = True
max_tasks = 10_000
purge_offline_workers = 300
