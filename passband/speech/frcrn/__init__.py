"""FRCRN: speech enhancement by a complex U-Net that is recurrent along frequency and time."""
