"""How requests arrive. A transport turns bytes into a request, has it handled, and turns the reply or
the error into its own dialect. It decides nothing.
"""
