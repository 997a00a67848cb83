"""CRN: a convolutional recurrent network that masks the noisy spectrum."""
