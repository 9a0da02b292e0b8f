"""The bare recurrence h_i = a_i h_{i-1} + x_i: the yardstick of the TPU kernels, see `dimba_kernels.tpu_cost`."""
