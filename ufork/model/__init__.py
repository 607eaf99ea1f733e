"""The Y-shaped transformer. Pure torch: no process group, no engine; parallelism is applied from outside."""
