"""Kinds of attention behind one contract (``contract.py``), and what each of them keeps in the KV cache."""
