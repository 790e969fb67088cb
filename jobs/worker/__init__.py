"""What a worker process does beside running jobs: its lease, its hand-back, its share of the dispatcher's duties."""
