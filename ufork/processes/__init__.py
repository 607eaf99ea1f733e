"""Worker processes: starts them, detects their death, and raises their errors in the parent.

    worker.py: start_worker -> a process that dies with its parent and sends messages, then its end or a Failure
    worker_pool.py: numbered jobs by several workers        prefetch.py: items made ahead by several workers
    (pipelines/launch/local_ranks.py starts ranks with worker.py, too)

Alternatives, and why they are not used (measured on 2 cores, Python 3.11, torch 2.13):

- concurrent.futures.ProcessPoolExecutor: BrokenProcessPool names neither the process nor its job nor its signal, an
  error while a worker starts is lost, and the workers of a killed parent keep running (still there after 10 min).
- torch.distributed.elastic.multiprocessing: an error arrives as text, without its type, and a result is read without
  a time-out; importing it takes 2.4 s, and `ufork --help` and `ufork shard` do without torch.
- torch.utils.data.DataLoader: one time-out for a worker that died and one that hangs, and its workers are killed by the
  signals by which schedulers ask ranks to save and stop.
"""
