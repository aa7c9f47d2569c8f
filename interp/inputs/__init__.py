"""From a sample to the model's inputs: prompts, the token table, completions."""
