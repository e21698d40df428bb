"""A finetuning on a few images and targets: its start, records, trainings, scores and page."""
