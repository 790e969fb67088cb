"""`python -m tests.script` runs the text in SCRIPT: a process of its own that a test may let die anywhere."""

import os

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings")
exec(os.environ["SCRIPT"])
