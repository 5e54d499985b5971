"""The package's version, alone, so that building the package imports nothing else."""

VERSION = "0.1.0"
