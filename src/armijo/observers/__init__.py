"""Watching an optimizer: reports of its steps, and observers that record, draw or check them."""
