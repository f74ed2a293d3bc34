"""The loss at the current parameters, evaluated any number of times from the same generators and buffers."""
