"""Separation, enhancement and vocoding of speech."""
