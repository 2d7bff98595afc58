"""Goes on with one training run after another in the same processes: `python runs_in_turn.py CONFIG.json …`."""

import json
import shutil
import sys
from pathlib import Path

from vikhr_fast.config import train_config
from vikhr_fast.distributed.ranks import process_group
from vikhr_fast.train.inputs import open_inputs, record_inputs
from vikhr_fast.train.loop import Training
from vikhr_fast.train.signals import Interruption

configs = [train_config(json.loads(path.read_text()), str(path)) for path in map(Path, sys.argv[1:])]
with process_group(configs[0].runtime) as ranks:
    for config in configs:
        inputs = open_inputs(config, verify=False)
        if ranks.is_main:
            record_inputs(config, inputs)
            shutil.rmtree(config.output / "model", ignore_errors=True)  # of a part of the run that was done before
        ranks.barrier()
        Training(config, inputs, ranks, Interruption()).run()
