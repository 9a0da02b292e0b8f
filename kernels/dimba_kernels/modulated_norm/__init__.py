"""The sum of a residual stream and a branch, and its modulated root-mean-square norm."""
