"""From an untrained net to weights: training, distillation, structured pruning, transfer of weights.

`train` is the loop, `draws` the rows of its epochs, `losses` what it minimises by task, `distill` the same under a teacher, `prune` takes channels
away, `weights` keeps nets without pickle, `finetune` starts from weights of someone else.
"""
