"""Speech: embedded voices, noises, rooms and mixtures of them, and readers of users' folders."""
