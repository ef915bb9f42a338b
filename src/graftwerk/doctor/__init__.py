"""`graftwerk doctor`: whether this machine is fit for training, and what to do where it is not."""
