"""The report of a run: its page, and the numbers and figures on that page."""
