from benchmarks.lr_bench.oracle import oracles
from benchmarks.lr_bench.tasks import TASKS
from pathlib import Path
import torch, sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
if __name__ == "__main__":
    folder = Path(sys.argv[1])
    with ProcessPoolExecutor(int(sys.argv[2]), mp_context=get_context("fork"), initializer=torch.set_num_threads, initargs=(1,)) as pool:
        o = oracles(TASKS, folder, pool)
    for n, x in o.items():
        print(n, x.best("constant"), x.best("one_cycle"))
