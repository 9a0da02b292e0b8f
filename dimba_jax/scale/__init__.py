"""What a program takes on a machine that is not there: compiled for it, and read."""
