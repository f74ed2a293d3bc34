"""The laboratory: what each study runs (`plan`), how one run is done (`worker`), and how a grid of them is (`engine`).

`armijo study NAME` does the runs of a study through Hydra; `python -m armijo_lab.studies NAME` does them one after the
other in one process, and needs torch and transformers alone. Both append to the same records, which `armijo report`
reads.
"""
