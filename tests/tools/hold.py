"""`hold.py STEP GATE TOOL ARGUMENTS...` runs a training tool that waits after a step until a file GATE is there.

A test does then what it wants between two steps of a real run, however busy the machine is. A signal ends the wait, and
so does the end of the process that started this one.
"""

import faulthandler
import multiprocessing
import os
import runpy
import sys
import time
from pathlib import Path

if multiprocessing.parent_process():  # forked: a session of its own, so that it can be killed with its loaders
    os.setsid()
faulthandler.dump_traceback_later(500)  # tells where it hangs, before the test gives up
step, gate, tool = int(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3])
sys.argv = sys.argv[3:]
sys.path[:0] = [str(tool.parent), str(tool.parents[1])]

from engine.training.trainer import Trainer  # noqa: E402 - not found before

parent = os.getppid()
train_step = Trainer.train_step


def train_and_wait(trainer, batches):
    train_step(trainer, batches)
    # of processes that train together the first waits, and the others for it
    while os.environ.get("RANK", "0") == "0" and trainer.step == step and not gate.exists():
        if trainer.stop.received or os.getppid() != parent:
            break
        time.sleep(0.01)


Trainer.train_step = train_and_wait
runpy.run_path(str(tool), run_name="__main__")
