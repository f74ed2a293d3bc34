"""Where people already train: each module needs the framework that it is called after."""
