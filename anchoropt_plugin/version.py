"""The package's version, in a module of its own: the build reads it without other imports."""

VERSION = "0.1.0"
