"""Decisions about many components: pure Python on floats and labels, without torch."""
