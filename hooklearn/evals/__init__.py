"""Other people's evaluations on hooked models, and our corpora as their tasks (extra ``evals``)."""
