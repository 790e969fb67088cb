"""What a worker process does beside running jobs: its lease, its hand-back, and its share of the dispatcher's duties."""
