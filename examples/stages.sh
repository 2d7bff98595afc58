# Sourced by the scripts beside it: runs commands in order, so that a script which was stopped goes on when run again.
# DRY_RUN=1 runs nothing but `plan`: each command is printed, and its words are read by the real command line.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
[ -d .venv ] && PATH="$PWD/.venv/bin:$PATH"

# run COMMAND...: a command that knows by itself what it has done already.
run() {
    echo "+ $*"
    if [ -z "${DRY_RUN:-}" ]; then "$@"; else checked "$@"; fi
}

# stage OUTPUT COMMAND...: a command whose output is complete or absent; where it exists, there is nothing to do.
stage() {
    local output=$1
    shift
    if [ -e "$output" ]; then echo "= $output exists"; else run "$@" --output "$output"; fi
}

# checked COMMAND...: whether `vikhr-fast`, or torchrun's `-m vikhr_fast.train`, accepts these words.
checked() {
    while [ "$1" != vikhr-fast ] && [ "$1" != vikhr_fast.train ]; do shift; done
    if [ "$1" = vikhr_fast.train ]; then shift; set -- vikhr-fast train "$@"; fi
    shift
    python -c 'import sys; from vikhr_fast.commands import parse; parse(sys.argv[1:])' "$@"
}
