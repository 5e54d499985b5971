"""A run as processes: torchrun, random numbers, locks, exit statuses, checks of its numbers."""
