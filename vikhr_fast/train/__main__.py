"""`torchrun -m vikhr_fast.train …` is `vikhr-fast train …` on every rank."""

import sys

from vikhr_fast.cli import main

main(["train", *sys.argv[1:]])
