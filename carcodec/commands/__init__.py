"""What the command line can do, a module for what belongs together."""
