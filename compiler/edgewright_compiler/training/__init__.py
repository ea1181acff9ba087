"""From an untrained net to weights: training, distillation, structured pruning, weights of someone else.

`train` is the loop, `draws` the rows of its epochs, `losses` what it minimises by task, `distill` the same under a
teacher; `prune` takes channels away and keeps nets without pickle, `sensitivity` says what each layer can bear,
`finetune` starts from weights of someone else.
"""
