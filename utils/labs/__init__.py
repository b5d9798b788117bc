"""Code that only one lab's cells call, one package per lab."""
