"""A yacs configuration: merged from files and flags, checked, recorded in the output folder."""
