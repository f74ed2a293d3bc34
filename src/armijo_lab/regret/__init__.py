"""The study `regret`: how much one default loses to the learning rate that a sweep would have picked, cell by cell.

A *cell* is a task, what of the model is trained, a number of rows and a batch size. In each cell AdamW is run with
several learning rates, and every other optimizer once with what its authors recommend. `grid` names the cells,
`material` makes their rows and models, `runs` trains, `page` makes the tables and the figure. It shares no code with
the training of `armijo finetune`: runs are short, evaluated once, and a trained head costs a second because its
features are kept.

    python -m armijo_lab.regret data_dir=glue regimes=head
    python -m armijo_lab.regret report
"""
