"""Pretrain on unlabelled electron micrographs, finetune on few labels."""

__version__ = "0.1.0"
