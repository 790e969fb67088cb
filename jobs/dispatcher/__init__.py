"""What one process does for all: every worker carries a dispatcher, and the one that holds the lease acts."""
