"""`bin/soak`: jobs under a storm of kills, freezes and outages; afterwards each is accounted for."""
