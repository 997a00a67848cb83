"""PiSSA, as peft has it; a card without code of its own."""
