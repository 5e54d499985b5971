"""Files: read without running code from them, written whole or not at all."""
