"""Decisions about one line: pure Python on floats, without torch."""
