"""Fast forms of the model's inner loops, each beside a naive twin that reads like the paper."""
