"""Classification of the six sets of MedMNIST3D, with the settings of its published experiments."""
