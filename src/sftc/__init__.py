"""sftc: supervised fine-tuning, collaborative. Fine-tune several models that are better together."""

__version__ = "0.1.0"
