CLAIMS = {"C1": lambda bench: None}
