"""Examples with a class each: embedded digits with clean or wrong labels, and users' own data."""
