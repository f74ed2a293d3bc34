"""The studies of the laboratory: what each runs, and how the runs are done.

`plan` lists the runs of a study, `worker` does one run, `launch` and `rank` share one among several processes, and
`engine` does a grid of them on Hydra.

`armijo study NAME` does the runs of a study through Hydra; `python -m armijo_lab.studies NAME` does them one after the
other in one process, and needs torch and transformers alone. Both append to the same records, which `armijo report`
reads.
"""
