"""Training: state, optimizer, one step, and the loop around it."""
