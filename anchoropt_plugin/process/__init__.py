"""A run as processes: torchrun, random numbers, folder locks, exit statuses, user modules."""
