"""GP-SE: GP-HM's class with its kernel fixed by the card."""
