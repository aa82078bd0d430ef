"""The distillation run: one file a stage, `all.py` composes them."""
