"""What the experiments share: options, data, training, metrics, figures and result files.

Thin on purpose: training is Lightning's, losses and metrics are MONAI's and torchmetrics'.
"""
