"""A run: one folder that holds all there is to know about one training.

    runs/NAME/config.toml        every setting; `train --config` reads it back (config.py)
    runs/NAME/tokenizer.model    SentencePiece
    runs/NAME/fingerprints.json  hashes of tokenizer and text, which --resume compares
    runs/NAME/metrics.jsonl      a line per step (metrics.py)
    runs/NAME/loss.png           training and validation loss, entropy floor, learning rate
    runs/NAME/tensorboard/       the numbers of metrics.jsonl again, where TensorBoard is installed
    runs/NAME/checkpoints/       see checkpoint.py

A model that came from elsewhere is a run without a training: its configuration says so in `from`, its preset is IMPORTED.
folder.py makes a run and reads one; open.py opens one for training: new, resumed, or started from a model.
"""
