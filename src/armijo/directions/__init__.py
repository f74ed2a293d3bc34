"""Directions: where a step goes, from the gradient and its moments."""
