"""`python -m vikhr_fast` is the `vikhr-fast` command."""

from vikhr_fast.cli import main

main()
