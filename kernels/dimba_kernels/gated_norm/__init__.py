"""The gated root-mean-square norm behind a scan."""
