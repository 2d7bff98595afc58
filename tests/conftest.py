"""One thread a test process: bit-exact sums, and no fighting over cores between workers."""

import torch

torch.set_num_threads(1)
