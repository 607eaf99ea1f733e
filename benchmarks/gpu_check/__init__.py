"""Checks ufork on this machine's NVIDIA GPUs: `python -m benchmarks.gpu_check`, or `make gpu`.

    part_list.py: the parts and their limits -> part_process.py: each part in its own process, stopped at its limit
    report.py: what a part measures and checks, sent at once -> results.py: one JSON file, a table at the end

Parts are in `parts/`, each named after what it checks. `--cpu` runs the same parts at tiny sizes on the CPU; what only
CUDA has is then skipped.
"""
