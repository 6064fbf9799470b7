"""Text in, token ids out: tokenizer, built-in corpus, sources mixed by proportion."""
