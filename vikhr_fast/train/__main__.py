"""`torchrun -m vikhr_fast.train …` is `vikhr-fast train …` on every rank."""

import sys

from vikhr_fast.distributed.launcher import end_with_launcher

end_with_launcher()  # before PyTorch is imported, which takes seconds

from vikhr_fast.cli import main  # noqa: E402

main(["train", *sys.argv[1:]])
