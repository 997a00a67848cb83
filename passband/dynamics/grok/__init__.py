"""To grok or not to grok: neurons that memorise and neurons that generalise, told apart."""
