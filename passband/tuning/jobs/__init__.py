"""What the tasks of the family are made of: models, examples and exams."""
