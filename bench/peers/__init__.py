"""What this project is compared with: each peer set up as its own documentation says."""
