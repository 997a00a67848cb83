"""A package that brings two small systems and a task, as an installed plugin would."""
