"""Lung nodules of LIDC-IDRI: segmentation and classification, with the settings and file formats of ACSConv."""
