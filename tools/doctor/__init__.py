"""`make doctor`: what this machine can do for each lab, and what to fix. Standard library only.

`facts` asks the machine, once, through a `Probe`; `findings` judges the answers and asks nothing; `page`
writes.
"""
