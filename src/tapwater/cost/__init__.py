"""What a model costs, from its configuration alone and on a machine: one file a question, no torch.

`planning` and `pricing` collect what most programs need of them.
"""
